//! An answer of the cloud: a byte that says what was asked, a byte for the status, then the body.
//!
//! Invariants, beside those of `lib`:
//! 1. An error is one line of some thousand characters at most, whatever was answered.
//! 2. No secret that came or went is in an error, or in what is understood as `Debug` prints it.

use std::time::Duration;

use cinder_nbd::cinder::Error;
use cinder_nbd::cinder::rehearsal::{Question, TOKEN, answer};
use cinder_nbd::config::{Auth, CloudConfig, Domain, Interface, Project, Tls, User};
use iscsi::proto::Secret;
use serde_json::Value;

/// Takes the answer apart as the call that asked would.
pub fn cinder_answer(data: &[u8]) {
    let [question, status, body @ ..] = data else {
        return;
    };
    let question = Question::ALL[usize::from(*question) % Question::ALL.len()];
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let secrets = Secrets::of(question, status, body);
    match answer(&config(), question, status, body) {
        Ok(understood) => {
            assert!((200..300).contains(&status));
            secrets.check(&understood.debug);
            for error in &understood.errors {
                check(error, &secrets);
            }
        }
        Err(error) => check(&error, &secrets),
    }
}

fn check(error: &Error, secrets: &Secrets) {
    let line = error.to_string();
    assert!(
        !line.is_empty() && !line.chars().any(|c| c.is_control() || c == '\u{2028}'),
        "{line:?}"
    );
    assert!(line.chars().count() <= LINE_CHARS_MAX, "{}", line.len());
    secrets.check(&line);
    secrets.check(&format!("{error:?}"));
}

/// What must not be seen again.
struct Secrets(Vec<String>);

impl Secrets {
    /// Those in the body that stand nowhere else in it and are no words of ours, and those that the request held: they are struck out of a
    /// refusal even if the body quotes them.
    fn of(question: Question, status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let mut found = Vec::new();
        if let Ok(value) = serde_json::from_slice(body) {
            collect(&value, &mut found);
        }
        found.retain(|secret| secret.len() >= 12 && text.matches(secret.as_str()).count() == 1);
        let sent = [(PASSWORD, question == Question::Token), (TOKEN, true)];
        for (secret, was_sent) in sent {
            let is_struck_out = was_sent && !(200..300).contains(&status);
            if is_struck_out || !text.contains(secret) {
                found.push(secret.to_owned());
            }
        }
        Self(found)
    }

    fn check(&self, text: &str) {
        for secret in &self.0 {
            assert!(!text.contains(secret.as_str()), "{secret:?} is in {text:?}");
        }
    }
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str().filter(|_| KEYS.contains(&key.as_str())) {
                    Some(secret) => found.push(secret.to_owned()),
                    None => collect(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn config() -> CloudConfig {
    CloudConfig {
        place: "the environment".to_owned(),
        auth_url: "http://keystone:5000/v3".to_owned(),
        auth: Auth::Password {
            user: User::Id("demo".to_owned()),
            password: Secret::new(PASSWORD.to_owned()),
            project: Project::Name {
                name: "shop".to_owned(),
                domain: Domain::Id("default".to_owned()),
            },
        },
        region: None,
        interface: Interface::Public,
        endpoint_override: None,
        tls: Tls::default(),
        request_timeout: Duration::from_secs(5),
    }
}

/// Where secrets stand in answers: `connection_info` and a new transfer.
const KEYS: [&str; 3] = ["auth_password", "discovery_auth_password", "auth_key"];
const PASSWORD: &str = "hunter2-of-the-project";
const STATUSES: [u16; 14] = [
    200, 202, 300, 302, 400, 401, 403, 404, 409, 413, 429, 500, 503, 599,
];
/// Ten rows of a volume's attachments, each of five words of 255 characters and what stands between.
const LINE_CHARS_MAX: usize = 16_384;
