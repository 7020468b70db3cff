//! `docs/semantics.md` against the sources: every test and constant that it names exists as it is named.

use std::path::Path;

/// `path/of/a/file.rs::name` in backticks; a name with a space is a piece of the source, another one a function.
#[test]
fn what_the_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let mut wrong = Vec::new();
    let (mut functions, mut pieces, mut files) = (0, 0, 0);
    for word in document.split('`').skip(1).step_by(2) {
        let (file, name) = word.split_once("::").unwrap_or((word, ""));
        let is_file = file.contains('/') && [".rs", ".sh"].iter().any(|end| file.ends_with(end));
        if !is_file || file.contains(' ') {
            continue;
        }
        let Ok(source) = std::fs::read_to_string(root.join(file)) else {
            wrong.push(format!("there is no {file}"));
            continue;
        };
        let is_there = if name.is_empty() {
            files += 1;
            true
        } else if name.contains(' ') {
            pieces += 1;
            source.contains(name)
        } else {
            functions += 1;
            is_test(&source, name)
        };
        if !is_there {
            wrong.push(format!("{file} has no {name}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Else the document has another form now, and nothing was checked.
    assert!(
        functions > 20 && pieces > 8 && files > 1,
        "{functions} {pieces} {files}"
    );
}

/// A function of this name under an attribute that makes it a test.
fn is_test(source: &str, name: &str) -> bool {
    source.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let before: Vec<_> = source[..at].lines().rev().take(4).collect();
        before.iter().any(|line| {
            ["#[test]", "#[tokio::test"]
                .iter()
                .any(|mark| line.trim().starts_with(mark))
        })
    })
}

#[test]
fn a_function_that_is_no_test_does_not_count() {
    let source = "fn helper() {}\n\n#[test]\nfn holds() {}\n\n#[tokio::test(start_paused = true)]\nasync fn waits() {}\n";
    assert!(is_test(source, "holds") && is_test(source, "waits"));
    assert!(!is_test(source, "helper") && !is_test(source, "hold"));
}
