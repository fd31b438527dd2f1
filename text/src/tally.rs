//! What a job's policy did to the rows of a file: counts for the plan, and sentences for the user.

use std::fmt::Write;

use attune_domain::{dataset::Defects, spec::WrongFormat};

use crate::encode::Example;

/// How many lines a sentence names; the rest are counted.
pub const NAMED_LINES: usize = 32;

/// What is trained on, counted after the policy has done its work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowFacts {
    /// Rows: what an optimiser step takes some of.
    pub rows: u64,
    /// All tokens.
    pub tokens: u64,
    /// Tokens with a loss.
    pub trained_tokens: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
}

/// Some lines of a file, each with a number that belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// The first [`NAMED_LINES`] of them.
    pub first: Vec<(u64, u64)>,
    /// How many there are.
    pub count: u64,
    /// The sum of their numbers.
    pub sum: u64,
}

/// What was done to the rows of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// What is trained on.
    pub facts: RowFacts,
    /// Rows that were cut off; the number is what they had.
    pub truncated: Lines,
    /// Rows that were left out; the number is what they had.
    pub dropped: Lines,
    /// Rows that became several; the number is how many.
    pub split: Lines,
    /// Rows of which parts were left out, since nothing in them is learnt; the number is how many.
    pub left_out: Lines,
    /// Documents, if they were packed.
    pub documents: u64,
}

/// Why a file's rows cannot be trained on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// Lines that are no rows, or rows that cannot be learnt from.
    #[error("{} cannot be trained on:\n{}", rows(.0.total), .0)]
    Defects(Defects),
    /// Rows above `max_length`, and the policy is to refuse them. The number is what they have.
    #[error("{}", too_long(.lines, *.max_length))]
    TooLong {
        /// Which.
        lines: Lines,
        /// The most that is allowed.
        max_length: u64,
    },
    /// Every row is above `max_length`, and the policy is to drop them.
    #[error(
        "trainer.over_length is drop, and each of its {count} rows is longer than trainer.max_length = {max_length} \
         tokens: none is left"
    )]
    NoneLeft {
        /// How many there were.
        count: u64,
        /// The most that is allowed.
        max_length: u64,
    },
    /// The method does not learn from such rows.
    #[error(transparent)]
    Format(#[from] WrongFormat),
}

impl RowsError {
    /// Whether it is only about length.
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

    /// `lines 4, 9, 17 and 2 more`, each with what `number` makes of its number.
    fn named(&self, number: impl Fn(u64) -> String) -> String {
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
        self.named(|_| String::new())
    }
}

impl Tally {
    pub(crate) fn count(&mut self, examples: &[Example]) {
        let tokens = examples.iter().map(|example| example.ids.len() as u64).sum();
        self.facts.rows += 1;
        self.facts.tokens += tokens;
        self.facts.trained_tokens += examples.iter().map(|example| example.trained_tokens() as u64).sum::<u64>();
        self.facts.longest_row = self.facts.longest_row.max(tokens);
    }

    /// What was done to rows above `max_length`, a sentence each; empty: nothing.
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
            let lines = self.split.named(|kept| format!(" ({})", parts(kept)));
            let (rows, parts) = (were(self.split.count), parts(self.split.sum));
            said.push(format!("{rows} split into {parts} of at most {max_length} tokens: {lines}"));
        }
        if self.left_out.count > 0 {
            let (parts, lines) = (parts(self.left_out.sum), self.left_out.plain());
            said.push(format!("{parts} without a trained token left out: {lines}"));
        }
        said
    }

    /// How documents were packed, if they were.
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
    let named = lines.named(|tokens| format!(" ({tokens} tokens)"));
    format!(
        "{} {are} longer than trainer.max_length = {max_length} tokens: {named}. Nothing is cut unasked: shorten them, \
         raise trainer.max_length, or choose what becomes of them with trainer.over_length",
        rows(lines.count)
    )
}
