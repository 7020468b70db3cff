//! The comparison as a table: medians over the rounds, ours beside the peer's, and their ratio.

use std::fmt::Write as _;

use super::fio::{JOBS, Sample};

const OURS: &str = "cinder-nbd";
const PEER: &str = "qemu-nbd";

pub(super) fn render(samples: &[Sample], rounds: u32, peer_version: &str, target: &str) -> String {
    let mut text = format!(
        "# {OURS} export beside {PEER}\n\n\
         {target}; fio's NBD engine over a Unix socket; medians of {rounds} rounds in turns.\n\
         Peer: {peer_version}. A ratio is {OURS} by {PEER}: above 1 is better for IOPS, below 1 for the rest.\n\n\
         | job | bridge | IOPS | MiB/s | p50 us | p99 us | CPU us per I/O |\n\
         |---|---|---:|---:|---:|---:|---:|\n"
    );
    for job in JOBS {
        let of = |bridge: &str, figure: fn(&Sample) -> f64| {
            let wanted = samples
                .iter()
                .filter(|one| one.job == job.name && one.bridge == bridge);
            median(wanted.map(figure).collect())
        };
        let figures: [fn(&Sample) -> f64; 5] = [
            |one| one.iops,
            |one| one.mib_per_s,
            |one| one.p50_us,
            |one| one.p99_us,
            |one| one.cpu_us_per_io,
        ];
        let mut row = |bridge: &str, cells: [String; 5]| {
            // writing to a String cannot fail
            let _ = writeln!(text, "| {} | {bridge} | {} |", job.name, cells.join(" | "));
        };
        for bridge in [OURS, PEER] {
            row(bridge, figures.map(|figure| amount(of(bridge, figure))));
        }
        row(
            "ratio",
            figures.map(|figure| format!("{:.2}", of(OURS, figure) / of(PEER, figure))),
        );
    }
    text
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn amount(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_do_not_mind_the_order() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 9.0]) - 3.0).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_ratio_is_ours_by_the_peers() {
        let sample = |bridge, iops| Sample {
            job: JOBS[0].name,
            bridge,
            iops,
            mib_per_s: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            cpu_us_per_io: 1.0,
        };
        let text = render(&[sample(OURS, 300.0), sample(PEER, 200.0)], 1, "v", "t");
        assert!(text.contains("| ratio | 1.50 | 1.00 |"), "{text}");
    }
}
