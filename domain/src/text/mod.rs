//! User-provided text: CSV quoting, encodings, API keys, and text that is safe to store or to display.

/// The format of an API key.
pub mod key_text;
/// Users' text in messages.
pub mod message_text;
/// Validation of the quotation marks in CSV and TSV files.
pub mod quotes;
/// Text that PostgreSQL can store.
pub mod storable;
/// Error messages that are safe to show to a tenant.
pub mod tenant_text;
/// Byte order marks and line endings of text files.
pub mod text_file;
