//! Our export beside `qemu-nbd` with libiscsi, on one tgtd: by kind of job, and by size.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::document::Section;
use super::fio::{Sample, Work, measure as run_fio};
use super::plot::{Chart, Kind, Series};
use super::statistics::{Ratio, amount, median};
use super::{Bridge, Ground, bridge_ours, bridge_peer};
use crate::ui::Stage;

const OURS: &str = "cinder-nbd";
const PEER: &str = "qemu-nbd";
const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// By work and bridge, in order of rounds.
pub(super) type Samples = BTreeMap<(String, &'static str), Vec<Sample>>;

fn jobs() -> Vec<Work> {
    vec![
        Work::new("4 KiB random read, depth 1", "randread", 4 * KIB, 1),
        Work::new("4 KiB random write, depth 1", "randwrite", 4 * KIB, 1),
        Work::new("4 KiB random read, depth 32", "randread", 4 * KIB, 32),
        Work::new("4 KiB random write, depth 32", "randwrite", 4 * KIB, 32),
        Work::new("1 MiB read, depth 4", "read", MIB, 4),
        Work::new("1 MiB write, depth 4", "write", MIB, 4),
    ]
}

/// All work on all bridges, in turns; the order changes each round.
pub(super) async fn compare(
    ground: &Ground,
    title: &str,
    works: &[Work],
    bridges: &[Bridge],
    runtime: Duration,
) -> Result<Samples> {
    let stage = Stage::begin(title);
    let mut samples = Samples::new();
    for bridge in bridges {
        // what is set up at first use is not what we measure
        for rw in ["randread", "randwrite"] {
            let warm = Work::new("warm up", rw, 4 * KIB, 32);
            run_fio(&warm, bridge, ground.path(), Duration::from_millis(500)).await?;
        }
    }
    for round in 0..ground.rounds {
        for work in works {
            let mut order: Vec<&Bridge> = bridges.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for bridge in order {
                let (name, of) = (&work.name, ground.rounds);
                stage.note(&format!(
                    "round {} of {of}: {name}, {}",
                    round + 1,
                    bridge.name
                ));
                let sample = run_fio(work, bridge, ground.path(), runtime).await?;
                let of_work = samples.entry((work.name.clone(), bridge.name));
                of_work.or_default().push(sample);
            }
        }
    }
    let runs: usize = samples.values().map(Vec::len).sum();
    stage.done(&format!("{runs} runs of {:.1} s", runtime.as_secs_f64()));
    Ok(samples)
}

/// One figure of all rounds of a work on a bridge.
pub(super) fn figures(
    samples: &Samples,
    work: &str,
    bridge: &'static str,
    figure: fn(&Sample) -> f64,
) -> Vec<f64> {
    let of_work = samples.get(&(work.to_owned(), bridge));
    of_work.into_iter().flatten().map(figure).collect()
}

const FIGURES: [fn(&Sample) -> f64; 5] = [
    |one| one.report.iops,
    |one| one.report.mib_per_s,
    |one| one.report.p50_us,
    |one| one.report.p99_us,
    |one| one.cpu_us_per_io,
];
const IOPS: fn(&Sample) -> f64 = FIGURES[0];
const RATE: fn(&Sample) -> f64 = FIGURES[1];
const CPU: fn(&Sample) -> f64 = FIGURES[4];

pub(super) async fn measure(ground: &Ground) -> Result<Section> {
    let bridges = [
        bridge_ours(ground, "ours").await?,
        bridge_peer(ground).await?,
    ];
    let works = jobs();
    let runtime = ground.runtime(Duration::from_millis(2500));
    let samples = compare(ground, "export beside qemu-nbd", &works, &bridges, runtime).await?;
    Ok(Section {
        name: "export",
        text: table(&works, &samples),
        charts: vec![
            ratio_chart(
                "export-iops",
                format!("IOPS: {OURS} by {PEER}"),
                &works,
                &samples,
                IOPS,
            ),
            cpu_chart(&works, &samples),
        ],
    })
}

fn table(works: &[Work], samples: &Samples) -> String {
    let mut text = "| job | bridge | IOPS | MiB/s | p50 us | p99 us | CPU us per I/O |\n\
         |---|---|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for work in works {
        let mut row = |bridge: &str, cells: [String; 5]| {
            // writing to a String cannot fail
            let _ = writeln!(text, "| {} | {bridge} | {} |", work.name, cells.join(" | "));
        };
        let of = |bridge, figure| figures(samples, &work.name, bridge, figure);
        for bridge in [OURS, PEER] {
            row(
                bridge,
                FIGURES.map(|figure| amount(median(of(bridge, figure)))),
            );
        }
        let ratio = |figure| Ratio::of(&of(OURS, figure), &of(PEER, figure)).to_string();
        row("ratio", FIGURES.map(ratio));
    }
    text
}

fn ratio_chart(
    file: &'static str,
    title: String,
    works: &[Work],
    samples: &Samples,
    figure: fn(&Sample) -> f64,
) -> Chart {
    let ratios = works.iter().map(|work| {
        let of = |bridge| figures(samples, &work.name, bridge, figure);
        Ratio::of(&of(OURS), &of(PEER)).median
    });
    Chart {
        file,
        title,
        kind: Kind::Bars,
        across: "job",
        up: "ratio of IOPS",
        categories: works.iter().map(|work| work.name.clone()).collect(),
        series: vec![Series {
            name: "median of the ratios of a round".to_owned(),
            values: ratios.collect(),
        }],
        mark: Some((1.0, "as fast as qemu-nbd")),
    }
}

fn cpu_chart(works: &[Work], samples: &Samples) -> Chart {
    // a MiB costs a hundred times what 4 KiB cost: on an axis of its own they could not be read
    let small: Vec<&Work> = works.iter().filter(|work| work.block_bytes < MIB).collect();
    let series = [OURS, PEER].map(|bridge| Series {
        name: bridge.to_owned(),
        values: small
            .iter()
            .map(|work| median(figures(samples, &work.name, bridge, CPU)))
            .collect(),
    });
    Chart {
        file: "export-cpu",
        title: "Processor time of the bridge's process, 4 KiB".to_owned(),
        kind: Kind::Bars,
        across: "job",
        up: "CPU us per I/O",
        categories: small.iter().map(|work| work.name.clone()).collect(),
        series: series.into(),
        mark: None,
    }
}

const SIZES: [(&str, u32); 6] = [
    ("4 KiB", 4 * KIB),
    ("16 KiB", 16 * KIB),
    ("64 KiB", 64 * KIB),
    ("256 KiB", 256 * KIB),
    ("1 MiB", MIB),
    ("4 MiB", 4 * MIB),
];
const DIRECTIONS: [(&str, &str); 2] = [("read", "randread"), ("write", "randwrite")];
/// For all sizes; 4 MiB times it is what a target and two sockets can hold.
const SIZES_DEPTH: u32 = 8;

/// 4 KiB to 4 MiB at one depth.
pub(super) async fn measure_sizes(ground: &Ground) -> Result<Section> {
    let of_size = |&(size, bytes): &(&str, u32)| {
        DIRECTIONS
            .map(|(direction, rw)| Work::new(format!("{size} {direction}"), rw, bytes, SIZES_DEPTH))
    };
    let works: Vec<Work> = SIZES.iter().flat_map(of_size).collect();
    let bridges = [
        bridge_ours(ground, "ours").await?,
        bridge_peer(ground).await?,
    ];
    let runtime = ground.runtime(Duration::from_secs(1));
    let samples = compare(
        ground,
        "sizes from 4 KiB to 4 MiB",
        &works,
        &bridges,
        runtime,
    )
    .await?;
    Ok(Section {
        name: "sizes",
        text: sizes_table(&works, &samples),
        charts: vec![sizes_chart(&samples)],
    })
}

fn sizes_table(works: &[Work], samples: &Samples) -> String {
    let mut text = format!(
        "Random, depth {SIZES_DEPTH}.\n\n\
         | size | {OURS} MiB/s | {PEER} MiB/s | ratio | {OURS} CPU us per MiB | {PEER} CPU us per MiB | ratio |\n\
         |---|---:|---:|---:|---:|---:|---:|\n"
    );
    for work in works {
        let of = |bridge, figure| figures(samples, &work.name, bridge, figure);
        let a_mib = f64::from(MIB) / f64::from(work.block_bytes);
        let cost = |bridge| amount(median(of(bridge, CPU)) * a_mib);
        let cells = [
            amount(median(of(OURS, RATE))),
            amount(median(of(PEER, RATE))),
            Ratio::of(&of(OURS, RATE), &of(PEER, RATE)).to_string(),
            cost(OURS),
            cost(PEER),
            Ratio::of(&of(OURS, CPU), &of(PEER, CPU)).to_string(),
        ];
        // writing to a String cannot fail
        let _ = writeln!(text, "| {} | {} |", work.name, cells.join(" | "));
    }
    text
}

fn sizes_chart(samples: &Samples) -> Chart {
    let series = [OURS, PEER].into_iter().flat_map(|bridge| {
        DIRECTIONS.map(|(direction, _)| Series {
            name: format!("{bridge}, {direction}"),
            values: SIZES
                .iter()
                .map(|(size, _)| {
                    median(figures(
                        samples,
                        &format!("{size} {direction}"),
                        bridge,
                        RATE,
                    ))
                })
                .collect(),
        })
    });
    Chart {
        file: "sizes",
        title: format!("Throughput by size, random, depth {SIZES_DEPTH}"),
        kind: Kind::Lines,
        across: "size of one I/O",
        up: "MiB/s",
        categories: SIZES.map(|(size, _)| size.to_owned()).into(),
        series: series.collect(),
        mark: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fio::Report;

    #[test]
    fn a_ratio_is_ours_by_the_peers() {
        let sample = |iops| Sample {
            report: Report {
                count: 1.0,
                iops,
                mib_per_s: 1.0,
                p50_us: 1.0,
                p99_us: 1.0,
                runtime_us: 1.0,
                cpu_us: 1.0,
            },
            cpu_us_per_io: 1.0,
        };
        let works = &jobs()[..1];
        let key = |bridge| (works[0].name.clone(), bridge);
        let samples = Samples::from([
            (key(OURS), vec![sample(300.0)]),
            (key(PEER), vec![sample(200.0)]),
        ]);
        let text = table(works, &samples);
        assert!(text.contains("| ratio | 1.50 (1.50-1.50) | 1.00"), "{text}");
    }
}
