//! Token counts of a file's rows, as validation stores them and estimates show them.

use serde::{Deserialize, Serialize};

/// Token counts of one file, after the job's policy was applied to its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// The number of rows, the unit of the batch size.
    pub rows: u64,
    /// The number of tokens.
    pub tokens: u64,
    /// The number of tokens with a loss.
    pub trained_tokens: u64,
    /// The number of tokens in the longest row.
    pub longest_row: u64,
}
