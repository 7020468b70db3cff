//! The right word for a wrong one: a list of known words and the one that was written.
//!
//! A room of its own because both the settings file and Docker's `--opt` refuse unknown words.

/// The known word nearest to `word`, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // A third of the letters, at least two: above it suggestions are noise (tried with the option names here).
    let near = |candidate: &str| (candidate.chars().count() / 3).max(2);
    let word = word.to_lowercase();
    let letters = word.chars().count();
    known
        .iter()
        // No word of another length is nearer than by the difference: a word of a megabyte costs nothing.
        .filter(|known| letters.abs_diff(known.chars().count()) <= near(known))
        .map(|known| (distance(&word, &known.to_lowercase()), *known))
        .filter(|(cost, known)| *cost <= near(known))
        .min()
        .map(|(_, known)| known)
}

/// `did you mean ...` or the whole list.
pub fn advice(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(right) => format!("did you mean `{right}`?"),
        None => format!("known are {}", known.join(", ")),
    }
}

/// Levenshtein's distance in letters, with one row of memory.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_named() {
        let known = ["state_dir", "runtime_dir", "lanes", "default_size"];
        assert_eq!(nearest("state-dir", &known), Some("state_dir"));
        assert_eq!(nearest("LANE", &known), Some("lanes"));
        assert_eq!(nearest("defaultsize", &known), Some("default_size"));
    }

    #[test]
    fn a_far_word_gets_the_list() {
        let known = ["size", "type"];
        assert_eq!(nearest("compression", &known), None);
        assert_eq!(nearest(&"size".repeat(1 << 20), &known), None);
        assert_eq!(advice("compression", &known), "known are size, type");
    }

    #[test]
    fn distance_counts_letters() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
