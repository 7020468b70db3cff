//! What a job in the VM tells the stand-in to do wrong, line by line over a named pipe:
//!
//! ```text
//! delay SECONDS TIMES METHOD ROUTE      delay 8 1 PUT /attachments/{id}
//! clear
//! ```
//!
//! A room of its own because a shell writes it: an HTTP door would want a client that the guest does not have.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use support::cloud::{Cloud, Fault};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;

#[derive(Debug, PartialEq, Eq)]
enum Order {
    Inject(Fault),
    Clear,
}

/// Takes orders until it is dropped.
///
/// # Errors
/// Not a named pipe, or a line that is no order: the job is wrong then, and should hear of it.
pub(crate) async fn obey(pipe: &Path, cloud: &Cloud) -> Result<()> {
    // With our own writer it never ends, however often shells open and close it.
    let reader = pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(pipe)
        .with_context(|| format!("open {}", pipe.display()))?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        match parse(&line)? {
            Order::Inject(fault) => cloud.inject(fault),
            Order::Clear => cloud.clear_faults(),
        }
        // for the log of the job
        eprintln!("fault: {line}");
    }
    Ok(())
}

fn parse(line: &str) -> Result<Order> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["clear"] => Ok(Order::Clear),
        ["delay", seconds, times, method, route] => Ok(Order::Inject(Fault::Delay {
            request: format!("{method} {route}"),
            delay: Duration::from_secs(seconds.parse().context("seconds")?),
            times: Some(times.parse().context("times")?),
        })),
        _ => bail!("no order: {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_orders_or_errors() {
        let delay = Fault::Delay {
            request: "PUT /attachments/{id}".to_owned(),
            delay: Duration::from_secs(8),
            times: Some(2),
        };
        let line = "delay 8 2 PUT /attachments/{id}";
        assert_eq!(parse(line).unwrap(), Order::Inject(delay));
        assert_eq!(parse("clear").unwrap(), Order::Clear);
        for line in ["", "delay", "delay x 1 GET /volumes", "clear all"] {
            parse(line).unwrap_err();
        }
    }
}
