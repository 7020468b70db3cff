//! `docs/errors.md`: the messages that a section lists, held against those that a test made happen.
//!
//! A room of its own because every room of the daemon has a section and such a test. A message is compared as the
//! document writes it: words in capitals, and `N`, stand for what differs.
//!
//! Invariant: of the lines that fit a text, the one that says most is its line. A line that fits nearly everything
//! (`DOING PATH: CAUSE`) does not take the place of those that say more.

use std::path::Path;

/// One section of the document.
#[derive(Clone, Debug)]
pub struct Section {
    title: String,
    messages: Vec<Message>,
}

impl Section {
    /// The messages of a section, from the first column of its table.
    ///
    /// # Panics
    /// If the document has no such section, or the section no line.
    pub fn read(title: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
        let text = std::fs::read_to_string(path).expect("the document is there");
        Self::parse(&text, title)
    }

    fn parse(document: &str, title: &str) -> Self {
        let section = document.split(&format!("\n## {title}\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("docs/errors.md has no section {title}"));
        let section = section.split("\n## ").next().unwrap_or_default();
        let messages: Vec<Message> = section
            .lines()
            .filter_map(first_column)
            .map(Message::parse)
            .collect();
        assert!(!messages.is_empty(), "the section {title} has no line");
        Self {
            title: title.to_owned(),
            messages,
        }
    }

    /// The line that the text is an instance of, as the document writes it: the one that says most.
    pub fn line_of(&self, text: &str) -> Option<&str> {
        let fitting = self.messages.iter().filter(|message| message.fits(text));
        let best = fitting.max_by_key(|message| message.letters());
        best.map(|message| message.written.as_str())
    }

    /// Holds both against each other: each text has its line, and each line happened.
    ///
    /// # Panics
    /// With the texts that have no line and the lines that did not happen.
    pub fn assert_is_of(&self, texts: &[String]) {
        let unlisted = texts.iter().filter(|text| self.line_of(text).is_none());
        let mut complaints: Vec<String> = unlisted
            .map(|text| format!("not in docs/errors.md: {text}"))
            .collect();
        for message in &self.messages {
            let is_it = |text: &String| self.line_of(text) == Some(message.written.as_str());
            if !texts.iter().any(is_it) {
                let written = &message.written;
                complaints.push(format!("in docs/errors.md, and does not happen: {written}"));
            }
        }
        let title = &self.title;
        assert!(
            complaints.is_empty(),
            "section {title}:\n{}",
            complaints.join("\n")
        );
    }
}

/// A message in code: between two backticks each where it holds one itself.
fn first_column(row: &str) -> Option<&str> {
    if let Some(rest) = row.strip_prefix("| `` ") {
        return rest.split(" `` |").next();
    }
    row.strip_prefix("| `")?.split('`').next()
}

/// A message with gaps.
#[derive(Clone, Debug)]
struct Message {
    written: String,
    /// What stands before, between and behind the gaps.
    fixed: Vec<String>,
}

impl Message {
    fn parse(written: &str) -> Self {
        let mut fixed = vec![String::new()];
        let mut word = String::new();
        for letter in written.chars().map(Some).chain([None]) {
            if let Some(letter) = letter.filter(|letter| is_of_word(*letter)) {
                word.push(letter);
                continue;
            }
            if is_gap(&word) {
                fixed.push(String::new());
                word.clear();
            }
            let last = fixed.last_mut().expect("it has one from the beginning");
            last.push_str(&word);
            last.extend(letter);
            word.clear();
        }
        Self {
            written: written.to_owned(),
            fixed,
        }
    }

    fn fits(&self, text: &str) -> bool {
        let Some((first, rest)) = self.fixed.split_first() else {
            return false;
        };
        let Some(mut left) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        let Some((last, between)) = rest.split_last() else {
            return left.is_empty();
        };
        for part in between {
            let Some(at) = left.find(part.as_str()) else {
                return false;
            };
            left = &left[at + part.len()..];
        }
        left.ends_with(last.as_str())
    }

    fn letters(&self) -> usize {
        self.fixed.iter().map(String::len).sum()
    }
}

fn is_of_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

fn is_gap(word: &str) -> bool {
    let is_capital = |letter: char| letter.is_ascii_uppercase() || letter == '_';
    let is_name = ["OS_", "CAP_", "CONFIG_"]
        .iter()
        .any(|prefix| word.starts_with(prefix));
    let is_meant = is_name || MEANT.contains(&word);
    word == "N" || (word.len() > 1 && word.chars().all(is_capital) && !is_meant)
}

/// Words in capitals that are meant.
const MEANT: [&str; 13] = [
    "API", "CA", "CHAP", "FALSE", "HTTP", "JSON", "LUKS", "LUN", "NBD", "PEM", "SECONDS", "TLS",
    "UUID",
];

/// An error and its causes on one line, as the rooms that print it do.
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# x\n\n## One\n\nWords.\n\n| message | cause |\n|---|---|\n\
        | `no such volume: NAME` | b |\n| `DOING PATH: CAUSE` | b |\n| `` no `NAME` here `` | `b` |\n\n\
        ## Two\n\n| `x` | y |\n";

    fn fits(text: &str, written: &str) -> bool {
        Message::parse(written).fits(text)
    }

    #[test]
    fn a_message_is_compared_with_what_it_stands_for() {
        assert!(fits("no such volume: v1", "no such volume: NAME"));
        assert!(fits("v1 has 2 GiB, and so on", "NAME has N GiB, and so on"));
        assert!(fits("asking for v1: no: really", "asking for NAME: CAUSE"));
        assert!(fits("a; b; c", "CAUSE; c"));
        assert!(!fits("no such volume", "no such volume: NAME"));
        assert!(!fits("v1 is here; x", "NAME is here"));
        assert!(!fits("set OS_CLOUDS", "set OS_CLOUD"));
        assert!(!fits("no, not at all", "no"));
    }

    #[test]
    fn the_line_that_says_most_is_the_one() {
        let section = Section::parse(DOCUMENT, "One");
        assert_eq!(
            section.line_of("no such volume: v1"),
            Some("no such volume: NAME")
        );
        assert_eq!(section.line_of("reading /x: no"), Some("DOING PATH: CAUSE"));
        assert_eq!(section.line_of("no `v1` here"), Some("no `NAME` here"));
        assert_eq!(section.line_of("x"), None);
    }

    #[test]
    #[should_panic(expected = "does not happen: no `NAME` here")]
    fn a_line_that_does_not_happen_is_told() {
        let texts = ["no such volume: v1", "reading /x: no"].map(str::to_owned);
        Section::parse(DOCUMENT, "One").assert_is_of(&texts);
    }

    #[test]
    #[should_panic(expected = "not in docs/errors.md: y")]
    fn a_text_without_a_line_is_told() {
        Section::parse(DOCUMENT, "Two").assert_is_of(&["x", "y"].map(str::to_owned));
    }
}
