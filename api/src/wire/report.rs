//! A dataset's report as users see it.

use std::collections::BTreeMap;

use attune_text::{
    report::{Lengths, Outcome, Report},
    tally::Lines,
};
use serde::Serialize;
use utoipa::ToSchema;

/// What a dataset is like.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReportView {
    /// Always `file.report`.
    pub object: &'static str,
    /// The file's id.
    pub file_id: String,
    /// The base model whose tokens were counted.
    pub model: Option<String>,
    /// All rows.
    pub rows: u64,
    /// Lengths in tokens; `null` without a model.
    pub tokens: Option<TokensView>,
    /// What becomes of rows that are too long; `null` without a model.
    pub over_length: Option<OverLengthView>,
    /// Rows that are like an earlier one of the file.
    pub duplicates: RepeatsView,
    /// Rows of the validation file that are in this file too; `null` without one.
    pub leakage: Option<LeakageView>,
    /// Rows that look like mistakes, by what they look like. They are trained on all the same.
    pub odd_rows: BTreeMap<String, RowsView>,
    /// Rows for which a job would fail; empty without a model.
    pub unusable_rows: UnusableView,
}

/// Lengths in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokensView {
    /// Of all rows.
    pub total: u64,
    /// Those that are learnt.
    pub trained: u64,
    /// Half of the rows have no more.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// Ninety-nine of a hundred.
    pub p99: u64,
    /// The longest row.
    pub max: u64,
    /// Rows by length; each step is twice as long as the one before.
    pub histogram: Vec<StepView>,
}

/// A step of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct StepView {
    /// The least length.
    pub from: u64,
    /// The greatest.
    pub to: u64,
    /// Rows of such lengths.
    pub rows: u64,
}

/// What becomes of rows above `max_length` tokens.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OverLengthView {
    /// Tokens of a row, at most.
    pub max_length: u32,
    /// The rows above it.
    pub above: RowsView,
    /// What `trainer.over_length` would do to them. `error`, the default, refuses the job if there are any.
    pub policies: BTreeMap<String, OutcomeView>,
}

/// What a policy does to rows that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutcomeView {
    /// Rows that it changes.
    pub changed: u64,
    /// Rows that come of them.
    pub rows: u64,
    /// Tokens that are left out.
    pub tokens_lost: u64,
    /// Those of them that would have been learnt.
    pub trained_tokens_lost: u64,
    /// Rows of which nothing would be left to learn: a job is refused for them.
    pub refused: u64,
}

/// Some rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RowsView {
    /// How many.
    pub rows: u64,
    /// The first of them, by their lines from 1; in files that are not made of lines, by their numbers.
    pub lines: Vec<u64>,
}

/// Rows that were there before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RepeatsView {
    /// The same text.
    pub exact: RowsView,
    /// The same text but for case and white space, the exact ones too.
    pub normalised: RowsView,
    /// The file has so many rows that these are estimates from a share of them.
    pub estimated: bool,
}

/// Rows of the validation file that are trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LeakageView {
    /// The validation file's id.
    pub validation_file: String,
    /// Its rows.
    pub rows: u64,
    /// Those that are in the other file too, by their lines in this one.
    #[serde(flatten)]
    pub repeats: RepeatsView,
}

/// Rows for which a job would fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UnusableView {
    /// How many.
    pub rows: u64,
    /// The first of them.
    pub first: Vec<DefectView>,
}

/// Why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DefectView {
    /// Its line.
    pub line: u64,
    /// A sentence.
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
    /// What was found in a file, without its leakage. `counted` names the model and the greatest length.
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
