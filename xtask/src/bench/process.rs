//! What a process takes of the machine: time on the processor, memory, threads, wake-ups.

use anyhow::{Context as _, Result};

use crate::run::Background;

/// Time on the processor from a moment on, user and system, of all threads.
pub(super) struct Cpu {
    id: u32,
    before_us: f64,
}

impl Cpu {
    pub(super) fn of(process: &Background) -> Result<Self> {
        let id = process.id().context("the process has ended")?;
        let before_us = cpu_us(id)?;
        Ok(Self { id, before_us })
    }

    pub(super) fn spent_us(&self) -> Result<f64> {
        Ok(cpu_us(self.id)? - self.before_us)
    }
}

/// How big a process is, and how often it was woken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Footprint {
    pub(super) rss_kib: f64,
    /// What it shares with others is divided among them.
    pub(super) pss_kib: f64,
    pub(super) threads: f64,
    /// Of all threads, since each began.
    pub(super) switches: f64,
    pub(super) cpu_us: f64,
}

impl Footprint {
    pub(super) fn of(process: &Background) -> Result<Self> {
        let id = process.id().context("the process has ended")?;
        let read = |file: &str| {
            let path = format!("/proc/{id}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let rollup = read("smaps_rollup")?;
        let mut switches = 0.0;
        let tasks = format!("/proc/{id}/task");
        for task in std::fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
            let status = std::fs::read_to_string(task?.path().join("status"));
            let status = status.context("read a thread's status")?;
            for name in ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"] {
                switches += field(&status, name).context("a status without switches")?;
            }
        }
        Ok(Self {
            rss_kib: field(&rollup, "Rss:").context("smaps_rollup without Rss")?,
            pss_kib: field(&rollup, "Pss:").context("smaps_rollup without Pss")?,
            threads: field(&read("status")?, "Threads:").context("a status without Threads")?,
            switches,
            cpu_us: cpu_us(id)?,
        })
    }
}

/// The first number of the line that begins with this word.
fn field(text: &str, name: &str) -> Option<f64> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Of all children that have ended and were waited for, out of the parent's `/proc/PID/stat`.
pub(super) fn children_us(stat: &str) -> Option<f64> {
    microseconds(sum(stat, 13)?).ok()
}

fn cpu_us(id: u32) -> Result<f64> {
    let path = format!("/proc/{id}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    microseconds(sum(&stat, 11).with_context(|| format!("{path} has a strange form"))?)
}

fn microseconds(ticks: u32) -> Result<f64> {
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).context("CLK_TCK")?;
    Ok(f64::from(ticks) * 1e6 / f64::from(per_second))
}

/// Two fields of `proc_pid_stat(5)`, user and system time of the process (14, 15) or its children (16, 17); the name
/// in field 2 may hold anything, so they are counted from its end.
fn sum(stat: &str, behind_name: usize) -> Option<u32> {
    let mut fields = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .skip(behind_name);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_hostile_name() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 23 4 5 20 0 3 0";
        assert_eq!(sum(stat, 11), Some(123));
        assert_eq!(sum(stat, 13), Some(9));
    }

    #[test]
    fn a_field_is_a_whole_word_at_the_beginning() {
        let text = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\nRss:  12 kB\n";
        assert_eq!(field(text, "voluntary_ctxt_switches:"), Some(5.0));
        assert_eq!(field(text, "Rss:"), Some(12.0));
        assert_eq!(field(text, "Pss:"), None);
    }
}
