//! Reports on datasets as the API returns them.

use std::collections::BTreeMap;

use attune_text::{
    report::{Lengths, Outcome, Report},
    row_stats::Lines,
};
use serde::Serialize;
use utoipa::ToSchema;

/// A report on a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReportView {
    /// The object type, always `file.report`.
    pub object: &'static str,
    /// The file's ID.
    pub file_id: String,
    /// The name of the base model whose tokenizer was used.
    pub model: Option<String>,
    /// The number of rows.
    pub rows: u64,
    /// The lengths of rows in tokens; `null` without a model.
    pub tokens: Option<TokensView>,
    /// The treatment of rows that are too long; `null` without a model.
    pub over_length: Option<OverLengthView>,
    /// The rows that repeat an earlier row of the file.
    pub duplicates: RepeatsView,
    /// The rows of the validation file that this file contains too; `null` without a validation file.
    pub leakage: Option<LeakageView>,
    /// The rows that look like mistakes, by kind. They are trained on nevertheless.
    pub odd_rows: BTreeMap<String, RowsView>,
    /// The rows that would fail a job; empty without a model.
    pub unusable_rows: UnusableView,
}

/// The lengths of rows in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokensView {
    /// The number of tokens of all rows.
    pub total: u64,
    /// The number of trained tokens.
    pub trained: u64,
    /// The 50th percentile of the rows' lengths.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The length of the longest row.
    pub max: u64,
    /// The number of rows by length; each bin is twice as wide as the one before.
    pub histogram: Vec<StepView>,
}

/// A bin of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct StepView {
    /// The smallest length.
    pub from: u64,
    /// The largest length.
    pub to: u64,
    /// The number of rows with such lengths.
    pub rows: u64,
}

/// The treatment of rows longer than `max_length` tokens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OverLengthView {
    /// The maximum length of a row in tokens.
    pub max_length: u32,
    /// The rows that are longer.
    pub above: RowsView,
    /// The result of each `trainer.over_length` policy. `error`, the default, refuses the job if there are such rows.
    pub policies: BTreeMap<String, OutcomeView>,
}

/// The result of a policy for rows that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutcomeView {
    /// The number of rows that the policy changes.
    pub changed: u64,
    /// The number of rows that result from them.
    pub rows: u64,
    /// The number of tokens that are omitted.
    pub tokens_lost: u64,
    /// The number of omitted tokens that would have been trained.
    pub trained_tokens_lost: u64,
    /// The number of rows without any trained token left: a job is refused for them.
    pub refused: u64,
}

/// A set of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RowsView {
    /// The number of rows.
    pub rows: u64,
    /// The first of the rows, by line, from 1; by row number in files that do not consist of lines.
    pub lines: Vec<u64>,
}

/// Rows that repeat an earlier row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RepeatsView {
    /// The rows with the same text.
    pub exact: RowsView,
    /// The rows with the same text except for case and white space, including the exact repeats.
    pub normalised: RowsView,
    /// `true` if the file has so many rows that these counts are estimated from a sample.
    pub estimated: bool,
}

/// Rows of the validation file that are trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LeakageView {
    /// The validation file's ID.
    pub validation_file: String,
    /// The number of rows of the validation file.
    pub rows: u64,
    /// The rows that the validation file contains too, by their lines in this file.
    #[serde(flatten)]
    pub repeats: RepeatsView,
}

/// Rows that would fail a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UnusableView {
    /// The number of rows.
    pub rows: u64,
    /// The first of the rows.
    pub first: Vec<DefectView>,
}

/// The reason why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DefectView {
    /// The row's line.
    pub line: u64,
    /// A human-readable message.
    pub message: String,
}

impl From<&Lines> for RowsView {
    fn from(lines: &Lines) -> Self {
        Self { rows: lines.count, lines: lines.first.iter().map(|(line, _)| *line).collect() }
    }
}

impl From<&attune_text::repeats::Repeats> for RepeatsView {
    fn from(repeats: &attune_text::repeats::Repeats) -> Self {
        Self { exact: (&repeats.exact).into(), normalised: (&repeats.normalised).into(), estimated: repeats.estimated }
    }
}

impl From<&Lengths> for TokensView {
    fn from(lengths: &Lengths) -> Self {
        let mut histogram: Vec<StepView> = Vec::new();
        for (length, rows) in &lengths.counts {
            let to = length.next_power_of_two();
            match histogram.last_mut() {
                Some(step) if step.to == to => step.rows += rows,
                _ => histogram.push(StepView { from: to / 2 + 1, to, rows: *rows }),
            }
        }
        Self {
            total: lengths.tokens,
            trained: lengths.trained,
            p50: lengths.quantile(0.5),
            p90: lengths.quantile(0.9),
            p99: lengths.quantile(0.99),
            max: lengths.quantile(1.0),
            histogram,
        }
    }
}

impl From<Outcome> for OutcomeView {
    fn from(Outcome { changed, rows, tokens_lost, trained_tokens_lost, refused }: Outcome) -> Self {
        Self { changed, rows, tokens_lost, trained_tokens_lost, refused }
    }
}

impl ReportView {
    /// Creates the view of a file's report, without its leakage. `counted` is the model's name and the maximum length.
    pub fn new(file_id: String, counted: Option<(String, u32)>, report: &Report) -> Self {
        let over_length = counted.as_ref().map(|(_, max_length)| OverLengthView {
            max_length: *max_length,
            above: (&report.too_long).into(),
            policies: report.policies.iter().map(|(name, outcome)| ((*name).to_owned(), (*outcome).into())).collect(),
        });
        let first = report.unusable.iter();
        let first = first.map(|defect| DefectView { line: defect.line, message: defect.message.clone() }).collect();
        Self {
            object: "file.report",
            file_id,
            tokens: counted.is_some().then(|| (&report.lengths).into()),
            model: counted.map(|(model, _)| model),
            rows: report.rows,
            over_length,
            duplicates: (&report.repeats).into(),
            leakage: None,
            odd_rows: report.odd.iter().map(|(what, lines)| ((*what).to_owned(), lines.into())).collect(),
            unusable_rows: UnusableView { rows: report.unusable_count, first },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_has_steps_of_twice_the_length() {
        let lengths =
            Lengths { counts: BTreeMap::from([(1, 1), (2, 2), (3, 4), (4, 8), (5, 16)]), tokens: 0, trained: 0 };
        let steps: Vec<_> = TokensView::from(&lengths).histogram.iter().map(|s| (s.from, s.to, s.rows)).collect();
        assert_eq!(steps, [(1, 1, 1), (2, 2, 2), (3, 4, 12), (5, 8, 16)]);
    }
}
