//! What a refused request says: three shapes of JSON, a proxy's HTML, or nothing.
//!
//! Source: `cinder/api/openstack/wsgi.py` (fault names), keystonemiddleware (`error`), webob (`code` as text); bodies
//! recorded from Cinder 21.3.1 and 29.0.0 are in the tests.
//!
//! Invariants:
//! 1. A message is one line of at most `MESSAGE_CHARS_MAX` characters, whatever the server sent.
//! 2. What a schema validator quotes from our request is cut off: it may hold a password.

use serde_json::Value;

/// Long enough for every message of Cinder seen, short enough for a terminal; chosen freely.
const MESSAGE_CHARS_MAX: usize = 300;

/// The text of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// `itemNotFound`, `overLimit`, `error`...; `None` where the body had no such name: an unknown path or a proxy.
    pub(super) name: Option<String>,
    /// One line.
    pub(super) message: String,
}

impl Fault {
    /// Total over any body.
    pub(super) fn parse(status: u16, body: &[u8]) -> Self {
        let fault = match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(object)) => Self::from_object(&object),
            Ok(_) => None,
            Err(_) => Some(Self {
                name: None,
                message: from_text(&String::from_utf8_lossy(body)),
            }),
        };
        fault
            .filter(|fault| !fault.message.is_empty())
            .unwrap_or_else(|| Self {
                name: None,
                message: format!("HTTP status {status} without a reason"),
            })
    }

    fn from_object(object: &serde_json::Map<String, Value>) -> Option<Self> {
        // {"message": "...<br /><br />\n\n", "code": "404 Not Found", "title": "Not Found"}
        if let Some(text) = object.get("message").and_then(Value::as_str) {
            let title = object
                .get("title")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let message = from_text(text);
            let message = if message.is_empty() {
                from_text(title)
            } else {
                message
            };
            return Some(Self {
                name: None,
                message,
            });
        }
        // {"itemNotFound": {"code": 404, "message": "..."}} and {"error": {"code": 401, "title": ..., "message": ...}}
        object.iter().find_map(|(name, inner)| {
            let text = inner.get("message").and_then(Value::as_str)?;
            Some(Self {
                name: Some(name.clone()),
                message: from_text(text),
            })
        })
    }
}

/// One line of plain text out of text or HTML.
pub(super) fn from_text(text: &str) -> String {
    let text = text.split("Failed validating").next().unwrap_or_default();
    let text = text.split("On instance").next().unwrap_or_default();
    let lower = text.to_lowercase();
    let is_page = lower.contains("<html") || lower.contains("<!doctype");
    // A page's title says it; its body is decoration. Offsets agree: lower-casing ASCII tags keeps lengths, others are checked.
    let chosen = lower
        .find("<title>")
        .zip(lower.find("</title>"))
        .filter(|_| is_page)
        .and_then(|(start, end)| text.get(start + "<title>".len()..end))
        .unwrap_or(text);
    let mut plain = String::with_capacity(chosen.len().min(4 * MESSAGE_CHARS_MAX));
    let mut in_tag = false;
    for c in chosen.chars() {
        match c {
            '<' => in_tag = true,
            '>' if in_tag => {
                in_tag = false;
                plain.push(' ');
            }
            _ if in_tag => {}
            _ if c.is_control() => plain.push(' '),
            _ => plain.push(c),
        }
    }
    let words: Vec<&str> = plain.split_whitespace().collect();
    let line = words
        .join(" ")
        .replace("&quot;", "\"")
        .replace("&#x27;", "'")
        .replace("&amp;", "&");
    let line = line.trim_end_matches(['.', ' ']);
    match line.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(status: u16, body: &str) -> (Option<String>, String) {
        let fault = Fault::parse(status, body.as_bytes());
        (fault.name, fault.message)
    }

    #[test]
    fn first_shape_is_named_by_its_fault() {
        let body =
            r#"{"itemNotFound": {"code": 404, "message": "Volume 1111 could not be found."}}"#;
        assert_eq!(
            parse(404, body),
            (
                Some("itemNotFound".into()),
                "Volume 1111 could not be found".into()
            )
        );
        let body = r#"{"overLimit": {"code": 413, "message": "VolumeLimitExceeded: Maximum number of volumes allowed (2) exceeded for quota 'volumes'.", "retryAfter": "0"}}"#;
        assert_eq!(parse(413, body).0.as_deref(), Some("overLimit"));
    }

    #[test]
    fn second_shape_is_keystones() {
        let body = r#"{"error": {"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}}"#;
        assert_eq!(
            parse(401, body),
            (
                Some("error".into()),
                "The request you have made requires authentication".into()
            )
        );
    }

    #[test]
    fn third_shape_has_markup_and_no_name() {
        let body = r#"{"message": "The server is currently unavailable. Please try again at a later time.<br /><br />\nThe Keystone service is temporarily unavailable.\n\n", "code": "503 Service Unavailable", "title": "Service Unavailable"}"#;
        assert_eq!(
            parse(503, body),
            (None, "The server is currently unavailable. Please try again at a later time. The Keystone service is temporarily unavailable".into())
        );
        let body =
            r#"{"message": "<br /><br />\n\n\n", "code": "404 Not Found", "title": "Not Found"}"#;
        assert_eq!(parse(404, body), (None, "Not Found".into()));
    }

    #[test]
    fn a_page_gives_its_title() {
        let body = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1><p>The requested URL";
        assert_eq!(parse(404, body), (None, "404 Not Found".into()));
        let body =
            "<html><body><h1>503 Service Unavailable</h1>\nNo server is available.\n</body></html>";
        assert_eq!(
            parse(503, body),
            (
                None,
                "503 Service Unavailable No server is available".into()
            )
        );
    }

    #[test]
    fn anything_gives_one_short_line() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            "{\"a\": {}}",
            "\u{0}\u{1}",
            "{\"error\": {\"message\": \"\"}}",
        ] {
            assert_eq!(
                parse(500, body).1,
                "HTTP status 500 without a reason",
                "{body}"
            );
        }
        let long = parse(500, &"word ".repeat(1000)).1;
        assert!(long.chars().count() <= MESSAGE_CHARS_MAX + 3 && long.ends_with("..."));
        assert!(!parse(500, "a\r\nb\tc").1.contains(['\r', '\n', '\t']));
        // Lower-casing changes the length of this letter: the title's offsets no longer fit, and nothing panics.
        assert!(
            !parse(500, "<html>\u{130}\u{130}<title>\u{130}x</title>")
                .1
                .is_empty()
        );
    }

    #[test]
    fn a_validators_quotation_is_cut_off() {
        let body = r#"{"error":{"code":400,"message":"'identity' is a required property\n\nFailed validating 'required' in schema:\n {}\n\nOn instance['auth']:\n {'password': 'hunter2'}"}}"#;
        assert_eq!(parse(400, body).1, "'identity' is a required property");
    }
}
