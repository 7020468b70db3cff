//! How it grows: more connections to one export, more volumes at rest.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::document::Section;
use super::export::{compare, figures};
use super::fio::{Sample, Work};
use super::plot::{Chart, Kind, Series};
use super::process::Footprint;
use super::statistics::{Ratio, amount, median};
use super::{Bridge, Ground, bridge_ours, bridge_peer};
use crate::ui::Stage;

const OURS: &str = "cinder-nbd";
const PEER: &str = "qemu-nbd";
const LANES: [u32; 3] = [1, 2, 4];
const IOPS: fn(&Sample) -> f64 = |one| one.report.iops;
const CPU: fn(&Sample) -> f64 = |one| one.cpu_us_per_io;

/// One, two and four connections to the export: each is a lane of ours, a thread and a session.
pub(super) async fn measure_lanes(ground: &Ground) -> Result<Section> {
    let name = |lanes: u32, direction: &str| format!("{lanes} connections, {direction}");
    let directions = [("read", "randread"), ("write", "randwrite")];
    let works: Vec<Work> = LANES
        .iter()
        .flat_map(|&lanes| {
            directions.map(|(direction, rw)| {
                Work::new(name(lanes, direction), rw, 4096, 32).connections(lanes)
            })
        })
        .collect();
    let bridges = [
        bridge_ours(ground, "ours").await?,
        bridge_peer(ground).await?,
    ];
    let runtime = ground.runtime(Duration::from_millis(1500));
    let samples = compare(ground, "one to four connections", &works, &bridges, runtime).await?;
    let mut text = format!(
        "4 KiB random, depth 32 on each connection.\n\n\
         | connections | {OURS} IOPS | {PEER} IOPS | ratio | {OURS} CPU us per I/O | {PEER} CPU us per I/O | ratio |\n\
         |---|---:|---:|---:|---:|---:|---:|\n"
    );
    for work in &works {
        let _ = write!(text, "| {} |", work.name.replace(" connections", ""));
        for figure in [IOPS, CPU] {
            let [ours, peers] =
                [OURS, PEER].map(|bridge| figures(&samples, &work.name, bridge, figure));
            let ratio = Ratio::of(&ours, &peers);
            // writing to a String cannot fail
            let _ = write!(
                text,
                " {} | {} | {ratio} |",
                amount(median(ours)),
                amount(median(peers))
            );
        }
        text.push('\n');
    }
    let series = [OURS, PEER].into_iter().flat_map(|bridge| {
        directions.map(|(direction, _)| Series {
            name: format!("{bridge}, {direction}"),
            values: LANES
                .map(|lanes| median(figures(&samples, &name(lanes, direction), bridge, IOPS)))
                .into(),
        })
    });
    let chart = Chart {
        file: "lanes",
        title: "4 KiB random, depth 32 on each connection".to_owned(),
        kind: Kind::Lines,
        across: "connections to one export",
        up: "IOPS of all",
        categories: LANES.map(|lanes| lanes.to_string()).into(),
        series: series.collect(),
        mark: None,
    };
    Ok(Section {
        name: "lanes",
        text,
        charts: vec![chart],
    })
}

const VOLUMES: [usize; 4] = [1, 4, 16, 64];
/// How long what is at rest is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// So many exports of ours, each a process with a client's connection held open: a lane and a session at rest.
pub(super) async fn measure_volumes(ground: &Ground) -> Result<Section> {
    let stage = Stage::begin("1 to 64 volumes at rest");
    let counts = if ground.is_quick {
        &VOLUMES[..3]
    } else {
        &VOLUMES[..]
    };
    let mut held = Vec::new();
    let mut rows = Vec::new();
    for &count in counts {
        while held.len() < count {
            let bridge = bridge_ours(ground, &format!("volume{}", held.len())).await?;
            let client = nbd::Client::connect(&bridge.socket).await?;
            held.push((bridge, client));
        }
        stage.note(&format!("{count} volumes"));
        // what a login leaves to do is done by then
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = total(&held)?;
        tokio::time::sleep(WATCHED).await;
        let after = total(&held)?;
        rows.push((count, before, after));
    }
    stage.done(&format!("{} volumes", held.len()));
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(volumes_section(&rows))
}

fn total(held: &[(Bridge, nbd::Client)]) -> Result<Footprint> {
    let mut sum = Footprint::default();
    for (bridge, _) in held {
        let one = Footprint::of(&bridge.process)?;
        sum.rss_kib += one.rss_kib;
        sum.pss_kib += one.pss_kib;
        sum.threads += one.threads;
        sum.switches += one.switches;
        sum.cpu_us += one.cpu_us;
    }
    Ok(sum)
}

fn volumes_section(rows: &[(usize, Footprint, Footprint)]) -> Section {
    let watched = WATCHED.as_secs_f64();
    let mut text = format!(
        "Each volume is an `export` with a client connected, and so a process, a lane and a session; figures are of one volume, watched for {watched:.0} s \
         at rest.\n\n\
         | volumes | RSS KiB | PSS KiB | threads | wake-ups per s | CPU us per s |\n|---|---:|---:|---:|---:|---:|\n"
    );
    let each = |count: usize, value: f64| value / u32::try_from(count).map_or(f64::NAN, f64::from);
    for (count, before, after) in rows {
        // writing to a String cannot fail
        let _ = writeln!(
            text,
            "| {count} | {} | {} | {} | {} | {} |",
            amount(each(*count, after.rss_kib)),
            amount(each(*count, after.pss_kib)),
            amount(each(*count, after.threads)),
            amount(each(*count, (after.switches - before.switches) / watched)),
            amount(each(*count, (after.cpu_us - before.cpu_us) / watched)),
        );
    }
    let series = |name: &str, figure: fn(&Footprint) -> f64| Series {
        name: name.to_owned(),
        values: rows
            .iter()
            .map(|(count, _, after)| each(*count, figure(after)) / 1024.0)
            .collect(),
    };
    let chart = Chart {
        file: "volumes",
        title: "Memory of one volume at rest".to_owned(),
        kind: Kind::Bars,
        across: "volumes",
        up: "MiB per volume",
        categories: rows.iter().map(|(count, ..)| count.to_string()).collect(),
        series: vec![
            series("RSS", |one| one.rss_kib),
            series("PSS (what is shared counts in part)", |one| one.pss_kib),
        ],
        mark: None,
    };
    Section {
        name: "volumes",
        text,
        charts: vec![chart],
    }
}

/// As little of an NBD client as it takes to have a connection in transmission phase.
mod nbd {
    use std::path::Path;
    use std::time::Duration;

    use anyhow::{Context as _, Result, ensure};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    /// A login at the target comes before the answer.
    const LIMIT: Duration = Duration::from_secs(30);

    pub(super) struct Client(#[expect(dead_code, reason = "held open, nothing else")] UnixStream);

    impl Client {
        /// By `NBD_OPT_EXPORT_NAME` of the empty name, without the zeroes (proto.md: "Option types").
        pub(super) async fn connect(socket: &Path) -> Result<Self> {
            let connected = tokio::time::timeout(LIMIT, Self::negotiate(socket)).await;
            let stream = connected.context("the export does not answer")?;
            stream.map(Self).context("connect to the export")
        }

        async fn negotiate(socket: &Path) -> Result<UnixStream> {
            let mut stream = UnixStream::connect(socket).await?;
            let mut greeting = [0; 18];
            stream.read_exact(&mut greeting).await?;
            ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "no NBD server");
            let mut option = Vec::from(3u32.to_be_bytes());
            option.extend_from_slice(b"IHAVEOPT");
            option.extend_from_slice(&1u32.to_be_bytes());
            option.extend_from_slice(&0u32.to_be_bytes());
            stream.write_all(&option).await?;
            let mut size_and_flags = [0; 10];
            stream.read_exact(&mut size_and_flags).await?;
            Ok(stream)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_one_volume() {
        let footprint = |switches, cpu_us| Footprint {
            rss_kib: 40960.0,
            pss_kib: 8192.0,
            threads: 12.0,
            switches,
            cpu_us,
        };
        let section = volumes_section(&[(4, footprint(10.0, 0.0), footprint(50.0, 0.0))]);
        let row = "| 4 | 10240 | 2048 | 3.00 | 2.00 | 0.00 |";
        assert!(section.text.contains(row), "{}", section.text);
    }
}
