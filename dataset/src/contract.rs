//! The child's orders and its answer. Orders are the one argument; the file comes on standard input, rows leave on
//! standard output, and the answer is the last line on standard error. Both sides are always of one release.

use attune_domain::dataset::{Defects, RowFormat, Shape};
use serde::{Deserialize, Serialize};

/// What the child is to do, and how much it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The file's name: its ending tells what its content may leave open.
    pub filename: String,
    /// Memory, in bytes of address space.
    pub memory_bytes: u64,
    /// Processor time.
    pub cpu_seconds: u64,
    /// The file's length, at most.
    pub file_bytes: u64,
    /// The length of what it unpacks to, and of its rows, at most.
    pub rows_bytes: u64,
}

/// What the child found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Every row is sound.
    Sound(Found),
    /// Some rows are not.
    Defects {
        /// Whether their numbers count rows; otherwise lines.
        by_rows: bool,
        /// Which, and why.
        defects: Defects,
    },
    /// The file cannot be read at all.
    Refused {
        /// A sentence for the user, without a full stop.
        reason: String,
    },
}

/// A sound file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What it is made of.
    pub container: Container,
    /// What is around it.
    pub compression: Option<Compression>,
    /// How its rows are written.
    pub shape: Shape,
    /// What is made of them.
    pub format: RowFormat,
    /// How many.
    pub rows: u64,
    /// Whether its rows left on standard output; otherwise the file is what trainers read.
    pub rewritten: bool,
}

/// What a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Container {
    /// One JSON object a line.
    Jsonl,
    /// One JSON list of objects.
    Json,
    /// Comma-separated values under a header.
    Csv,
    /// Tab-separated values under a header.
    Tsv,
    /// Parquet.
    Parquet,
}

impl Container {
    /// The word in SQL and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Parquet => "parquet",
        }
    }
}

/// What a file is packed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The word in SQL and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}
