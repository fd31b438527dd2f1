//! Texts of users: quotation marks, encodings, keys, and what may be stored or shown.

/// The text of an API key.
pub mod key_text;
/// Quotation marks of tables.
pub mod quotes;
/// Text as PostgreSQL can hold it.
pub mod storable;
/// What a tenant may read of an error.
pub mod tenant_text;
/// Byte order marks and line ends of text files.
pub mod text_file;
