//! Token counts of a whole dataset, in constant memory: what right-sizing and the memory arithmetic ask for.

use attune_domain::dataset::{Defects, KEPT_DEFECTS, Row, RowDefect};
use serde::{Deserialize, Serialize};

use crate::model::TextModel;

/// How many buckets a histogram has: bucket `i` holds rows of up to `2^i` tokens.
const BUCKETS: usize = 32;

/// What is known of a dataset once every row is tokenised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// Rows.
    pub rows: u64,
    /// Tokens of all rows.
    pub tokens_total: u64,
    /// Tokens that the loss is taken on.
    pub trained_tokens: u64,
    /// The longest row; the first of them, if several are as long.
    pub longest_row: LongestRow,
    /// Rows by length.
    pub histogram: Vec<Bucket>,
}

/// Where the longest row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongestRow {
    /// Its line, from 1.
    pub line: u64,
    /// Its tokens.
    pub tokens: u64,
}

/// One bar of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The longest row that falls in, in tokens: a power of two.
    pub up_to: u64,
    /// How many rows do.
    pub rows: u64,
}

/// Counts rows as they come.
#[derive(Debug)]
pub struct TokenScan<'a> {
    model: &'a TextModel,
    facts: TokenFacts,
    lengths: [u64; BUCKETS],
    defects: Defects,
}

impl<'a> TokenScan<'a> {
    /// A scan that has seen nothing.
    #[must_use]
    pub const fn new(model: &'a TextModel) -> Self {
        let longest_row = LongestRow { line: 0, tokens: 0 };
        let facts = TokenFacts { rows: 0, tokens_total: 0, trained_tokens: 0, longest_row, histogram: Vec::new() };
        Self { model, facts, lengths: [0; BUCKETS], defects: Defects { first: Vec::new(), total: 0 } }
    }

    /// Takes the next row.
    pub fn push(&mut self, line: u64, row: &Row) {
        let example = match self.model.encode_row(row) {
            Ok(example) => example,
            Err(e) => {
                self.defects.total += 1;
                if self.defects.first.len() < KEPT_DEFECTS {
                    self.defects.first.push(RowDefect { line, message: e.to_string() });
                }
                return;
            }
        };
        let tokens = example.ids.len() as u64;
        self.facts.rows += 1;
        self.facts.tokens_total += tokens;
        self.facts.trained_tokens += example.trained_tokens() as u64;
        if tokens > self.facts.longest_row.tokens {
            self.facts.longest_row = LongestRow { line, tokens };
        }
        let bucket = tokens.next_power_of_two().trailing_zeros() as usize;
        self.lengths[bucket.min(BUCKETS - 1)] += 1;
    }

    /// All rows have been seen.
    ///
    /// # Errors
    /// [`Defects`]: rows that cannot be trained on with this model.
    pub fn finish(mut self) -> Result<TokenFacts, Defects> {
        if self.defects.total > 0 {
            return Err(self.defects);
        }
        let last = self.lengths.iter().rposition(|rows| *rows > 0).map_or(0, |i| i + 1);
        self.facts.histogram =
            self.lengths[..last].iter().enumerate().map(|(i, rows)| Bucket { up_to: 1 << i, rows: *rows }).collect();
        Ok(self.facts)
    }
}

/// Scans rows that are at hand, each with its line.
///
/// # Errors
/// [`Defects`]: rows that cannot be trained on with this model.
pub fn scan<'r>(model: &TextModel, rows: impl IntoIterator<Item = (u64, &'r Row)>) -> Result<TokenFacts, Defects> {
    let mut scan = TokenScan::new(model);
    for (line, row) in rows {
        scan.push(line, row);
    }
    scan.finish()
}
