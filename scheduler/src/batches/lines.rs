//! The lines of a batch's input file, streamed from the object store. Memory: one line.

use std::pin::Pin;

use attune_domain::{batch::LINE_BYTES, digest::Sha256, text::text_file::without_mark};
use attune_inference::context::Inference;
use attune_store::{
    batches::batch::Batch,
    files::{file, objects::blob_key},
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::batches::error::BatchError;

/// A file, read from its beginning.
pub(crate) struct Lines {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    number: u64,
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
    /// [`BatchError::Failed`]: the store fails, or the object is missing.
    pub(crate) async fn open(inference: &Inference, batch: &Batch) -> Result<Self, BatchError> {
        let sha256 = sha256(inference, batch).await?;
        let object = inference.objects.get(&blob_key(sha256)).await?;
        Ok(Self { reader: Box::pin(BufReader::new(object.into_async_read())), number: 0 })
    }

    /// Returns the next line that is not blank, or `None` at the end of the file.
    ///
    /// # Errors
    /// [`BatchError::Failed`]: the store fails while the file streams.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, BatchError> {
        loop {
            let mut text = Vec::new();
            let mut limited = (&mut self.reader).take(LINE_BYTES as u64 + 1);
            if limited.read_until(b'\n', &mut text).await.map_err(BatchError::internal)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if text.len() > LINE_BYTES {
                return Ok(Some(Line::TooLong(self.number)));
            }
            let text = without_mark(&text).trim_ascii_end();
            if !text.trim_ascii_start().is_empty() {
                return Ok(Some(Line::Text(self.number, text.to_vec())));
            }
        }
    }
}

async fn sha256(inference: &Inference, batch: &Batch) -> Result<Sha256, BatchError> {
    let mut db = inference.tenant(batch.project_id).await?;
    Ok(file::of_job(&mut db, batch.project_id, batch.input_file_id).await?.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blank_lines_count_and_are_skipped() {
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(&b"a\r\n\n \nb"[..]);
        let mut lines = Lines { reader, number: 0 };
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(1, b"a".to_vec())));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(4, b"b".to_vec())));
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn case_08_a_byte_order_mark_before_a_line_is_skipped() {
        let file = "\u{feff}a\r\n\u{feff}b\n\u{feff}\n\u{feff}";
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(file.as_bytes());
        let mut lines = Lines { reader, number: 0 };
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(1, b"a".to_vec())));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Text(2, b"b".to_vec())));
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn limit_a_line_without_end_ends_the_reading() {
        let long: &'static [u8] = vec![b'x'; LINE_BYTES + 7].leak();
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(long);
        assert_eq!(Lines { reader, number: 3 }.next().await.unwrap(), Some(Line::TooLong(4)));
    }
}
