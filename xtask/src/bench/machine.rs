//! Where and with what the figures were made.

use anyhow::{Context as _, Result};

use super::document::Section;
use super::{Ground, target};
use crate::host;

pub(super) fn describe(ground: &Ground, is_whole: bool) -> Result<Section> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().context("count the processors")?;
    let load = read("/proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or("?");
    let system = host::os_release("PRETTY_NAME").unwrap_or_default();
    let whole = if is_whole { "all parts" } else { "some parts" };
    Ok(Section {
        name: "machine",
        text: format!(
            "Last run ({whole}, {} rounds{}): {cores} x {model}, {system}, Linux {}; load {load} at its beginning; {}; {}.\n",
            ground.rounds,
            if ground.is_quick { ", short" } else { "" },
            read("/proc/sys/kernel/osrelease")?.trim(),
            ground.peer.version,
            target::ABOUT,
        ),
        charts: Vec::new(),
    })
}
