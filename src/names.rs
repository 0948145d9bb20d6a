//! Names as people type them: case, `-` and `_` do not matter, and an unknown one is answered with the nearest.

use crate::Error;

/// A name without case, `-`, `_` and spaces.
fn plain(s: &str) -> String {
    s.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase).collect()
}

/// True when both are the same name.
pub fn same(a: &str, b: &str) -> bool {
    plain(a) == plain(b)
}

/// The error for a name that is none of `known`.
pub fn unknown<'a>(key: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Error {
    let wanted = plain(name);
    let nearest = known
        .clone()
        .map(|k| (strsim::damerau_levenshtein(&wanted, &plain(k)), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len() / 2)
        .map_or(String::new(), |(_, k)| format!("did you mean '{k}'? "));
    let all: Vec<&str> = known.collect();
    Error::Config { key: key.into(), why: format!("unknown name '{name}'; {nearest}known are {}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_is_forgiven_and_suggested() {
        assert!(same("CoreSet", "core_set") && same("LeastConfidence", "least-confidence"));
        let e = unknown("--method", "coresett", ["random", "coreset"].into_iter()).to_string();
        assert!(e.contains("did you mean 'coreset'?") && e.contains("random, coreset"), "{e}");
        let e = unknown("--method", "zzzzzz", ["random", "coreset"].into_iter()).to_string();
        assert!(!e.contains("did you mean"), "{e}");
    }
}
