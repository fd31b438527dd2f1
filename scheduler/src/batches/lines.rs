//! The lines of a batch's input file, streamed from the object store. Memory: one line.

use std::{ops::Range, pin::Pin};

use attune_domain::{batch::LINE_BYTES, digest::Sha256, text::text_file::without_mark};
use attune_inference::context::Inference;
use attune_store::{
    batches::batch::Batch,
    error::StoreError,
    files::{file, objects::blob_key},
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::batches::error::BatchError;

/// A file, read from its beginning.
pub(crate) struct Lines {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    number: u64,
    /// The bytes of the last line, with its line ending.
    span: Range<u64>,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line's number, from 1, and its text without line ending and byte order mark.
    Text(u64, Vec<u8>),
    /// A line longer than [`LINE_BYTES`]; nothing after it is read.
    TooLong(u64),
}

impl Lines {
    /// Opens the batch's input file, even if its user has deleted it meanwhile.
    ///
    /// # Errors
    /// [`BatchError::InputGone`]: the object is missing. [`BatchError::Failed`]: the store fails.
    pub(crate) async fn open(inference: &Inference, batch: &Batch) -> Result<Self, BatchError> {
        let object = inference.objects.get(&input_key(inference, batch).await?).await.map_err(gone)?;
        Ok(Self::new(Box::pin(BufReader::new(object.into_async_read()))))
    }

    fn new(reader: Pin<Box<dyn AsyncBufRead + Send>>) -> Self {
        Self { reader, number: 0, span: 0..0 }
    }

    /// Returns the place of the last line in the file, for [`read_line`].
    pub(crate) fn span(&self) -> Range<u64> {
        self.span.clone()
    }

    /// Returns the next line that is not blank, or `None` at the end of the file.
    ///
    /// # Errors
    /// [`BatchError::Failed`]: the store fails while the file streams.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, BatchError> {
        loop {
            let mut text = Vec::new();
            let mut limited = (&mut self.reader).take(LINE_BYTES as u64 + 1);
            let count = limited.read_until(b'\n', &mut text).await.map_err(BatchError::internal)?;
            if count == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.span = self.span.end..self.span.end + count as u64;
            if text.len() > LINE_BYTES {
                return Ok(Some(Line::TooLong(self.number)));
            }
            let text = trimmed(&text);
            if !text.trim_ascii_start().is_empty() {
                return Ok(Some(Line::Text(self.number, text.to_vec())));
            }
        }
    }
}

fn trimmed(text: &[u8]) -> &[u8] {
    without_mark(text).trim_ascii_end()
}

/// Returns the object key of the batch's input file.
///
/// # Errors
/// [`BatchError::Failed`]: the store fails.
pub(crate) async fn input_key(inference: &Inference, batch: &Batch) -> Result<String, BatchError> {
    let mut db = inference.tenant(batch.project_id).await?;
    let sha256: Sha256 = file::of_job(&mut db, batch.project_id, batch.input_file_id).await?.sha256;
    Ok(blob_key(sha256))
}

/// Reads one line of the file with this key.
///
/// # Errors
/// As [`Lines::open`].
pub(crate) async fn read_line(inference: &Inference, key: &str, span: Range<u64>) -> Result<Vec<u8>, BatchError> {
    let range = span.start..=span.end.saturating_sub(1);
    let object = inference.objects.get_range(key, range).await.map_err(gone)?;
    let raw = object.collect().await.map_err(|e| StoreError::object("get", key, e))?.into_bytes();
    Ok(trimmed(&raw).to_vec())
}

fn gone(error: StoreError) -> BatchError {
    match error {
        StoreError::NotFound(_) => BatchError::InputGone,
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blank_lines_count_and_are_skipped() {
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(&b"a\r\n\n \nb"[..]);
        let mut lines = Lines::new(reader);
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(1, b"a".to_vec())));
        assert_eq!(lines.span(), 0..3);
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(4, b"b".to_vec())));
        assert_eq!(lines.span(), 6..7);
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn case_08_a_byte_order_mark_before_a_line_is_skipped() {
        let file = "\u{feff}a\r\n\u{feff}b\n\u{feff}\n\u{feff}";
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(file.as_bytes());
        let mut lines = Lines::new(reader);
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(1, b"a".to_vec())));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(2, b"b".to_vec())));
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn limit_a_line_without_end_ends_the_reading() {
        let long: &'static [u8] = vec![b'x'; LINE_BYTES + 7].leak();
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(long);
        assert_eq!(Lines { number: 3, ..Lines::new(reader) }.next().await.unwrap(), Some(Line::TooLong(4)));
    }
}
