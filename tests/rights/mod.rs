//! The access rules of `docs/clouds.md`, and what they match.
//!
//! Source: keystonemiddleware, `auth_token`: a word in braces or one star is one segment's worth, two stars are anything.

use serde::{Deserialize, Serialize};

/// One rule, as Keystone takes it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rule {
    /// The service's type.
    pub service: String,
    /// HTTP's.
    pub method: String,
    /// With stars.
    pub path: String,
}

/// The document's list.
pub fn published() -> Vec<Rule> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clouds.md");
    let document = std::fs::read_to_string(path).expect("docs/clouds.md is there");
    let list = document.split("```json\n").nth(1).expect("a list");
    let list = list.split("```").next().expect("its end");
    serde_json::from_str(list).expect("a list of rules")
}

impl Rule {
    /// Whether a request is one of those.
    pub fn allows(&self, method: &str, path: &str) -> bool {
        self.method == method && matches(self.path.as_bytes(), path.as_bytes())
    }
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| matches(rest, &path[at..])),
        [b'*', rest @ ..] => {
            let segment = path.iter().take_while(|byte| **byte != b'/').count();
            (1..=segment).any(|at| matches(rest, &path[at..]))
        }
        [letter, rest @ ..] => path
            .split_first()
            .is_some_and(|(first, path)| first == letter && matches(rest, path)),
    }
}
