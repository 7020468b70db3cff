//! Lists of any kind, paged through.
//!
//! Source: Block Storage API v3, pagination (`marker`, `limit`, `KIND_links`).
//!
//! Invariants:
//! 1. A list that has no end is an error, not a hang.
//! 2. The next page is asked for by the last id: the link's address is what the API thinks that it has.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Cinder;
use super::error::{Error, RequestId};
use super::http::{Answer, without_query};
use super::session::Call;

/// With the server's 1000 a page, more than any project's quota.
const PAGES_MAX: usize = 1000;

#[derive(Deserialize)]
struct Link {
    rel: String,
}

impl Cinder {
    /// All of `kind` (`volumes`, `snapshots`, ...) that `path` lists and `filter` lets through.
    pub(super) async fn all<T: DeserializeOwned>(
        &self,
        kind: &str,
        path: &[&str],
        filter: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut marker: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let after = marker.as_deref().map(|id| ("marker", id));
            let query: Vec<(&str, &str)> = filter.iter().copied().chain(after).collect();
            let answer = self.session.call(Call::get(path).query(&query)).await?;
            let (rows, last) = read(kind, &answer)?;
            all.extend(rows);
            marker = last;
            if marker.is_none() {
                return Ok(all);
            }
        }
        Err(Error::Answer {
            url: without_query(self.session.endpoint()),
            what: format!("the list of {kind} does not end after {PAGES_MAX} pages"),
            request: RequestId(None),
        })
    }
}

/// A page: its rows, and behind which id the next one begins, if there is one.
pub(super) fn read<T: DeserializeOwned>(
    kind: &str,
    answer: &Answer,
) -> Result<(Vec<T>, Option<String>), Error> {
    let not_understood = |what: String| Error::Answer {
        url: answer.url.clone(),
        what,
        request: answer.request.clone(),
    };
    let page: Map<String, Value> = answer.parse()?;
    let rows = page.get(kind).and_then(Value::as_array);
    let rows = rows.ok_or_else(|| not_understood(format!("it has no {kind}")))?;
    let read: Result<Vec<T>, _> = rows.iter().map(T::deserialize).collect();
    let read = read.map_err(|_| not_understood(format!("one of the {kind} is not one")))?;
    let marker = rows.last().and_then(id_of).filter(|_| has_next(&page));
    Ok((read, marker))
}

/// Of those that a server lists for a name, the one that has it to the byte: a server's filter may be wider.
pub(super) fn the_one<T>(
    kind: &'static str,
    name: &str,
    listed: Vec<T>,
    of: impl Fn(&T) -> (&str, Option<&str>),
) -> Result<T, Error> {
    let mut named: Vec<T> = listed
        .into_iter()
        .filter(|one| of(one).1 == Some(name))
        .collect();
    match (named.pop(), named.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(one), false) => Err(Error::Ambiguous {
            kind,
            name: name.to_owned(),
            ids: named
                .iter()
                .chain([&one])
                .map(|one| of(one).0.to_owned())
                .collect(),
        }),
        (None, _) => Err(Error::NotFound {
            message: format!("there is no {kind} `{name}` in this project"),
            request: RequestId(None),
            remedy: format!(
                "`cinder-nbd {} list` shows what there is; is OS_PROJECT_NAME the right project?",
                verb_of(kind)
            ),
        }),
    }
}

/// What lists them at the command line.
fn verb_of(kind: &str) -> &'static str {
    match kind {
        "snapshot" => "volume snapshot",
        "transfer" => "volume transfer",
        _ => "volume",
    }
}

fn id_of(row: &Value) -> Option<String> {
    row.get("id")?.as_str().map(str::to_owned)
}

/// Whatever the links are called: `volumes_links`, but `volume_type_links`.
fn has_next(page: &Map<String, Value>) -> bool {
    let links = page.iter().filter(|(key, _)| key.ends_with("_links"));
    let mut links = links.filter_map(|(_, links)| Vec::<Link>::deserialize(links).ok());
    links.any(|links| links.iter().any(|link| link.rel == "next"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_link_named_next_goes_on() {
        let next = |page: Value| has_next(page.as_object().unwrap());
        let link = json!([{"rel": "next", "href": "http://x"}]);
        assert!(next(json!({"snapshots": [], "snapshots_links": link})));
        assert!(next(json!({"volume_types": [], "volume_type_links": link})));
        assert!(!next(json!({"snapshots_links": [{"rel": "self"}]})));
        assert!(!next(json!({"snapshots_links": "next"})));
        assert!(!next(json!({"snapshots": []})));
    }
}
