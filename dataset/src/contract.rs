//! The child's orders and its verdict. The orders are its only argument; the file is read from standard input, rows are
//! written to standard output, and the verdict is the last line on standard error. Both sides are always of the same
//! release.

use attune_domain::dataset::{Defects, RowFormat, Shape};
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

/// The child's input file and resource limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The file's name: its extension selects the format where the content is ambiguous.
    pub filename: String,
    /// The memory limit, in bytes of address space.
    pub memory_bytes: u64,
    /// The limit of processor time, in seconds.
    pub cpu_seconds: u64,
    /// The maximum length of the file, in bytes.
    pub file_bytes: u64,
    /// The maximum length of its decompressed content, and of its rows, in bytes.
    pub rows_bytes: u64,
}

/// The child's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// All rows are valid.
    Sound(Found),
    /// Some rows are invalid.
    Defects {
        /// `true`: the defects have row numbers; `false`: line numbers.
        by_rows: bool,
        /// The defects.
        defects: Defects,
    },
    /// The file cannot be read at all.
    Refused {
        /// The message for the user, without a full stop.
        reason: String,
    },
}

/// Facts about a valid file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The container format.
    pub container: Container,
    /// The compression, if any.
    pub compression: Option<Compression>,
    /// The shape of its rows.
    pub shape: Shape,
    /// The format of the rows for trainers.
    pub format: RowFormat,
    /// The number of rows.
    pub rows: u64,
    /// `true`: its rows were written to standard output; `false`: trainers read the file itself.
    pub rewritten: bool,
}

/// The container format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Container {
    /// One JSON object per line.
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
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Compression {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Returns the name in SQL and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_one_in_json() {
        for &container in Container::VARIANTS {
            assert_eq!(serde_json::to_value(container).unwrap(), container.name());
        }
        for &compression in Compression::VARIANTS {
            assert_eq!(serde_json::to_value(compression).unwrap(), compression.name());
        }
        assert_eq!((Container::Parquet.name(), Compression::Zstd.name()), ("parquet", "zstd"));
    }
}
