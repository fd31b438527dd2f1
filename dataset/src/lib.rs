//! A dataset in any form that is taken → its rows as trainers read them, one JSON object a line.
//!
//! Readers of containers and compressions are where a hostile file does its harm, so all of this runs in a child process
//! under limits of memory, processor time and output ([`child`]); it knows no database, no network and no secret. What a
//! row may say is `attune_domain::dataset`'s. Read in this order.

/// The child's orders and its answer: the contract with whoever starts it.
pub mod contract;

/// The child itself.
pub mod child;

/// How a file is written: container and compression, by its content and its name.
mod source;

/// Readers that end where a limit is.
mod bounded;

/// Checked rows on their way out.
mod sink;

/// JSON: lines, or one list.
mod json;

/// Quotation marks of tables.
mod quotes;

/// Comma- or tab-separated values.
mod delimited;

/// Parquet.
mod columns;
