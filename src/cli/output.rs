//! Answers on stdout: JSON for programs, aligned tables for people; and a sign of life on stderr
//! while one waits.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Prints one line. A reader that has gone (`| head -1`) is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub(super) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Prints rows beneath a heading, columns aligned. `empty` says what it means that there is none.
pub(super) fn print_table(
    heading: &[&str],
    rows: &[Vec<String>],
    empty: &str,
) -> anyhow::Result<()> {
    if rows.is_empty() {
        // Not an answer: a program that counts lines must count none.
        writeln!(std::io::stderr(), "{empty}")?;
        return Ok(());
    }
    print(&table(heading, rows))
}

/// Prints facts, a line each.
pub(super) fn print_facts(facts: &[(&str, String)]) -> anyhow::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = facts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:width$}  {}", printed(value)))
        .collect();
    print(&lines.join("\n"))
}

/// Names and descriptions are whatever somebody in the project has written: a terminal takes no orders from them.
fn printed(cell: &str) -> String {
    let plain = cell.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.collect()
}

fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printed(cell)).collect())
        .collect();
    let all = || std::iter::once(&heading).chain(&rows);
    let width = |column: usize| {
        all()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| {
            let shown = if cell.is_empty() { "-" } else { cell };
            format!("{shown:width$}")
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all().map(line).collect::<Vec<_>>().join("\n")
}

/// Shows that something goes on, on a terminal, until dropped.
pub(super) struct Waiting(Option<ProgressBar>);

impl Waiting {
    /// Begins, with what is waited for.
    pub(super) fn new(what: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner()
                .with_style(style)
                .with_message(what);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self(bar)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_takes_no_orders_from_a_name() {
        let rows = vec![vec!["v1\u{1b}[2J\nv2".to_owned()]];
        assert_eq!(table(&["NAME"], &rows), "NAME\nv1 [2J v2");
    }

    #[test]
    fn columns_are_aligned_and_empty_cells_shown() {
        let rows = vec![
            vec!["v1".to_owned(), String::new()],
            vec!["volume-two".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "DEVICE"], &rows),
            "NAME        DEVICE\nv1          -\nvolume-two  x"
        );
    }
}
