//! The changes of a job's policy to the rows of a file: counts for the plan, and messages for the user.

use std::fmt::Write;

use attune_domain::{
    dataset::{Defects, file_facts::FileFacts},
    spec::WrongFormat,
};

use crate::encode::Example;

/// The number of lines that a message names; the rest are counted.
pub const NAMED_LINES: usize = 32;

/// Lines of a file, each with a number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// The first [`NAMED_LINES`] of them, as pairs of line and number.
    pub first: Vec<(u64, u64)>,
    /// The number of lines.
    pub count: u64,
    /// The sum of their numbers.
    pub sum: u64,
}

/// The changes to the rows of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowStats {
    /// Statistics of the training rows.
    pub facts: FileFacts,
    /// Truncated rows, with their original token counts.
    pub truncated: Lines,
    /// Dropped rows, with their token counts.
    pub dropped: Lines,
    /// Split rows, with the number of parts kept.
    pub split: Lines,
    /// Rows with parts that were dropped because they have no trained token, with the number of those parts.
    pub left_out: Lines,
    /// The number of documents, if they were packed.
    pub documents: u64,
}

/// The reason why a file's rows cannot be trained on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// Lines that are not valid rows, or rows that cannot be trained on.
    #[error("{} cannot be trained on:\n{}", rows(.0.total), .0)]
    Defects(Defects),
    /// Rows above `max_length`, with their token counts, where the policy is to refuse them.
    #[error("{}", too_long(.lines, *.max_length))]
    TooLong {
        /// The lines of the rows.
        lines: Lines,
        /// The maximum number of tokens.
        max_length: u64,
    },
    /// Only rows above `max_length`, where the policy is to drop them.
    #[error(
        "trainer.over_length is drop, and each of its {count} rows is longer than trainer.max_length = {max_length} \
         tokens: no row is left"
    )]
    NoneLeft {
        /// The number of rows dropped.
        count: u64,
        /// The maximum number of tokens.
        max_length: u64,
    },
    /// Rows in a format that the method does not support.
    #[error(transparent)]
    Format(#[from] WrongFormat),
}

impl RowsError {
    /// Returns whether the only cause is the length of rows.
    #[must_use]
    pub const fn is_length(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::NoneLeft { .. })
    }
}

impl Lines {
    pub(crate) fn add(&mut self, line: u64, number: u64) {
        if self.first.len() < NAMED_LINES {
            self.first.push((line, number));
        }
        self.count += 1;
        self.sum += number;
    }

    /// Formats the lines as `lines 4, 9, 17 and 2 more`, each followed by `number` of its number.
    fn format_lines(&self, number: impl Fn(u64) -> String) -> String {
        let mut text = String::from(if self.count == 1 { "line" } else { "lines" });
        for (i, (line, its)) in self.first.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{} {line}{}", if i == 0 { "" } else { "," }, number(*its));
        }
        match self.count - self.first.len() as u64 {
            0 => {}
            more => drop(write!(text, " and {more} more")),
        }
        text
    }

    fn plain(&self) -> String {
        self.format_lines(|_| String::new())
    }
}

impl RowStats {
    pub(crate) fn count(&mut self, examples: &[Example]) {
        let tokens = examples.iter().map(|example| example.ids.len() as u64).sum();
        self.facts.rows += 1;
        self.facts.tokens += tokens;
        self.facts.trained_tokens += examples.iter().map(|example| example.trained_tokens() as u64).sum::<u64>();
        self.facts.longest_row = self.facts.longest_row.max(tokens);
    }

    /// Describes the changes to rows above `max_length`, one message each; empty: no changes.
    #[must_use]
    pub fn changes(&self, max_length: u32) -> Vec<String> {
        let mut said = Vec::new();
        if self.truncated.count > 0 {
            let (rows, lines) = (were(self.truncated.count), self.truncated.plain());
            said.push(format!("{rows} truncated to {max_length} tokens: {lines}"));
        }
        if self.dropped.count > 0 {
            let (rows, lines) = (were(self.dropped.count), self.dropped.plain());
            said.push(format!("{rows} dropped for more than {max_length} tokens: {lines}"));
        }
        if self.split.count > 0 {
            let lines = self.split.format_lines(|kept| format!(" ({})", parts(kept)));
            let (rows, parts) = (were(self.split.count), parts(self.split.sum));
            said.push(format!("{rows} split into {parts} of at most {max_length} tokens: {lines}"));
        }
        if self.left_out.count > 0 {
            let (parts, lines) = (parts(self.left_out.sum), self.left_out.plain());
            said.push(format!("{parts} without a trained token left out: {lines}"));
        }
        said
    }

    /// Describes how documents were packed; `None`: no packing.
    #[must_use]
    pub fn packing(&self, max_length: u32) -> Option<String> {
        let rows = self.facts.rows;
        let documents = self.documents;
        (documents > 0)
            .then(|| format!("{documents} documents were packed into {rows} sequences of at most {max_length} tokens"))
    }
}

fn rows(count: u64) -> String {
    if count == 1 { "1 row".into() } else { format!("{count} rows") }
}

fn parts(count: u64) -> String {
    if count == 1 { "1 part".into() } else { format!("{count} parts") }
}

fn were(count: u64) -> String {
    if count == 1 { "1 row was".into() } else { format!("{count} rows were") }
}

fn too_long(lines: &Lines, max_length: u64) -> String {
    let are = if lines.count == 1 { "is" } else { "are" };
    let named = lines.format_lines(|tokens| format!(" ({tokens} tokens)"));
    format!(
        "{} {are} longer than trainer.max_length = {max_length} tokens: {named}. Shorten them, raise \
         trainer.max_length, or set trainer.over_length to truncate, drop or split",
        rows(lines.count)
    )
}
