//! criterion's benches, run and read.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::document::Section;
use crate::house::{self, cargo};
use crate::ui::Stage;

pub(super) async fn measure(is_quick: bool) -> Result<Section> {
    let stage = Stage::begin("criterion benches");
    // by name: `--benches` would also start the unit tests, which do not know criterion's options
    let mut run = cargo(house::BUILD_LIMIT).args(["bench", "-p", "cinder-nbd"]);
    for name in ["wire", "machines", "loopback"] {
        run = run.args(["--bench", name]);
    }
    run = run.arg("--");
    if is_quick {
        run = run.arg("--quick");
    }
    let output = run.output(|line| stage.note(line)).await?;
    let rows = rows(&output);
    ensure!(!rows.is_empty(), "criterion reported nothing");
    stage.done(&format!("{} benches", rows.len()));
    let mut text = "| bench | time | throughput |\n|---|---:|---:|\n".to_owned();
    for row in rows {
        let throughput = row.throughput.unwrap_or_default();
        // writing to a String cannot fail
        let _ = writeln!(text, "| {} | {} | {throughput} |", row.name, row.time);
    }
    Ok(Section {
        name: "benches",
        text,
        charts: Vec::new(),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    time: String,
    throughput: Option<String>,
}

/// `NAME   time:   [LOW MIDDLE HIGH]`, the name on a line of its own when it is long, and perhaps `thrpt:` beneath.
fn rows(output: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut above = "";
    for line in output.lines() {
        if let Some((name, figures)) = line.split_once("time:") {
            let name = if name.trim().is_empty() { above } else { name };
            if let Some(time) = middle(figures) {
                rows.push(Row {
                    name: name.trim().to_owned(),
                    time,
                    throughput: None,
                });
            }
        } else if let Some((_, figures)) = line.split_once("thrpt:")
            && let Some(row) = rows.last_mut()
            && row.throughput.is_none()
        {
            row.throughput = middle(figures);
        }
        above = line;
    }
    rows
}

/// The second of three values with units.
fn middle(figures: &str) -> Option<String> {
    let inside = figures.split_once('[')?.1.split_once(']')?.0;
    let words: Vec<&str> = inside.split_whitespace().collect();
    match words.as_slice() {
        [_, _, value, unit, _, _] => Some(format!("{value} {unit}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_either_length_and_throughput_are_read() {
        let output = "Gnuplot not found\nshort  time:   [1.0 ns 1.1 ns 1.2 ns]\n\
            loopback/read 4 KiB depth 32\n                        time:   [9.0 us 9.5 us 9.9 us]\n\
            \x20                       thrpt:  [390 MiB/s 400.1 MiB/s 410 MiB/s]\n\
            \x20                change:\n\
            \x20                       thrpt:  [-1.0% -2.0% -3.0%] (p = 0.1)\n";
        let row = |name: &str, time: &str, throughput: Option<&str>| Row {
            name: name.into(),
            time: time.into(),
            throughput: throughput.map(str::to_owned),
        };
        assert_eq!(
            rows(output),
            [
                row("short", "1.1 ns", None),
                row(
                    "loopback/read 4 KiB depth 32",
                    "9.5 us",
                    Some("400.1 MiB/s")
                )
            ]
        );
    }
}
