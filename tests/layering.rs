//! The rules of ARCHITECTURE.md that a machine can hold: floors, unsafe code, file length, headers.
//!
//! Source is read as text: comments and literals are blanked first, then paths that begin at the crate's root
//! (`crate::`, or enough `super::`) are looked at. That is no compiler, but it needs none, and the last tests
//! here show that it finds what it is for.

#![expect(
    clippy::unwrap_used,
    reason = "a source that cannot be read is a failed test"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rooms from the lowest floor up. A room knows only rooms on floors below its own.
const DAEMON: &[&[&str]] = &[
    &["block", "config", "telemetry"],
    &["cinder", "sys"],
    &["nbd", "lun"],
    &["volume"],
    &["docker", "cli"],
];
const LIBRARY: &[&[&str]] = &[&["wire", "scsi"], &["proto"], &["io"], &["client"]];

/// Lines of a file without its tests.
const LINES_MAX: usize = 800;

#[test]
fn rooms_of_the_daemon_know_only_floors_below() {
    assert_no_complaints(&crossings(&repository().join("src"), DAEMON));
}

#[test]
fn rooms_of_the_library_know_only_floors_below() {
    assert_no_complaints(&crossings(&repository().join("iscsi/src"), LIBRARY));
}

#[test]
fn the_daemon_does_not_reach_under_the_librarys_machines() {
    let complaints = sources("src").into_iter().filter_map(|file| {
        let code = blanked(&read(&file));
        let found = paths_after(&code, "iscsi")
            .into_iter()
            .any(|(_, name)| name == "wire");
        found.then(|| format!("{}: iscsi::wire is the library's own", shown(&file)))
    });
    assert_no_complaints(&complaints.collect::<Vec<_>>());
}

#[test]
fn unsafe_code_stands_in_sys_alone() {
    let complaints = ["src", "iscsi/src", "tests", "benches", "xtask"]
        .into_iter()
        .flat_map(sources);
    let complaints = complaints.filter(|file| !file.starts_with(repository().join("src/sys")));
    // An allocator that counts is an `unsafe impl`, whoever writes it.
    let counting = repository().join("tests/allocation.rs");
    let complaints = complaints.filter(|file| *file != counting);
    let complaints = complaints.filter_map(|file| {
        let line = unsafe_line(&blanked(&read(&file)))?;
        Some(format!(
            "{}:{line}: unsafe outside of src/sys",
            shown(&file)
        ))
    });
    assert_no_complaints(&complaints.collect::<Vec<_>>());
    let library = read(&repository().join("iscsi/src/lib.rs"));
    assert!(
        library.contains("#![forbid(unsafe_code)]"),
        "iscsi must forbid unsafe code"
    );
}

#[test]
fn lints_are_expected_with_a_reason_not_allowed() {
    let files = ["src", "iscsi", "tests", "benches", "xtask"]
        .into_iter()
        .flat_map(sources);
    let complaints = files.filter_map(|file| {
        let code: String = blanked(&read(&file)).split_whitespace().collect();
        let found = ["#[allow(", "#![allow("]
            .iter()
            .any(|attribute| code.contains(attribute));
        found.then(|| format!("{}: allow; use #[expect(lint, reason = ...)]", shown(&file)))
    });
    assert_no_complaints(&complaints.collect::<Vec<_>>());
}

#[test]
fn files_stay_below_the_wall() {
    let files = ["src", "iscsi/src", "tests", "xtask"]
        .into_iter()
        .flat_map(sources);
    // A `tests.rs` beside the code is all tests.
    let code = files.filter(|file| file.file_name().is_none_or(|name| name != "tests.rs"));
    let complaints = code.filter_map(|file| {
        let lines = lines_without_tests(&read(&file));
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines, wall {LINES_MAX}", shown(&file)))
    });
    assert_no_complaints(&complaints.collect::<Vec<_>>());
}

#[test]
fn every_file_says_what_lives_in_it() {
    let files = ["src", "iscsi", "tests", "benches", "xtask"]
        .into_iter()
        .flat_map(sources);
    let complaints = files.filter_map(|file| {
        let missing = !read(&file).starts_with("//!");
        missing.then(|| format!("{}: no header comment", shown(&file)))
    });
    assert_no_complaints(&complaints.collect::<Vec<_>>());
}

// --- the floors

/// All imports that go up or sideways, and rooms without a floor.
fn crossings(source: &Path, floors: &[&[&str]]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files_below(source) {
        let inside = file.strip_prefix(source).expect("found below it");
        let modules = modules_of(inside);
        let Some(room) = modules.first() else {
            continue;
        }; // lib.rs and main.rs: the roof
        let Some(floor) = floor_of(floors, room) else {
            complaints.push(format!("{}: the room {room} is on no floor", shown(&file)));
            continue;
        };
        for (line, known) in rooms_known(&read(&file), modules.len()) {
            if known != *room && floor_of(floors, &known).is_some_and(|other| other >= floor) {
                complaints.push(format!(
                    "{}:{line}: {room} (floor {floor}) knows {known}, which is not below it",
                    shown(&file)
                ));
            }
        }
    }
    complaints
}

fn floor_of(floors: &[&[&str]], room: &str) -> Option<usize> {
    floors.iter().position(|rooms| rooms.contains(&room))
}

/// `nbd/lane.rs` is `["nbd", "lane"]`, `nbd/mod.rs` is `["nbd"]`, `lib.rs` is nothing.
fn modules_of(inside: &Path) -> Vec<String> {
    let mut modules: Vec<String> = inside
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("our file names are ASCII").to_owned())
        .collect();
    let last = modules.last().map(String::as_str);
    if last == Some("mod") || (modules.len() == 1 && matches!(last, Some("lib" | "main"))) {
        modules.pop();
    }
    modules
}

/// First names of all paths that begin at the crate's root, with their lines.
fn rooms_known(source: &str, depth: usize) -> Vec<(usize, String)> {
    let code = blanked(source);
    let mut known = paths_after(&code, "crate");
    let to_root = format!("{}super", "super::".repeat(depth - 1));
    known.extend(paths_after(&code, &to_root));
    known
}

/// The names that follow `root::`, also those of a group in braces: `crate::{a::b, c}` gives `a` and `c`.
fn paths_after(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let needle = format!("{root}::");
    for (at, _) in code.match_indices(&needle) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| is_word(letter) || letter == ':') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + needle.len()..];
        let names = match rest.trim_start().strip_prefix('{') {
            Some(group) => first_names(group),
            None => vec![leading_word(rest)],
        };
        found.extend(
            names
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(|name| (line, name)),
        );
    }
    found
}

/// The first name of each entry of a use group, up to its closing brace.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut begins = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && is_word(letter) => {
                names.push(leading_word(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn leading_word(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|letter| is_word(*letter))
        .collect()
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

// --- other rules

/// The first line with `unsafe` as code (`unsafe_code` in an attribute is another word).
fn unsafe_line(code: &str) -> Option<usize> {
    code.lines()
        .position(|line| line.split(|c: char| !is_word(c)).any(|w| w == "unsafe"))
        .map(|n| n + 1)
}

/// Lines of a file that are not in a `#[cfg(test)] mod ... { }` of its own.
fn lines_without_tests(source: &str) -> usize {
    let code = blanked(source);
    let mut count = 0;
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let tests = line.trim() == "#[cfg(test)]"
            && lines
                .peek()
                .is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
        if !tests {
            count += 1;
            continue;
        }
        let mut depth = 0_i32;
        for inner in lines.by_ref() {
            depth += inner
                .chars()
                .map(|c| i32::from(c == '{') - i32::from(c == '}'))
                .sum::<i32>();
            if depth == 0 {
                break;
            }
        }
    }
    count
}

// --- reading

/// The source with comments and literals turned into spaces; lines stay lines.
fn blanked(source: &str) -> String {
    let letters: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < letters.len() {
        let end = literal_or_comment(&letters, at);
        if end == at {
            out.push(letters[at]);
            at += 1;
            continue;
        }
        out.extend(
            letters[at..end]
                .iter()
                .map(|c| if *c == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none does.
fn literal_or_comment(letters: &[char], at: usize) -> usize {
    let next = letters.get(at + 1).copied();
    let fresh = at == 0 || !is_word(letters[at - 1]);
    match letters[at] {
        '/' if next == Some('/') => end_of(letters, at, |rest| rest[0] == '\n', 0),
        '/' if next == Some('*') => end_of_block(letters, at),
        '"' => end_of_string(letters, at),
        'r' if fresh => end_of_raw(letters, at, at + 1),
        'b' | 'c' if fresh && next == Some('r') => end_of_raw(letters, at, at + 2),
        // a lifetime has no closing quote right behind its first letter
        '\'' if next == Some('\\') => end_of(letters, at + 3, |rest| rest[0] == '\'', 1),
        '\'' if letters.get(at + 2) == Some(&'\'') => at + 3,
        _ => at,
    }
}

fn end_of(letters: &[char], from: usize, is_end: impl Fn(&[char]) -> bool, past: usize) -> usize {
    let mut at = from;
    while at < letters.len() && !is_end(&letters[at..]) {
        at += 1;
    }
    (at + past).min(letters.len())
}

fn end_of_block(letters: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < letters.len() {
        match letters[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_string(letters: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < letters.len() && letters[at] != '"' {
        at += if letters[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(letters.len())
}

/// `r"..."` and `r#"..."#`; an identifier like `r#type` is none.
fn end_of_raw(letters: &[char], start: usize, hashes_from: usize) -> usize {
    let hashes = letters[hashes_from.min(letters.len())..]
        .iter()
        .take_while(|c| **c == '#')
        .count();
    if letters.get(hashes_from + hashes) != Some(&'"') {
        return start;
    }
    let closes = |rest: &[char]| {
        rest[0] == '"' && rest[1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    end_of(letters, hashes_from + hashes + 1, closes, 1 + hashes)
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<PathBuf> {
    files_below(&repository().join(folder))
}

/// All `.rs` files below a folder, sorted; a folder that is not there has none.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .map(Result::unwrap)
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(path);
            }
        }
    }
    found.into_iter().collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn assert_no_complaints(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// --- the checks can fail

fn house(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn imports_upward_and_sideways_are_found_in_every_spelling() {
    let house = house(&[
        ("nbd/mod.rs", "use crate::lun::Lun;\n"),
        (
            "nbd/a.rs",
            "use crate::{block::Geometry, volume::{self, cli}};\n",
        ),
        ("nbd/b.rs", "fn f() { super::super::docker::serve() }\n"),
        ("lun/mod.rs", "fn f() { super::nbd::serve() }\n"),
        ("attic/mod.rs", ""),
    ]);
    let found = crossings(house.path(), DAEMON).join("\n");
    for (room, line, known) in [("nbd/mod.rs", 1, "lun"), ("nbd/a.rs", 1, "volume")] {
        assert!(
            found.contains(&format!("{room}:{line}: nbd (floor 2) knows {known}")),
            "{found}"
        );
    }
    assert!(found.contains("nbd (floor 2) knows docker"), "{found}");
    assert!(found.contains("lun (floor 2) knows nbd"), "{found}");
    assert!(found.contains("the room attic is on no floor"), "{found}");
    assert_eq!(found.lines().count(), 5, "{found}");
}

#[test]
fn imports_downward_comments_and_strings_are_no_crossings() {
    let house = house(&[
        ("lib.rs", "pub mod nbd; use crate::docker::X;\n"),
        (
            "nbd/mod.rs",
            "// use crate::volume\nuse crate::block::Backend; use crate::nbd::lane;\n",
        ),
        (
            "nbd/a.rs",
            "const A: &str = \"crate::docker::\"; /* crate::cli::x */ use super::volume;\n",
        ),
        (
            "nbd/b.rs",
            "const A: char = '\"'; use crate::sys::x; const B: &str = r#\"crate::cli::\"#;\n",
        ),
    ]);
    assert_no_complaints(&crossings(house.path(), DAEMON));
}

#[test]
fn unsafe_is_found_as_code_only() {
    assert_eq!(
        unsafe_line(&blanked("// unsafe\n\"unsafe\"; #![deny(unsafe_code)]\n")),
        None
    );
    assert_eq!(
        unsafe_line(&blanked("fn f<'a>() {\n    unsafe { g() }\n}\n")),
        Some(2)
    );
}

#[test]
fn tests_do_not_count_as_lines() {
    let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { \"}\"; }\n}\nfn c() {}\n";
    assert_eq!(lines_without_tests(source), 2);
    assert_eq!(lines_without_tests(&"x\n".repeat(801)), 801);
}
