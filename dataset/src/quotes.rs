//! A filter before the CSV parser that fails at the first invalid quotation mark.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

use attune_domain::text::quotes::{Quotes, Stray};

/// A reader that passes bytes through, and fails at an invalid quotation mark; [`Found`] has the details.
pub(crate) struct StrictQuotes<R> {
    inner: R,
    quotes: Quotes,
    stray: Rc<Cell<Option<Stray>>>,
    open: Rc<Cell<Option<u64>>>,
}

/// The findings of a [`StrictQuotes`].
pub(crate) struct Found {
    stray: Rc<Cell<Option<Stray>>>,
    open: Rc<Cell<Option<u64>>>,
}

impl Found {
    /// Returns the row with an invalid quotation mark.
    pub(crate) fn stray(&self) -> Option<Stray> {
        self.stray.get()
    }

    /// Returns the row of the quoted cell in which reading ended.
    pub(crate) fn open_row(&self) -> Option<u64> {
        self.open.get()
    }
}

impl<R> StrictQuotes<R> {
    pub(crate) fn new(inner: R, delimiter: u8) -> (Self, Found) {
        let (stray, open) = (Rc::new(Cell::new(None)), Rc::new(Cell::new(None)));
        let found = Found { stray: stray.clone(), open: open.clone() };
        (Self { inner, quotes: Quotes::new(delimiter), stray, open }, found)
    }

    fn refuse(&self, stray: Stray) -> io::Error {
        self.stray.set(Some(stray));
        io::Error::other("a stray quotation mark")
    }
}

impl<R: Read> Read for StrictQuotes<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(stray) = self.stray.get() {
            return Err(self.refuse(stray));
        }
        let read = self.inner.read(into)?;
        if read == 0 && !into.is_empty() {
            self.quotes.finish().map_err(|stray| self.refuse(stray))?;
        }
        let taken = self.quotes.take(&into[..read]);
        self.open.set(self.quotes.open_row());
        match taken {
            Ok(()) => Ok(read),
            // The bytes before it are read first: their rows may have defects, too.
            Err((before, stray)) => {
                let error = self.refuse(stray);
                if before > 0 { Ok(before) } else { Err(error) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_before_a_stray_mark_are_read_first() {
        let (mut reader, found) = StrictQuotes::new(&b"a\n1\n\"2\"3\n"[..], b',');
        let mut before = vec![0; 64];
        assert_eq!(reader.read(&mut before).unwrap(), 7);
        assert!(reader.read(&mut before).is_err() && found.stray().is_some());
    }
}
