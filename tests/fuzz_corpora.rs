//! Replays the committed corpora of `fuzz/` with every ordinary test run: each input, each of its beginnings, and
//! each with single bits turned over. No libFuzzer is needed; a found input becomes a file in its corpus.

#[expect(
    unreachable_pub,
    reason = "cargo-fuzz includes the same file as a library"
)]
#[path = "../fuzz/src/lib.rs"]
mod bodies;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn inputs(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let entries = std::fs::read_dir(&folder).expect("each target has a corpus");
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .map(|path| {
            (
                path.clone(),
                std::fs::read(&path).expect("the input can be read"),
            )
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs a body and names the input that it could not bear.
fn run(body: fn(&[u8]), path: &Path, what: &str, input: &[u8]) {
    let borne = catch_unwind(|| body(input)).is_ok();
    assert!(borne, "{}, {what}: {input:02x?}", path.display());
}

#[test]
fn every_target_has_a_folder_and_every_folder_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut folders: Vec<String> = std::fs::read_dir(corpus)
        .expect("the corpora are committed")
        .map(|entry| {
            entry
                .expect("it can be read")
                .file_name()
                .into_string()
                .expect("ASCII")
        })
        .collect();
    folders.sort();
    let names: Vec<&str> = bodies::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(folders, names);
}

// E13
#[test]
fn inputs_and_their_beginnings_are_borne() {
    for (name, body) in bodies::TARGETS {
        let inputs = inputs(name);
        assert!(inputs.len() >= 5, "the corpus of {name} is too small");
        for (path, input) in inputs {
            // Long inputs are mostly payload: their cuts are taken more coarsely.
            let step = input.len() / 512 + 1;
            for end in (0..input.len()).step_by(step) {
                run(body, &path, "cut", &input[..end]);
            }
            run(body, &path, "whole", &input);
        }
    }
}

// E13
#[test]
fn inputs_with_a_bit_turned_are_borne() {
    for (name, body) in bodies::TARGETS {
        for (path, input) in inputs(name) {
            let bits = input.len() * 8;
            for bit in (0..bits).step_by(bits / 4096 + 1) {
                let mut input = input.clone();
                input[bit / 8] ^= 1 << (bit % 8);
                run(body, &path, &format!("bit {bit}"), &input);
            }
        }
    }
}
