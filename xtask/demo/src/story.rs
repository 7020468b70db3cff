//! The narration: one line a step, with its time.

use std::io::Write as _;
use std::time::Instant;

use anyhow::Result;

/// A heading between steps.
pub(crate) fn chapter(title: &str) {
    line(&format!("\n{title}"));
}

/// Performs a step and tells it; the step's result may say more than its name. A step that fails is told too.
pub(crate) async fn step<T>(
    name: &str,
    work: impl Future<Output = Result<T>>,
    more: impl FnOnce(&T) -> String,
) -> Result<T> {
    let started = Instant::now();
    let result = work.await;
    let seconds = started.elapsed().as_secs_f64();
    let more = match &result {
        Ok(value) => more(value),
        Err(_) => "FAILED".to_owned(),
    };
    line(format!("{seconds:7.2} s  {name:<56}  {more}").trim_end());
    result
}

/// Nothing more to say.
pub(crate) fn no_more<T>(_: &T) -> String {
    String::new()
}

fn line(text: &str) {
    // a closed stdout (`| head`) is not our failure
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
