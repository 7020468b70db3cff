//! `docs/conformance.md`: each line of the checklist with its place in the code and its tests, and each section of
//! RFC 7143 that the library names. Made from `iscsi/tests/conformance/checklist.txt` and from tags in comments.
//!
//! A tag in the library is `RFC 7143 §11.8.5`; several may share a comment, and `(L9)` beside it names the line. A tag
//! at a test is the comment above its attribute: `// L9`, or `// L9, L12: and why`.
//!
//! One file, and of the standard library alone, because two use it: `xtask` writes the document, and
//! `iscsi/tests/conformance/document.rs` includes this file and compares.
//!
//! Invariants:
//! 1. The same sources make the same document: no line numbers, no order of a file system.
//!
//! It reads sources as text. That is no compiler, but rustfmt's indentation tells what encloses a comment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Where the document is kept.
pub(crate) const DOCUMENT: &str = "docs/conformance.md";
const CHECKLIST: &str = "iscsi/tests/conformance/checklist.txt";
/// Tests in these folders may be tagged. Not the support crate's: a target has the same sections with other duties.
const TESTS: [&str; 3] = ["iscsi", "src", "tests"];
const NO_TESTS: &str = "tests/support";
const LIBRARY: &str = "iscsi/src";

/// The document, and what is wrong with what it was made from.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) document: String,
    /// Lines without a test or a place in the code, tags that name no line; empty if all is well.
    pub(crate) complaints: Vec<String>,
}

/// Makes the document of a repository.
pub(crate) fn make(root: &Path) -> io::Result<Made> {
    let mut tags = Vec::new();
    for folder in TESTS {
        for file in sources(&root.join(folder))? {
            let name = relative(root, &file);
            if !name.starts_with(NO_TESTS) {
                tags.extend(tags_of(&name, &std::fs::read_to_string(&file)?));
            }
        }
    }
    let checklist = std::fs::read_to_string(root.join(CHECKLIST))?;
    Ok(compose(&checklist, &tags))
}

/// A line of the checklist.
#[derive(Debug)]
struct Line {
    group: String,
    id: String,
    /// What is looked for in the comments of the library.
    marks: Vec<String>,
    demand: String,
}

/// What a comment says of the code beside it.
#[derive(Debug, PartialEq, Eq)]
struct Tag {
    place: Place,
    /// `RFC 7143 §6.2`.
    sections: Vec<String>,
    /// `L9`.
    ids: Vec<String>,
    /// The comment itself, for marks that are no sections.
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    /// A function or type; empty for the file as a whole.
    item: String,
    is_test: bool,
}

fn compose(checklist: &str, tags: &[Tag]) -> Made {
    let lines = checklist_lines(checklist);
    let mut complaints = Vec::new();
    let known: BTreeSet<&str> = lines.iter().map(|line| line.id.as_str()).collect();
    for tag in tags {
        for id in tag.ids.iter().filter(|id| !known.contains(id.as_str())) {
            complaints.push(format!("{}: {id} is no line", shown(&tag.place)));
        }
    }
    let mut document = HEADER.to_owned();
    let mut group = "";
    for line in &lines {
        if line.group != group {
            group = &line.group;
            let _ = write!(document, "\n### {group}\n\n{LINES_HEAD}");
        }
        let (code, tests) = (places_of(line, tags), tests_of(line, tags));
        for (found, what) in [(&code, "place in the code"), (&tests, "test")] {
            if found.is_empty() {
                complaints.push(format!("{}: no {what}", line.id));
            }
        }
        let _ = writeln!(
            document,
            "| {} | {} | {} | {} | {} |",
            line.id,
            line.demand,
            line.marks.join(", ").replace(", RFC 7143", ","),
            cell(&code),
            cell(&tests)
        );
    }
    document.push_str(SECTIONS_HEAD);
    for (section, (code, tests)) in by_section(tags) {
        let name = section.name();
        let _ = writeln!(document, "| {name} | {} | {} |", cell(&code), cell(&tests));
    }
    Made {
        document,
        complaints,
    }
}

fn checklist_lines(text: &str) -> Vec<Line> {
    let mut group = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("== ") {
            title.clone_into(&mut group);
            continue;
        }
        let mut columns = line.splitn(3, '|').map(str::trim);
        if let (Some(id), Some(marks), Some(demand)) =
            (columns.next(), columns.next(), columns.next())
            && !id.starts_with('#')
        {
            lines.push(Line {
                group: group.clone(),
                id: id.to_owned(),
                marks: marks_of(marks),
                demand: demand.to_owned(),
            });
        }
    }
    lines
}

/// `RFC 7143 §6.2, §13.1, SAM-5: BUSY` as three marks, each with its standard.
fn marks_of(text: &str) -> Vec<String> {
    let marks = text.split(',').map(str::trim);
    marks
        .map(|mark| match mark.strip_prefix('§') {
            Some(number) => format!("RFC 7143 §{number}"),
            None => mark.to_owned(),
        })
        .collect()
}

/// Places that name the line; without any, all that are tagged with one of its sections.
fn places_of(line: &Line, tags: &[Tag]) -> Vec<Place> {
    let code = || tags.iter().filter(|tag| !tag.place.is_test);
    let named = sorted(code().filter(|tag| tag.ids.contains(&line.id)));
    if !named.is_empty() {
        return named;
    }
    sorted(code().filter(|tag| line.marks.iter().any(|mark| tag.carries(mark))))
}

fn tests_of(line: &Line, tags: &[Tag]) -> Vec<Place> {
    let tests = tags.iter().filter(|tag| tag.place.is_test);
    sorted(tests.filter(|tag| tag.ids.contains(&line.id)))
}

fn sorted<'a>(tags: impl Iterator<Item = &'a Tag>) -> Vec<Place> {
    let places: BTreeSet<Place> = tags.map(|tag| tag.place.clone()).collect();
    places.into_iter().collect()
}

impl Tag {
    fn carries(&self, mark: &str) -> bool {
        if mark.contains('§') {
            self.sections.iter().any(|section| section == mark)
        } else {
            self.text.contains(mark)
        }
    }
}

/// A section, in the order of its numbers and not of their digits.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Section {
    standard: String,
    number: Vec<u32>,
}

impl Section {
    fn new(mark: &str) -> Option<Self> {
        let (standard, number) = mark.split_once(" §")?;
        let number: Result<_, _> = number.split('.').map(str::parse).collect();
        Some(Self {
            standard: standard.to_owned(),
            number: number.ok()?,
        })
    }

    fn name(&self) -> String {
        let number: Vec<String> = self.number.iter().map(u32::to_string).collect();
        format!("{} §{}", self.standard, number.join("."))
    }
}

/// Each section with its places in the library and in tests of the library.
fn by_section(tags: &[Tag]) -> BTreeMap<Section, (Vec<Place>, Vec<Place>)> {
    let mut sections: BTreeMap<Section, (BTreeSet<Place>, BTreeSet<Place>)> = BTreeMap::new();
    for tag in tags {
        for section in tag.sections.iter().filter_map(|mark| Section::new(mark)) {
            let (code, tests) = sections.entry(section).or_default();
            let places = if tag.place.is_test { tests } else { code };
            places.insert(tag.place.clone());
        }
    }
    sections
        .into_iter()
        .map(|(section, (code, tests))| {
            (
                section,
                (code.into_iter().collect(), tests.into_iter().collect()),
            )
        })
        .collect()
}

/// Places as a cell of a table, each file once.
fn cell(places: &[Place]) -> String {
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for place in places {
        files.entry(&place.file).or_default().push(&place.item);
    }
    let cells = files.into_iter().map(|(file, items)| {
        let items = items.iter().filter(|item| !item.is_empty());
        let items: Vec<String> = items.map(|item| format!("`{item}`")).collect();
        let file = file.strip_prefix("iscsi/src/").unwrap_or(file);
        if items.is_empty() {
            file.to_owned()
        } else {
            format!("{file}: {}", items.join(", "))
        }
    });
    cells.collect::<Vec<_>>().join("; ")
}

fn shown(place: &Place) -> String {
    format!("{}, {}", place.file, place.item)
}

// --- sources as text

/// All tags of one file.
fn tags_of(file: &str, text: &str) -> Vec<Tag> {
    let lines: Vec<&str> = text.lines().collect();
    let is_all_tests = !file.contains("src/") || file.ends_with("tests.rs");
    let tests_begin = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "))
        .unwrap_or(lines.len());
    let in_library = file.starts_with(LIBRARY);
    let mut tags = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            continue;
        };
        let is_test = is_all_tests || index > tests_begin;
        let item = item_of(&lines, index);
        let above_test = is_test && is_above_test(&lines, index);
        let mut sections = Vec::new();
        let mut ids = ids_in_parentheses(comment);
        if in_library || is_test {
            sections = sections_of(comment);
        }
        if above_test {
            ids = leading_ids(comment);
        } else if is_test || !in_library {
            ids.clear();
        }
        let text = comment.trim().to_owned();
        let is_mark = in_library && !is_test;
        if is_mark || !sections.is_empty() || !ids.is_empty() {
            tags.push(Tag {
                place: Place {
                    file: file.to_owned(),
                    item,
                    is_test,
                },
                sections,
                ids,
                text,
            });
        }
    }
    tags
}

/// `RFC 7143 §6.2.1, §6.2.2 and SPC-4 §5` has two of ours.
fn sections_of(comment: &str) -> Vec<String> {
    let mut sections = Vec::new();
    for standard in ["RFC 7143", "RFC 7144"] {
        for part in comment.split(standard).skip(1) {
            // What follows belongs to this standard up to the next one's name.
            let end = ["RFC ", "SAM-", "SPC-", "SBC-"]
                .iter()
                .filter_map(|name| part.find(name))
                .min()
                .unwrap_or(part.len());
            for number in part[..end].split('§').skip(1) {
                let digits = number
                    .find(|next: char| next != '.' && !next.is_ascii_digit())
                    .unwrap_or(number.len());
                let number = number[..digits].trim_end_matches('.');
                if !number.is_empty() {
                    sections.push(format!("{standard} §{number}"));
                }
            }
        }
    }
    sections
}

/// `L9, L12: why` names two lines; any other comment none.
fn leading_ids(comment: &str) -> Vec<String> {
    let list = comment
        .split_once(':')
        .map_or(comment, |(list, _)| list)
        .trim();
    ids_of_list(list)
}

fn ids_in_parentheses(comment: &str) -> Vec<String> {
    let lists = comment.split('(').skip(1);
    let lists = lists.filter_map(|rest| rest.split_once(')'));
    lists.flat_map(|(list, _)| ids_of_list(list)).collect()
}

/// All of a list, or nothing if one of it is no id.
fn ids_of_list(list: &str) -> Vec<String> {
    let ids: Vec<&str> = list.split(',').map(str::trim).collect();
    if ids.iter().all(|id| is_id(id)) {
        ids.into_iter().map(str::to_owned).collect()
    } else {
        Vec::new()
    }
}

fn is_id(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| "LCFSE".contains(first))
        && (2..=3).contains(&text.len())
        && letters.all(|digit| digit.is_ascii_digit())
}

/// Whether the next thing below a comment is a test: other comments and attributes may stand between.
fn is_above_test(lines: &[&str], index: usize) -> bool {
    lines[index + 1..]
        .iter()
        .map(|line| line.trim())
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test"))
}

/// The function, type or constant that a comment is about: the one right below it, else the one around it.
fn item_of(lines: &[&str], index: usize) -> String {
    let own = lines[index];
    if own.trim_start().starts_with("//!") {
        return String::new();
    }
    let below = lines[index + 1..].iter().find(|line| {
        let line = line.trim();
        !(line.starts_with("//") || line.starts_with("#[") || line.is_empty())
    });
    let own_depth = depth(own);
    if let Some(name) = below
        .filter(|line| depth(line) == own_depth)
        .and_then(|line| declared(line))
    {
        return name.to_owned();
    }
    let mut least = own_depth;
    for line in lines[..index].iter().rev() {
        if line.trim().is_empty() || depth(line) >= least {
            continue;
        }
        least = depth(line);
        if let Some(name) = declared(line) {
            return name.to_owned();
        }
    }
    String::new()
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The name that a line declares.
fn declared(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(tail) = rest.strip_prefix("pub") {
        rest = tail.trim_start();
        if rest.starts_with('(') {
            rest = rest.split_once(')')?.1.trim_start();
        }
    }
    for word in ["const ", "async ", "unsafe "] {
        if let Some(tail) = rest.strip_prefix(word) {
            if !tail.starts_with("fn ") && !tail.starts_with("async ") {
                return name_of(tail);
            }
            rest = tail;
        }
    }
    let kinds = ["fn ", "struct ", "enum ", "trait ", "type ", "static "];
    name_of(kinds.iter().find_map(|kind| rest.strip_prefix(kind))?)
}

fn name_of(text: &str) -> Option<&str> {
    let end = text
        .find(|next: char| next != '_' && !next.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                files.extend(sources(&path)?);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn relative(root: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(root).unwrap_or(file);
    let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

const HEADER: &str = "\
# Conformance

Made by `cargo xtask conformance`; do not edit. A test compares this file with what it would be made to be.

What an initiator must show on the wire, line by line; the section that demands it; where the library does it (files below
`iscsi/src/`); and the tests that fail if it does not. Most tests stand in `iscsi/tests/conformance/`: the library's public face against
a target that has its constants from tables of its own and misbehaves as told.

## Checklist
";
const LINES_HEAD: &str = "\
| line | demand | section | code | tests |
|---|---|---|---|---|
";
const SECTIONS_HEAD: &str = "
## Sections

Each section that a comment of the library or of its tests names.

| section | code | tests |
|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
//! RFC 7143 §4.2 as a whole.

/// RFC 7143 §11.13.4: serials (L7).
pub(crate) const fn first(x: u32) -> u32 {
    if x == 0 {
        // RFC 7143 §6.2, §6.2.1 and SPC-4 §5
        return 1;
    }
    x
}

#[cfg(test)]
mod tests {
    // L7, L8: RFC 7143 §11.13.4
    #[test]
    fn it_holds() {}
}
";

    #[test]
    fn tags_are_found_with_what_they_stand_at() {
        let tags = tags_of("iscsi/src/proto/x.rs", SOURCE);
        let found: Vec<_> = tags
            .iter()
            .map(|tag| {
                (
                    tag.place.item.as_str(),
                    tag.place.is_test,
                    &tag.sections[..],
                    &tag.ids[..],
                )
            })
            .collect();
        let section = |number: &str| format!("RFC 7143 §{number}");
        assert_eq!(
            found,
            [
                ("", false, &[section("4.2")][..], &[][..]),
                ("first", false, &[section("11.13.4")], &["L7".to_owned()]),
                ("first", false, &[section("6.2"), section("6.2.1")], &[]),
                (
                    "it_holds",
                    true,
                    &[section("11.13.4")],
                    &["L7".to_owned(), "L8".to_owned()]
                ),
            ]
        );
    }

    #[test]
    fn a_line_without_test_or_place_and_a_tag_without_line_are_complaints() {
        let checklist = "# not this\n== Login\nL7 | RFC 7143 §6.2 | demand\nL9 | §1.1 | more\n";
        let made = compose(checklist, &tags_of("iscsi/src/proto/x.rs", SOURCE));
        assert_eq!(
            made.complaints,
            [
                "iscsi/src/proto/x.rs, it_holds: L8 is no line",
                "L9: no place in the code",
                "L9: no test"
            ]
        );
        let row = "| L7 | demand | RFC 7143 §6.2 | proto/x.rs: `first` | proto/x.rs: `it_holds` |";
        assert!(made.document.contains(row), "{}", made.document);
    }

    #[test]
    fn sections_go_by_their_numbers() {
        let mut marks = ["RFC 7143 §11.10", "RFC 7143 §11.9.1", "RFC 7143 §4.2"].map(Section::new);
        marks.sort();
        let names: Vec<_> = marks.iter().flatten().map(Section::name).collect();
        assert_eq!(
            names,
            ["RFC 7143 §4.2", "RFC 7143 §11.9.1", "RFC 7143 §11.10"]
        );
    }
}
