//! The output of the tests that grade predictions: a table with a line for each case, and the figures of the errors.

use std::fmt::Write as _;

use serde_json::json;

use super::setting;

/// A table as CSV.
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new(headings: &str) -> Self {
        Self(headings.to_owned())
    }

    /// Prints a line and adds it.
    pub(crate) fn add(&mut self, line: &str) {
        println!("{line}");
        write!(self.0, "\n{line}").unwrap();
    }

    /// Writes the table to the file that this variable of the environment names, and the figures to that of
    /// `ATTUNE_FIGURES`.
    pub(crate) fn save(self, variable: &str, figures: &str) {
        if let Some(path) = setting(variable) {
            std::fs::write(path, self.0 + "\n").unwrap();
        }
        if let Some(path) = setting("ATTUNE_FIGURES") {
            std::fs::write(path, figures).unwrap();
        }
    }
}

/// Returns the figures of these errors, one JSON object per line: the median and the 95th percentile of their absolute
/// values, with these bars.
pub(crate) fn error_figures(name: &str, errors: &[f64], (median, p95): (f64, f64)) -> String {
    let mut sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let percentile = |share: f64| sizes[((sizes.len() - 1) as f64 * share).ceil() as usize];
    let mut lines = String::new();
    for (figure, value, bar) in [("median_error", percentile(0.5), median), ("p95_error", percentile(0.95), p95)] {
        let line = json!({"figure": format!("{name}_{figure}"), "value": value, "bar": bar, "at_most": true});
        writeln!(lines, "{line}").unwrap();
    }
    lines
}
