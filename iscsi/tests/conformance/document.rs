//! `docs/conformance.md` is what `cargo xtask conformance` makes of the sources, and no line of the checklist is left out.

use std::path::Path;

#[path = "../../../xtask/src/conformance.rs"]
mod generator;

fn made() -> generator::Made {
    generator::make(repository()).expect("the sources can be read")
}

#[test]
fn the_document_is_the_one_that_the_sources_make() {
    let path = repository().join(generator::DOCUMENT);
    let kept = std::fs::read_to_string(path).expect("the document is committed");
    let made = made().document;
    let differs = kept
        .lines()
        .zip(made.lines())
        .find(|(kept, made)| kept != made);
    assert!(
        kept == made,
        "run `cargo xtask conformance`; the first difference: {differs:#?}"
    );
}

#[test]
fn each_line_has_a_place_in_the_code_and_a_test() {
    let complaints = made().complaints;
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn repository() -> &'static Path {
    let library = Path::new(env!("CARGO_MANIFEST_DIR"));
    library.parent().expect("the library is a folder of it")
}
