//! Tables as Markdown for files, as aligned text for a terminal, and as CSV.

use crate::bench::metrics::Stat;
use crate::csv;

/// What stands where a number is undefined.
pub const MISSING: &str = "–";

/// A table of finished texts. The first column is aligned left, the others right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The column names.
    pub head: Vec<String>,
    /// The lines, each as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without lines.
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Table {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let escaped = |cells: &[String]| line(&cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>());
        let rule: Vec<String> = (0..self.head.len()).map(|i| if i == 0 { "---" } else { "---:" }.into()).collect();
        let rows: String = self.rows.iter().map(|r| escaped(r)).collect();
        format!("{}{}{rows}", escaped(&self.head), line(&rule))
    }

    /// As aligned text at most `width` characters wide, where the first column and one more fit: columns that do
    /// not fit continue below, behind the first column again.
    pub fn plain(&self, width: usize) -> String {
        let chars = |s: &String| s.chars().count();
        let widths: Vec<usize> = (0..self.head.len())
            .map(|i| self.rows.iter().chain([&self.head]).filter_map(|r| r.get(i)).map(chars).max().unwrap_or(0))
            .collect();
        let Some(&first) = widths.first() else { return String::new() };
        let mut blocks: Vec<Vec<usize>> = vec![vec![]];
        let mut used = first;
        for (i, w) in widths.iter().enumerate().skip(1) {
            if used + 2 + w > width && blocks.last().is_some_and(|b| !b.is_empty()) {
                blocks.push(vec![]);
                used = first;
            }
            used += 2 + w;
            if let Some(block) = blocks.last_mut() {
                block.push(i);
            }
        }
        let line = |row: &Vec<String>, block: &[usize]| {
            let pad = |i: usize| " ".repeat(widths[i] - row.get(i).map_or(0, chars));
            let cell = |i: usize| row.get(i).map_or("", String::as_str);
            let others: String = block.iter().map(|&i| format!("  {}{}", pad(i), cell(i))).collect();
            format!("{}{}{others}", cell(0), pad(0)).trim_end().to_string() + "\n"
        };
        let one = |block: &Vec<usize>| {
            let rule = "─".repeat(first + block.iter().map(|&i| widths[i] + 2).sum::<usize>());
            let rows: String = self.rows.iter().map(|r| line(r, block)).collect();
            format!("{}{rule}\n{rows}", line(&self.head, block))
        };
        blocks.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// The columns before `at`, and the first column with those from `at` on.
    pub fn split(&self, at: usize) -> (Table, Table) {
        let at = at.clamp(1, self.head.len().max(1));
        let left = |r: &Vec<String>| r.iter().take(at).cloned().collect();
        let right = |r: &Vec<String>| r.iter().take(1).chain(r.iter().skip(at)).cloned().collect();
        let both = |f: &dyn Fn(&Vec<String>) -> Vec<String>| Table {
            head: f(&self.head),
            rows: self.rows.iter().map(f).collect(),
        };
        (both(&left), both(&right))
    }

    /// As CSV with quotes where they are needed.
    pub fn csv(&self) -> String {
        std::iter::once(&self.head).chain(&self.rows).map(|row| csv::line(row)).collect()
    }
}

/// A fraction as percent with two decimals.
pub fn percent(v: Option<f64>) -> String {
    v.map_or(MISSING.into(), |v| format!("{:.2}", 100.0 * v))
}

/// Percentage points with their sign, and the standard error where there is one.
pub fn points(v: Option<Stat>) -> String {
    v.map_or(MISSING.into(), |s| format!("{}{}", signed(s.mean), s.se.map_or(String::new(), |e| format!(" ± {e:.2}"))))
}

/// A number with sign and two decimals; what rounds to zero has none.
pub fn signed(v: f64) -> String {
    if v.abs() < 0.005 { "0.00".into() } else { format!("{v:+.2}").replace('-', "−") }
}

/// Seconds with as many decimals as are of use.
pub fn seconds(v: Option<f64>) -> String {
    v.map_or(MISSING.into(), |v| match v {
        v if v < 1.0 => format!("{v:.3}"),
        v if v < 100.0 => format!("{v:.2}"),
        v => format!("{v:.0}"),
    })
}

/// A ratio.
pub fn times(v: Option<f64>) -> String {
    v.map_or(MISSING.into(), |v| format!("{v:.2}×"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms() {
        let mut t = Table::new(["method", "2 %", "API"]);
        t.rows.push(vec!["Core|Set".into(), "–".into(), "+1.00 ± 0.10".into()]);
        t.rows.push(vec!["a, \"b\"".into(), "97.68".into(), "0.00".into()]);
        assert_eq!(
            t.plain(80),
            "method      2 %           API\n─────────────────────────────\n\
             Core|Set      –  +1.00 ± 0.10\na, \"b\"    97.68          0.00\n"
        );
        let narrow = t.plain(24);
        assert_eq!(narrow.lines().count(), 9, "{narrow}");
        assert!(narrow.lines().all(|l| l.chars().count() <= 24), "{narrow}");
        assert!(t.markdown().starts_with("| method | 2 % | API |\n| --- | ---: | ---: |\n| Core\\|Set |"));
        assert!(t.csv().ends_with("\"a, \"\"b\"\"\",97.68,0.00\n"));
    }

    #[test]
    fn numbers_as_texts() {
        assert_eq!(["+1.00", "−0.15", "0.00", "0.00"], [1.0, -0.15, -0.001, 0.0].map(signed));
        assert_eq!(["0.012", "3.46", "1306"], [0.0123, 3.456, 1306.4].map(|s| seconds(Some(s))));
        assert_eq!([points(None), percent(None), seconds(None), times(None)], [MISSING; 4]);
        assert_eq!(points(Some(Stat { mean: 1.0, se: Some(0.2), n: 2 })), "+1.00 ± 0.20");
        assert_eq!(points(Some(Stat { mean: -10.004, se: None, n: 1 })), "−10.00");
    }
}
