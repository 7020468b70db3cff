//! Under load while the network and the target fail: the tests that take minutes each.

use std::time::Duration;

use super::Summary;
use crate::house::cargo;
use crate::ui::Stage;

/// Two minutes, and the build.
const LIMIT: Duration = Duration::from_mins(30);

pub(super) async fn chaos(summary: &mut Summary) {
    let stage = Stage::begin("under load, with faults");
    // One after the other: each loads both of a small machine's cores.
    let run = [
        "test",
        "-p",
        "cinder-nbd",
        "--test",
        "chaos",
        "--",
        "--ignored",
        "--test-threads=1",
        "--show-output",
    ];
    match cargo(LIMIT).args(run).ended(|line| stage.note(line)).await {
        Ok(ended) => summary.take_tests(stage, &ended.output, ended.status.success()),
        Err(error) => summary.take(stage, Err(error)),
    }
}
