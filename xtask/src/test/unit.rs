//! Unit, property and interop tests on the host: all that `cargo test` finds.

use super::{COMPILE_LIMIT, Summary};
use crate::house::cargo;
use crate::ui::Stage;

pub(super) async fn unit(summary: &mut Summary) {
    let stage = Stage::begin("tests on the host");
    // --show-output: what a passed test says about what it cannot do here must reach us
    let run = [
        "test",
        "--workspace",
        "--no-fail-fast",
        "--",
        "--show-output",
    ];
    match cargo(COMPILE_LIMIT)
        .args(run)
        .ended(|line| stage.note(line))
        .await
    {
        Ok(ended) => summary.take_tests(stage, &ended.output, ended.status.success()),
        Err(error) => summary.take(stage, Err(error)),
    }
}
