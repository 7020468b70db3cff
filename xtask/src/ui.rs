//! What the person in front of `cargo xtask` sees: stages with their time, progress while they last.
//!
//! Results go to stdout, progress to stderr. On a terminal a stage is a spinner with the last line of what
//! it runs; elsewhere a plain line now and then, so that a log shows that something moves.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a log without a terminal hears of a long stage. Chosen freely: short against any CI's silence limit.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// Writes one line to stdout. A closed stdout (`| head`) is not our failure.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Seconds with one decimal, as everywhere in the output.
pub(crate) fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

/// One step that may take long. Dropped without an end (an error, Ctrl-C) it leaves the screen clean.
pub(crate) struct Stage {
    name: String,
    started: Instant,
    bar: ProgressBar,
    plain: Option<RefCell<Instant>>,
}

impl Stage {
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = ProgressBar::new_spinner();
        let plain = bar.is_hidden().then(|| RefCell::new(Instant::now()));
        bar.set_style(
            ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
                .expect("the template is a constant"),
        );
        bar.set_prefix(name.clone());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            name,
            started: Instant::now(),
            bar,
            plain,
        }
    }

    /// Shows what the stage is at.
    pub(crate) fn note(&self, text: &str) {
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        match &self.plain {
            None => self.bar.set_message(text.to_owned()),
            Some(last) if last.borrow().elapsed() >= PLAIN_INTERVAL => {
                *last.borrow_mut() = Instant::now();
                eprintln!(
                    "      {}: {} so far: {text}",
                    self.name,
                    seconds(self.elapsed())
                );
            }
            Some(_) => {}
        }
    }

    /// Writes a line of its own above the progress.
    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| line(text));
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends well: one line with the time.
    pub(crate) fn done(self, detail: &str) -> Duration {
        self.end("ok", detail)
    }

    /// Ends badly: one line with the time; the caller shows the reason.
    pub(crate) fn failed(self, detail: &str) -> Duration {
        self.end("FAIL", detail)
    }

    /// Ends without a line.
    pub(crate) fn quietly(self) {
        drop(self);
    }

    fn end(self, word: &str, detail: &str) -> Duration {
        let elapsed = self.elapsed();
        self.bar.finish_and_clear();
        line(&format!(
            "{word:<5} {:<28} {:>9}  {detail}",
            self.name,
            seconds(elapsed)
        ));
        elapsed
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
