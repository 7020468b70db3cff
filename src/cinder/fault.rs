//! What a refused request says: three shapes of JSON, a proxy's HTML, or nothing.
//!
//! Source: `cinder/api/openstack/wsgi.py` (fault names), keystonemiddleware (`error`), webob (`code` as text); bodies
//! recorded from Cinder 21.3.1 and 29.0.0 are in the tests.
//!
//! Invariants:
//! 1. A message is one line of at most `MESSAGE_CHARS_MAX` characters, whatever the server sent.
//! 2. What a schema validator quotes from our request is cut off: it may hold a password.
//! 3. Secrets that the request held are struck out of the answer before anything else is done with its text.

use iscsi::proto::Secret;
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
    /// Total over any body; `sent` are the secrets of the request, which a server may quote.
    pub(super) fn parse(status: u16, body: &[u8], sent: &[&Secret]) -> Self {
        let fault = match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(object)) => Self::from_object(&object, sent),
            Ok(_) => None,
            Err(_) => Some(Self {
                name: None,
                message: from_text(&without(&String::from_utf8_lossy(body), sent)),
            }),
        };
        fault
            .filter(|fault| !fault.message.is_empty())
            .unwrap_or_else(|| Self {
                name: None,
                message: format!("HTTP status {status} without a reason"),
            })
    }

    fn from_object(object: &serde_json::Map<String, Value>, sent: &[&Secret]) -> Option<Self> {
        // {"message": "...<br /><br />\n\n", "code": "404 Not Found", "title": "Not Found"}
        if let Some(text) = object.get("message").and_then(Value::as_str) {
            let title = object
                .get("title")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let message = from_text(&without(text, sent));
            let message = if message.is_empty() {
                from_text(&without(title, sent))
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
                message: from_text(&without(text, sent)),
            })
        })
    }
}

/// The text without the secrets, also as JSON within it would write them.
fn without(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().map(|secret| secret.expose()) {
        let quoted = Value::from(secret).to_string();
        for form in [secret, quoted.trim_matches('"')] {
            if !form.is_empty() {
                text = text.replace(form, "[secret]");
            }
        }
    }
    text
}

/// A name, state or id of the server's, fit to be printed: one line, no longer than Cinder's own columns are.
pub(super) fn word(text: &str) -> String {
    let plain = text.chars().map(|c| if is_printed(c) { c } else { ' ' });
    plain.take(WORD_CHARS_MAX).collect()
}

/// Whether it leaves a line and a terminal as they are.
pub(super) fn is_printed(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// `cinder/db/sqlalchemy/models.py`: names, states and hosts are columns of 255.
const WORD_CHARS_MAX: usize = 255;

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
            _ if !is_printed(c) => plain.push(' '),
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
        let fault = Fault::parse(status, body.as_bytes(), &[]);
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
    fn what_the_request_held_is_struck_out_before_the_text_is_cut() {
        let secret = Secret::new("hun  ter\"2".to_owned());
        let told = |body: &str| Fault::parse(400, body.as_bytes(), &[&secret]).message;
        // cinder/api/validation/validators.py quotes the value.
        let quoted = r#"{"badRequest": {"code": 400, "message": "Invalid input for auth_key. Value: hun  ter\"2."}}"#;
        assert_eq!(told(quoted), "Invalid input for auth_key. Value: [secret]");
        let page = "<html><title>401: token hun  ter\"2</title></html>";
        assert_eq!(told(page), "401: token [secret]");
        let echo = r#"you sent {"password": "hun  ter\"2"}"#;
        assert_eq!(told(echo), r#"you sent {"password": "[secret]"}"#);
        // The end of the line is within the secret: what is left of it is as good as all.
        let late = format!("{}hun  ter\"2", "x".repeat(MESSAGE_CHARS_MAX - 4));
        assert!(!told(&late).contains("hun"), "{}", told(&late));
    }

    #[test]
    fn a_word_of_a_server_is_one_line_and_short() {
        assert_eq!(word("in-use"), "in-use");
        assert_eq!(word("a\r\nb\u{1b}[2J\u{85}\u{2028}"), "a  b [2J  ");
        assert_eq!(word(&"\u{e4}".repeat(300)).chars().count(), 255);
    }

    #[test]
    fn a_validators_quotation_is_cut_off() {
        let body = r#"{"error":{"code":400,"message":"'identity' is a required property\n\nFailed validating 'required' in schema:\n {}\n\nOn instance['auth']:\n {'password': 'hunter2'}"}}"#;
        assert_eq!(parse(400, body).1, "'identity' is a required property");
    }
}
