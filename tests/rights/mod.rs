//! The access rules of `docs/clouds.md`.

use serde::{Deserialize, Serialize};

/// One rule, as Keystone takes it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Rule {
    /// The service's type.
    pub(super) service: String,
    /// HTTP's.
    pub(super) method: String,
    /// With stars.
    pub(super) path: String,
}

/// The document's list.
pub(super) fn published() -> Vec<Rule> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clouds.md");
    let document = std::fs::read_to_string(path).expect("docs/clouds.md is there");
    let list = document.split("```json\n").nth(1).expect("a list");
    let list = list.split("```").next().expect("its end");
    serde_json::from_str(list).expect("a list of rules")
}
