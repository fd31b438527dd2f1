//! Readers that fail at a limit, so that a hostile file costs no more than is allowed.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

/// The number of decompressed bytes below which the compression ratio is not checked.
const FREE_BYTES: u64 = 64 << 20;

/// The maximum ratio of decompressed to compressed length, above [`FREE_BYTES`].
const MOST_RATIO: u64 = 200;

/// The maximum number of input bytes of one row, before it is converted to a line.
pub(crate) const RAW_ROW_BYTES: u64 = 8 << 20;

/// A reader that counts the bytes read through it.
pub(crate) struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R> Counted<R> {
    /// Returns the reader and its counter.
    pub(crate) fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let count = Rc::new(Cell::new(0));
        (Self { inner, count: count.clone() }, count)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// A decompressed stream, limited to `most` bytes and to [`MOST_RATIO`] times the compressed length.
pub(crate) struct Unpacked<R> {
    pub(crate) inner: R,
    /// The number of compressed bytes read.
    pub(crate) packed: Rc<Cell<u64>>,
    pub(crate) bytes: u64,
    pub(crate) most: u64,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.bytes += read as u64;
        if self.bytes > self.most {
            return Err(refusal(format!("it decompresses to more than {} bytes, the maximum", self.most)));
        }
        if self.bytes > FREE_BYTES && self.bytes / MOST_RATIO > self.packed.get() {
            return Err(refusal(format!("it decompresses to more than {MOST_RATIO} times its own length")));
        }
        Ok(read)
    }
}

/// A reader that fails when one row takes more than [`RAW_ROW_BYTES`]; the parser reports the end of each row through
/// [`RowEnd`].
pub(crate) struct ByRow<R> {
    inner: R,
    since_row: Rc<Cell<u64>>,
}

/// A handle that reports the end of a row to a [`ByRow`].
pub(crate) struct RowEnd(Rc<Cell<u64>>);

impl RowEnd {
    pub(crate) fn tell(&self) {
        self.0.set(0);
    }

    /// Returns whether reading failed because a row takes more than [`RAW_ROW_BYTES`].
    pub(crate) fn overran(&self) -> bool {
        self.0.get() > RAW_ROW_BYTES
    }
}

impl<R> ByRow<R> {
    pub(crate) fn new(inner: R) -> (Self, RowEnd) {
        let since_row = Rc::new(Cell::new(0));
        (Self { inner, since_row: since_row.clone() }, RowEnd(since_row))
    }
}

impl<R: Read> Read for ByRow<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        let since = self.since_row.get() + read as u64;
        self.since_row.set(since);
        if since > RAW_ROW_BYTES {
            return Err(refusal(format!("a row takes more than {RAW_ROW_BYTES} bytes")));
        }
        Ok(read)
    }
}

/// Returns an error whose message is for the user.
pub(crate) fn refusal(reason: String) -> io::Error {
    io::Error::other(Refusal(reason))
}

/// A message for the user inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_what_unpacks_to_too_much_is_cut_short() {
        let unpacked =
            |most, packed| Unpacked { inner: io::repeat(b'a'), packed: Rc::new(Cell::new(packed)), bytes: 0, most };
        let read = |mut reader: Unpacked<io::Repeat>| io::copy(&mut reader, &mut io::sink()).unwrap_err().to_string();
        assert!(read(unpacked(1 << 20, 1 << 20)).contains("1048576 bytes"));
        assert!(read(unpacked(1 << 40, 1)).contains("200 times"));
    }

    #[test]
    fn a_row_has_an_end() {
        let (mut reader, end) = ByRow::new(io::repeat(b'a'));
        let mut part = vec![0; 1 << 20];
        for _ in 0..20 {
            reader.read_exact(&mut part).unwrap();
            end.tell();
        }
        let refused = (0..9).find_map(|_| reader.read_exact(&mut part).err()).unwrap();
        assert!(refused.to_string().contains("a row takes more than"));
    }
}
