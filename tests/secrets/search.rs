//! Looking for secrets in whatever was written, in all the ways in which one is written by accident.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The secrets of a run, each with its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets(BTreeMap<String, &'static str>);

impl Secrets {
    pub(crate) fn add(&mut self, name: &'static str, secret: &str) {
        assert!(secret.len() >= 12, "{name} is too short to be looked for");
        self.0.insert(secret.to_owned(), name);
    }

    pub(crate) fn add_all(&mut self, secrets: Vec<(&'static str, String)>) {
        for (name, secret) in secrets {
            self.add(name, &secret);
        }
    }

    /// What is found in the text, in words that do not repeat it.
    pub(crate) fn in_text(&self, place: &str, text: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for (secret, name) in &self.0 {
            for (form, needle) in forms(secret) {
                if let Some(at) = position(text, needle.as_bytes()) {
                    let before = String::from_utf8_lossy(&text[at.saturating_sub(200)..at]);
                    found.push(format!("{place}: {name}, {form}, behind {before:?}"));
                }
            }
        }
        found
    }

    /// The files beneath a folder that hold one, and what; those that are meant to are passed over if nobody else can
    /// read them.
    pub(crate) fn in_files(&self, folder: &Path, is_meant: impl Fn(&Path) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for path in files_below(folder) {
            let here = self.in_text(
                &path.display().to_string(),
                &std::fs::read(&path).unwrap_or_default(),
            );
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            if is_meant(&path) {
                assert_eq!(mode, 0o600, "{}", path.display());
            } else {
                found.extend(here);
            }
        }
        found
    }
}

/// All regular files beneath a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

fn position(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len())
        .position(|window| window == needle)
}

/// A secret in other words. A half of one is as bad: who has it guesses the rest.
fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let bytes = secret.as_bytes();
    let middle = (bytes.len() / 2..bytes.len())
        .find(|at| secret.is_char_boundary(*at))
        .unwrap();
    let mut forms = vec![
        ("as it is", secret.to_owned()),
        ("its first half", secret[..middle].to_owned()),
        ("its second half", secret[middle..].to_owned()),
        ("as Debug writes it", secret.escape_debug().to_string()),
        ("as Debug writes bytes", bytes.escape_ascii().to_string()),
        ("as numbers", joined(bytes, ", ", |byte| format!("{byte}"))),
        ("in hex", joined(bytes, "", |byte| format!("{byte:02x}"))),
        (
            "in capital hex",
            joined(bytes, "", |byte| format!("{byte:02X}")),
        ),
        (
            "in hex with spaces",
            joined(bytes, " ", |byte| format!("{byte:02x}")),
        ),
        ("percent-encoded", percent(bytes, true)),
        (
            "percent-encoded for a form",
            percent(bytes, true).replace("%20", "+"),
        ),
        ("percent-encoded in small letters", percent(bytes, false)),
        (
            "percent-encoded byte for byte",
            joined(bytes, "", |byte| format!("%{byte:02X}")),
        ),
        ("as HTML writes it", html(secret)),
        ("as JSON writes it", json(secret)),
    ];
    // Where in a longer text it stands changes all its letters: three ways to begin.
    for before in 0..3 {
        let mut longer = vec![0; before];
        longer.extend_from_slice(bytes);
        let whole = base64(&longer);
        // What the bytes before and behind share letters with is left away.
        let begin = if before == 0 { 0 } else { before + 1 };
        let end = longer.len() * 8 / 6;
        forms.push(("in base64", whole[begin..end].to_owned()));
        let other = whole[begin..end].replace('+', "-").replace('/', "_");
        forms.push(("in base64 for addresses", other));
    }
    forms
}

fn joined(bytes: &[u8], between: &str, letters: impl Fn(u8) -> String) -> String {
    let words: Vec<String> = bytes.iter().map(|byte| letters(*byte)).collect();
    words.join(between)
}

fn percent(bytes: &[u8], is_capital: bool) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(*byte));
            }
            _ if is_capital => write!(text, "%{byte:02X}").unwrap(),
            _ => write!(text, "%{byte:02x}").unwrap(),
        }
    }
    text
}

fn html(secret: &str) -> String {
    let text = secret.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

fn json(secret: &str) -> String {
    let text = serde_json::Value::from(secret).to_string();
    text[1..text.len() - 1].to_owned()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut bits = 0_u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(three.get(at).copied().unwrap_or(0));
        }
        for at in 0..=three.len() {
            let letter = bits >> (18 - 6 * at) & 0x3F;
            text.push(char::from(LETTERS[usize::try_from(letter).unwrap()]));
        }
    }
    text
}

/// The search itself can fail: each form is found where it stands, and nothing where nothing is.
#[test]
fn a_secret_is_found_in_every_form() {
    let secret = "p@ss w\"rd<&\u{e9}%+/12";
    let mut secrets = Secrets::default();
    secrets.add("password", secret);
    for text in [
        "level=TRACE password=p@ss w\"rd<&\u{e9}%+/12 end".to_owned(),
        format!("{secret:?}"),
        format!("{:?}", secret.as_bytes()),
        serde_json::json!({ "password": secret }).to_string(),
        "GET /?key=p%40ss%20w%22rd%3C%26%C3%A9%25%2B%2F12".to_owned(),
        "key=p%40ss+w%22rd%3C%26%C3%A9%25%2B%2F12&a=b".to_owned(),
        "key=p%40ss%20w%22rd%3c%26%c3%a9%25%2b%2f12".to_owned(),
        "<p>p@ss w&quot;rd&lt;&amp;\u{e9}%+/12</p>".to_owned(),
        "704073732077227264 3c26c3a9252b2f3132".replace(' ', ""),
        "bytes 70 40 73 73 20 77 22 72 64 3c 26 c3 a9 25 2b 2f 31 32".to_owned(),
        // "user:" and "admin:", and the secret behind them.
        "Basic dXNlcjpwQHNzIHcicmQ8JsOpJSsvMTI=".to_owned(),
        "Basic YWRtaW46cEBzcyB3InJkPCbDqSUrLzEy".to_owned(),
        "truncated p@ss w\"rd...".to_owned(),
    ] {
        let found = secrets.in_text("here", text.as_bytes());
        assert!(!found.is_empty(), "{text}");
        assert!(
            found
                .iter()
                .all(|line| !line.contains("w\"rd<&\u{e9}%+/12"))
        );
    }
    assert!(secrets.in_text("here", b"[secret] p@ss").is_empty());
}
