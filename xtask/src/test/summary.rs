//! What passed and what did not: one line a check as it ends, a table and one plain line at the close.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::ui::{self, Stage};

/// How a test says that it cannot run on this machine.
const CANNOT: &str = "CANNOT RUN HERE";

/// Results within one check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) ignored: u32,
}

impl Tally {
    /// A check that is one test.
    pub(super) fn one() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    /// Adds up what Rust's test programs report in their closing lines. A bad end without a failed test (did
    /// not compile, was killed) is a failure too, and so is a good end without a test.
    pub(super) fn of_output(output: &str, ended_well: bool) -> Self {
        let mut tally = Self::default();
        for line in output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("test result: "))
        {
            for part in line.split([';', '.']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what)) = (words.next(), words.next()) else {
                    continue;
                };
                let Ok(number) = number.parse::<u32>() else {
                    continue;
                };
                match what {
                    "passed" => tally.passed += number,
                    "failed" => tally.failed += number,
                    "ignored" => tally.ignored += number,
                    _ => {}
                }
            }
        }
        tally.or_failed(ended_well)
    }

    /// Of one of our shell jobs: each line `ok: ...` is a test, `FAIL: ...` one that failed.
    pub(super) fn of_script(output: &str, ended_well: bool) -> Self {
        let count = |prefix| {
            output
                .lines()
                .filter(|line| line.starts_with(prefix))
                .count()
        };
        let count = |prefix| u32::try_from(count(prefix)).unwrap_or(u32::MAX);
        let tally = Self {
            passed: count("ok: "),
            failed: count("FAIL: "),
            ignored: 0,
        };
        tally.or_failed(ended_well)
    }

    /// All together.
    fn sum(tallies: impl Iterator<Item = Self>) -> Self {
        tallies.fold(Self::default(), |sum, one| Self {
            passed: sum.passed + one.passed,
            failed: sum.failed + one.failed,
            ignored: sum.ignored + one.ignored,
        })
    }

    /// Nothing failed, and something was run at all.
    fn is_success(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    fn or_failed(mut self, ended_well: bool) -> Self {
        if self.failed == 0 && !(ended_well && self.passed > 0) {
            self.failed = 1;
        }
        self
    }
}

struct Row {
    name: String,
    tally: Tally,
    elapsed: Duration,
}

/// All checks so far.
pub(crate) struct Summary {
    rows: Vec<Row>,
    places: Places,
    remarks: Vec<String>,
    started: Instant,
}

impl Summary {
    pub(super) fn new() -> Self {
        Self {
            rows: Vec::new(),
            places: Places::default(),
            remarks: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Takes a check's result: an error is one failure, or as many as the tally says.
    pub(super) fn take(&mut self, stage: Stage, result: Result<Tally>) {
        match result {
            Ok(tally) => self.end(stage, tally, None),
            Err(error) => self.end(
                stage,
                Tally {
                    failed: 1,
                    ..Tally::default()
                },
                Some(&format!("{error:#}")),
            ),
        }
    }

    /// Takes the output of Rust test programs. `ended_well`: the exit status was that of success.
    pub(super) fn take_tests(&mut self, stage: Stage, output: &str, ended_well: bool) {
        let tally = Tally::of_output(output, ended_well);
        self.places.take(output);
        let failure = (tally.failed > 0).then(|| failures(output));
        self.end(stage, tally, failure.as_deref());
    }

    /// Takes the output of one of our shell jobs.
    pub(super) fn take_script(&mut self, stage: Stage, output: &str, status: i32) {
        let tally = Tally::of_script(output, status == 0);
        let failure = format!("exit status {status}\n{}", crate::run::tail(output));
        self.end(stage, tally, (tally.failed > 0).then_some(failure.as_str()));
    }

    /// Something that ran beside the checks and is worth a line in the table.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// The table and the closing line.
    pub(super) fn close(self) -> ExitCode {
        ui::line("");
        for row in &self.rows {
            let Tally {
                passed,
                failed,
                ignored,
            } = row.tally;
            let ignored = if ignored > 0 {
                format!(", {ignored} ignored")
            } else {
                String::new()
            };
            ui::line(&format!(
                "{:<5} {:<28} {:>9}  {passed} passed, {failed} failed{ignored}",
                if failed == 0 { "ok" } else { "FAIL" },
                row.name,
                ui::seconds(row.elapsed),
            ));
        }
        for line in self.remarks.iter().chain(&self.places.nowhere()) {
            ui::line(&format!("note  {line}"));
        }
        let all = Tally::sum(self.rows.iter().map(|row| row.tally));
        ui::line(&format!(
            "all of it took {}",
            ui::seconds(self.started.elapsed())
        ));
        ui::line(&format!("{} passed, {} failed", all.passed, all.failed));
        if all.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn end(&mut self, stage: Stage, tally: Tally, failure: Option<&str>) {
        let name = stage.name().to_owned();
        let Tally { passed, failed, .. } = tally;
        let elapsed = match failure {
            None => stage.done(&format!("{passed} passed")),
            Some(text) => {
                let elapsed = stage.failed(&format!("{passed} passed, {failed} failed"));
                text.lines()
                    .for_each(|line| ui::line(&format!("      {line}")));
                elapsed
            }
        };
        self.rows.push(Row {
            name,
            tally,
            elapsed,
        });
    }
}

/// Where tests really ran: what cannot run on the host runs in the VM, and the other way round.
#[derive(Default)]
struct Places {
    ran: BTreeSet<String>,
    /// By test, what it said.
    could_not: BTreeMap<String, String>,
}

impl Places {
    fn take(&mut self, output: &str) {
        let mut could_not = BTreeMap::new();
        let mut current = "";
        for line in output.lines() {
            if let Some(rest) = line.strip_prefix("---- ") {
                current = rest.split(' ').next().unwrap_or_default();
            } else if let Some(at) = line.find(CANNOT) {
                could_not.insert(current.to_owned(), line[at..].trim_end().to_owned());
            }
        }
        let named = output
            .lines()
            .filter_map(|line| line.strip_prefix("test ")?.split(' ').next());
        self.ran.extend(
            named
                .filter(|name| !could_not.contains_key(*name))
                .map(str::to_owned),
        );
        self.could_not.extend(could_not);
    }

    /// The tests that ran in no place, with the reason.
    fn nowhere(&self) -> Vec<String> {
        let nowhere = self
            .could_not
            .iter()
            .filter(|(name, _)| !self.ran.contains(*name));
        nowhere
            .map(|(name, reason)| format!("{name}: {reason}"))
            .collect()
    }
}

/// The parts of a test run's output that say what went wrong: compiler errors, panics with what was captured,
/// the names. Of passed tests nothing.
fn failures(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let mut wanted = Vec::new();
    let mut inside = false;
    for line in &lines {
        if *line == "failures:" || line.starts_with("error") || line.starts_with("FAIL") {
            inside = true;
        }
        if inside {
            wanted.push(*line);
        }
        if line.starts_with("test result:") {
            inside = false;
        }
    }
    if wanted.is_empty() {
        crate::run::tail(output)
    } else {
        wanted.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let output = "test a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(
            Tally::of_output(output, false),
            Tally {
                passed: 13,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn failures_are_cut_out_of_the_noise() {
        let output = "test a ... ok\n\nfailures:\n\n---- b stdout ----\nboom\n\nfailures:\n    b\n\n\
            test result: FAILED. 1 passed; 1 failed;\nrunning 3 tests\n";
        let text = failures(output);
        assert!(text.contains("boom") && !text.contains("test a") && !text.contains("running 3"));
    }

    #[test]
    fn a_test_that_cannot_run_is_told_unless_it_ran_elsewhere() {
        let said = |name: &str| {
            format!(
                "test {name} ... ok\nsuccesses:\n---- {name} stdout ----\nCANNOT RUN HERE: no nbd\n"
            )
        };
        let mut places = Places::default();
        places.take(&said("a"));
        places.take(&said("b"));
        assert_eq!(
            places.nowhere(),
            ["a: CANNOT RUN HERE: no nbd", "b: CANNOT RUN HERE: no nbd"]
        );
        places.take("test a ... ok\n");
        assert_eq!(places.nowhere(), ["b: CANNOT RUN HERE: no nbd"]);
    }

    #[test]
    fn a_program_that_dies_without_a_word_is_a_failure() {
        assert_eq!(Tally::of_output("", false).failed, 1);
        assert_eq!(
            Tally::of_output("test result: ok. 3 passed; 0 failed;", false).failed,
            1
        );
        assert_eq!(Tally::of_script("ok: a\nok: b\n", false).failed, 1);
    }

    #[test]
    fn nothing_run_is_not_success() {
        assert_eq!(Tally::of_output("", true).failed, 1);
        assert_eq!(Tally::of_script("boot\n", true).failed, 1);
        assert!(!Tally::default().is_success());
        assert!(Tally::of_script("ok: a\n", true).is_success());
    }
}
