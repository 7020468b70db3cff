//! Answers, and the three shapes of error bodies that one meets in a cloud.
//!
//! Source: recorded exchanges with Keystone 22 and 30 and Cinder 21 and 29.

use serde_json::{Value, json};

/// Status, headers and body.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Empty,
    Json(Value),
    Html(&'static str),
}

impl Answer {
    pub(super) fn json(status: u16, body: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Json(body),
        }
    }

    pub(super) fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Empty,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Cinder's first shape: the fault's name around code and message.
    pub(super) fn fault(status: u16, message: &str) -> Self {
        let name = match status {
            400 => "badRequest",
            403 => "forbidden",
            404 => "itemNotFound",
            409 => "conflictingRequest",
            413 => "overLimit",
            // 406 and 500 alike, and whatever has no name of its own.
            _ => "computeFault",
        };
        let mut inner = json!({"code": status, "message": message});
        if status == 413 {
            inner["retryAfter"] = "0".into();
        }
        Self::json(status, json!({ name: inner }))
    }

    /// The second shape: all of Keystone, and 401 of Cinder.
    pub(super) fn error(status: u16, title: &str, message: &str) -> Self {
        Self::json(
            status,
            json!({"error": {"code": status, "message": message, "title": title}}),
        )
    }

    /// The third shape: what the web framework says before Cinder is asked; `code` is text.
    pub(super) fn page(status: u16, title: &str, message: &str) -> Self {
        Self::json(
            status,
            json!({
                "message": format!("{message}<br /><br />\n\n\n"),
                "code": format!("{status} {title}"),
                "title": title,
            }),
        )
    }

    pub(super) fn unauthorized(keystone: &str) -> Self {
        Self::error(
            401,
            "Unauthorized",
            "The request you have made requires authentication.",
        )
        .header("WWW-Authenticate", format!("Keystone uri=\"{keystone}\""))
    }

    /// All that was sent, in words; Keystone's shape or Cinder's.
    pub(super) fn quoting(status: u16, token: Option<&str>, body: &str, is_identity: bool) -> Self {
        let token = token.unwrap_or("none");
        let message = format!("Refused: X-Auth-Token: {token} with body {body}");
        if is_identity {
            Self::error(status, "Quoted", &message)
        } else {
            Self::fault(status, &message)
        }
    }

    /// What an injected status looks like, at Keystone or at Cinder.
    pub(super) fn injected(status: u16, keystone: Option<&str>, is_identity: bool) -> Self {
        match (status, is_identity) {
            (401, _) => Self::unauthorized(keystone.unwrap_or_default()),
            (503, _) => Self::page(503, "Service Unavailable", UNAVAILABLE),
            (_, true) => Self::error(status, "Injected", "A fault was injected."),
            (404, false) => Self::fault(404, "The resource could not be found."),
            (413, false) => Self::fault(
                413,
                "VolumeLimitExceeded: Maximum number of volumes allowed (2) exceeded for quota 'volumes'.",
            ),
            (500, false) => Self::fault(
                500,
                "The server has either erred or is incapable of performing the requested operation.",
            ),
            (502, false) => Self {
                status,
                headers: Vec::new(),
                body: Body::Html(BAD_GATEWAY),
            },
            (_, false) => Self::fault(status, "A fault was injected."),
        }
    }
}

const UNAVAILABLE: &str = "The server is currently unavailable. Please try again at a later time.";
/// A proxy's page: no JSON at all.
const BAD_GATEWAY: &str = "<html><body><h1>502 Bad Gateway</h1></body></html>\n";
