//! Figures of several runs: medians, ratios of runs that belong together, and how they are written.

/// The middle one; of an even number the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Ours by the peer's, run by run: what else the machine did fell on both runs of a pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Ratio {
    /// Of pairs in order of their rounds.
    pub(super) fn of(ours: &[f64], peers: &[f64]) -> Self {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(peers)
            .map(|(ours, peer)| ours / peer)
            .collect();
        Self {
            low: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            high: ratios.iter().copied().fold(0.0, f64::max),
            median: median(ratios),
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.low, self.high)
    }
}

/// Three or four digits, as nobody reads more.
pub(super) fn amount(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 100.0 {
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
    fn a_ratio_is_of_pairs_not_of_medians() {
        // the machine was twice as fast in the second round: the pairs say 1.5 all the same
        let ratio = Ratio::of(&[150.0, 300.0, 140.0], &[100.0, 200.0, 100.0]);
        assert_eq!(ratio.to_string(), "1.50 (1.40-1.50)");
    }
}
