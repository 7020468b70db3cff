//! `docs/performance.md`: words by hand, and between marks the tables that a run made.
//!
//! A run that measures a part replaces that part alone, so a single section can be made anew.

use anyhow::{Context as _, Result};

use super::plot::Chart;
use crate::house;

pub(super) const DOCUMENT: &str = "docs/performance.md";
const PLOTS: &str = "docs/plots";

/// One part of the document.
pub(super) struct Section {
    /// As in its mark.
    pub(super) name: &'static str,
    /// Markdown, without its plots.
    pub(super) text: String,
    pub(super) charts: Vec<Chart>,
}

impl Section {
    /// The text between the marks: tables, then the pictures.
    fn body(&self) -> String {
        let pictures = self.charts.iter().map(|chart| {
            let (title, file) = (&chart.title, chart.file);
            format!("\n![{title}](plots/{file}.svg)\n")
        });
        format!("{}{}", self.text, pictures.collect::<String>())
    }
}

/// Writes sections and their pictures to the repository.
pub(super) fn record(sections: &[Section]) -> Result<()> {
    let path = house::path(DOCUMENT);
    let mut text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let plots = house::path(PLOTS);
    std::fs::create_dir_all(&plots).with_context(|| format!("create {}", plots.display()))?;
    for section in sections {
        text = replaced(&text, section.name, &section.body())?;
        for chart in &section.charts {
            let path = plots.join(chart.file).with_extension("svg");
            std::fs::write(&path, chart.draw()?)
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// The document with another text between the marks of a section.
fn replaced(text: &str, name: &str, body: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- measured: {name} -->\n"), "<!-- end -->");
    let place = || {
        let from = text.find(&begin)? + begin.len();
        let to = from + text[from..].find(end)?;
        Some((&text[..from], &text[to..]))
    };
    let (before, after) = place().with_context(|| {
        format!(
            "{DOCUMENT} has no `{}` with an `{end}` behind it: put them where the section belongs",
            begin.trim()
        )
    })?;
    Ok(format!("{before}\n{}\n\n{after}", body.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "words\n<!-- measured: a -->\nold\n<!-- end -->\nmore\n<!-- measured: b -->\n<!-- end -->\n";

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let text = replaced(TEXT, "a", "new\n").unwrap();
        assert_eq!(text, TEXT.replace("old\n", "\nnew\n\n"));
        let again = replaced(&text, "a", "new\n").unwrap();
        assert_eq!(again, text);
    }

    #[test]
    fn a_section_without_marks_says_what_to_do() {
        let error = replaced(TEXT, "c", "new").unwrap_err();
        assert!(
            error.to_string().contains("<!-- measured: c -->"),
            "{error}"
        );
    }

    #[test]
    fn the_document_has_a_place_for_each_section() {
        let text = std::fs::read_to_string(house::path(DOCUMENT)).unwrap();
        for name in crate::bench::SECTIONS {
            assert!(replaced(&text, name, "x").is_ok(), "{name}");
        }
    }
}
