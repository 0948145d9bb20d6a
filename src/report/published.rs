//! What the paper printed, to stand beside what was reproduced.

/// The data sets of the table's columns: id, and the share of the largest class in the test set, which is what a
/// network reaches that learned nothing.
static COLUMNS: [(&str, f64); 5] =
    [("mnist", 0.1135), ("cifar10", 0.10), ("gtsrb", 0.0597), ("cifar100", 0.01), ("tinyimagenet", 0.005)];

/// Table 3: mean improvement over random (API) in percentage points. `None`: not published.
static TABLE_3: &[(&str, &str, [Option<f64>; 5])] = &[
    ("random", "RandomSampling", [Some(0.00), Some(0.00), Some(0.00), Some(0.00), Some(0.00)]),
    ("albl", "ALBL", [Some(-0.15), Some(1.58), Some(0.34), Some(2.13), Some(0.48)]),
    ("adversarial-bim", "AdversarialBIM", [Some(1.44), Some(0.25), Some(-0.24), Some(0.58), Some(-6.40)]),
    ("bald", "BALDDropout", [Some(1.18), Some(1.48), Some(-0.04), Some(1.55), Some(-0.34)]),
    ("badge", "BadgeSampling", [Some(1.84), Some(1.89), Some(0.27), Some(1.72), None]),
    ("cluster-margin", "ClusterMargin", [Some(1.76), Some(0.28), Some(0.23), Some(1.47), None]),
    ("coreset", "CoreSet", [Some(-1.15), Some(0.95), Some(0.26), Some(2.07), Some(0.57)]),
    ("kmeans", "KMeansSampling", [Some(-0.22), Some(0.17), Some(0.20), Some(-0.27), None]),
    ("learning-loss", "LearningLoss", [Some(-2.32), Some(-2.38), Some(-0.94), Some(-1.31), Some(0.05)]),
    ("least-confidence", "LeastConfidence", [Some(1.40), Some(1.95), Some(0.34), Some(2.21), Some(0.17)]),
    ("mcadl", "MCADL", [Some(0.57), Some(-0.50), Some(0.03), Some(-1.27), Some(-1.51)]),
    ("core-gcn", "CoreGCN", [Some(1.21), Some(1.16), Some(-8.52), Some(1.35), Some(-5.19)]),
    ("uncertain-gcn", "UncertainGCN", [Some(-0.85), Some(0.14), Some(-8.77), Some(-0.07), Some(-5.37)]),
    ("vaal", "VAAL", [Some(-0.34), Some(-0.49), Some(-24.79), Some(-2.01), Some(-0.32)]),
    ("waal", "WAAL", [Some(3.00), Some(2.05), Some(0.21), Some(-0.12), Some(-3.64)]),
    ("ssl-consistency", "SSLConsistency", [Some(3.39), Some(5.83), Some(1.19), Some(8.099), Some(7.65)]),
    ("ssl-diff2aug-direct", "SSLDiff2AugDirect", [Some(3.49), Some(5.78), Some(1.19), Some(8.988), None]),
    ("ssl-diff2aug-kmeans", "SSLDiff2AugKmeans", [Some(3.50), Some(5.74), Some(1.17), Some(8.913), Some(7.68)]),
    ("ssl-random", "SSLRandom", [Some(1.68), Some(4.57), Some(1.11), Some(8.014), Some(7.56)]),
];

/// Table 2: accuracy of the network trained on the whole training split, in percent, in the order of the columns.
static TABLE_2: [f64; 5] = [97.68, 92.15, 99.33, 66.78, 55.81];

/// The fully supervised accuracy that the paper prints for a data set, in percent.
pub fn full(dataset: &str) -> Option<f64> {
    column(dataset).map(|c| TABLE_2[c])
}

fn column(dataset: &str) -> Option<usize> {
    let plain: String = dataset.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    // The published numbers of GTSRB come from the split of the online competition.
    let plain = if plain == "gtsrbonline" { "gtsrb".into() } else { plain };
    COLUMNS.iter().position(|(id, _)| *id == plain || (*id == "tinyimagenet" && plain == "tiny"))
}

/// The API the paper prints for a method on a data set, in percentage points.
pub fn api(method: &str, dataset: &str) -> Option<f64> {
    TABLE_3.iter().find(|row| row.0 == method)?.2[column(dataset)?]
}

/// True when the paper has results for the data set.
pub fn covers(dataset: &str) -> bool {
    column(dataset).is_some()
}

/// The accuracy of always answering the commonest class, where it is known.
pub fn chance(dataset: &str) -> Option<f64> {
    // Images cut to their signs have the same labels; the paper's results are not theirs.
    let dataset = dataset.strip_suffix("-roi").unwrap_or(dataset);
    if dataset == "synthetic" { Some(0.10) } else { column(dataset).map(|c| COLUMNS[c].1) }
}

/// A method's place in the table; methods beyond the paper come last.
pub fn rank(method: &str) -> usize {
    TABLE_3.iter().position(|row| row.0 == method).unwrap_or(TABLE_3.len())
}

/// The paper's name of a method, or its id when the paper has none.
pub fn paper_name(method: &str) -> String {
    TABLE_3.iter().find(|row| row.0 == method).map_or(method, |row| row.1).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts that the paper's text states about its own table.
    #[test]
    fn the_table_was_copied_right() {
        let below = |c: usize| TABLE_3[..14].iter().filter(|r| r.2[c].is_some_and(|v| v < 0.0)).count();
        assert_eq!([0, 1, 2, 3, 4].map(below), [6, 3, 6, 5, 6]);
        let best = |rows: &[(&str, &str, [Option<f64>; 5])], c: usize| {
            rows.iter().filter_map(|r| r.2[c]).fold(f64::NEG_INFINITY, f64::max)
        };
        for (c, want) in [1.66, 3.88, 0.85, 6.778, 7.11].into_iter().enumerate() {
            let gap = best(&TABLE_3[14..], c) - best(&TABLE_3[..14], c);
            assert!((gap - want).abs() < 1e-9, "column {c}: {gap}");
        }
        assert_eq!(TABLE_3.iter().flat_map(|r| r.2).filter(Option::is_some).count(), 91);
        let full = ["mnist", "cifar10", "cifar100", "gtsrb", "tiny-imagenet", "synthetic"].map(super::full);
        assert_eq!(full, [Some(97.68), Some(92.15), Some(66.78), Some(99.33), Some(55.81), None]);
        assert_eq!(api("coreset", "MNIST"), Some(-1.15));
        assert_eq!(api("badge", "tiny-imagenet"), None);
        assert_eq!(api("coreset", "synthetic"), None);
        assert_eq!((chance("gtsrb-online-roi"), super::full("gtsrb-roi")), (Some(0.0597), None));
    }
}
