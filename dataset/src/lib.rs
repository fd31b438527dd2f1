//! The conversion of a dataset in any supported format to rows as trainers read them, one JSON object per line.
//!
//! Parsers of containers and compressions are the attack surface for hostile files, so all of this runs in a child
//! process with limits on memory, processor time and output ([`child`]), without access to the database, the network or
//! secrets. `attune_domain::dataset` defines the allowed content of a row. The modules are listed in reading order.

/// The contract between the child and its parent: orders and verdict.
pub mod contract;

/// The child process.
pub mod child;

/// Detection of container and compression, from a file's content and name.
mod source;

/// Readers that fail at a limit.
mod bounded;

/// The output of checked rows.
mod sink;

/// JSON: lines, or one list.
mod json;

/// Strict validation of quotation marks in CSV and TSV.
mod quotes;

/// Comma- or tab-separated values.
mod delimited;

/// Parquet.
mod columns;
