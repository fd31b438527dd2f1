//! Quotation marks of tables, held to what Python's `csv` takes with `strict=True`.
//!
//! Readers of records are lenient: a mark that opens and never closes swallows the rest of the table into one cell, and
//! text behind a closing mark is added to the cell. Either would be learnt as part of an answer, so the bytes are looked at
//! on their way to the reader, and the row where the mark opens is named.
//!
//! Source: `parse_process_char` in CPython's `Modules/_csv.c`, with the dialects `excel` and `excel-tab`.

use std::fmt;

/// Where in a table, between two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a record's first byte.
    RecordStart,
    CellStart,
    PlainCell,
    QuotedCell,
    /// Behind a mark in a quoted cell: it closes the cell, or is the first of two.
    Mark,
}

/// A row whose quotation marks are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// Records before it: the row's number under a header; 0 is the header itself.
    pub row: u64,
    /// Text follows a closing mark; otherwise the mark that opens is never closed.
    pub text_behind: bool,
}

impl fmt::Display for Stray {
    /// A sentence for the user, without the row.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text_behind {
            "text follows the quotation mark that closes a cell"
        } else {
            "a quotation mark opens a cell here and is never closed"
        })?;
        f.write_str("; quote the whole cell, and write a quotation mark that is text as two")
    }
}

/// Looks at a table's bytes as they come. A UTF-8 byte order mark at the table's beginning must be left out.
#[derive(Debug)]
pub struct Quotes {
    delimiter: u8,
    place: Place,
    records: u64,
}

impl Quotes {
    /// Quotes of a table whose cells are parted by `delimiter`.
    #[must_use]
    pub const fn new(delimiter: u8) -> Self {
        Self { delimiter, place: Place::RecordStart, records: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The place in `bytes` of the first that must not be there, and its row.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), (usize, Stray)> {
        for (i, byte) in bytes.iter().enumerate() {
            if !self.step(*byte) {
                return Err((i, Stray { row: self.row(), text_behind: true }));
            }
        }
        Ok(())
    }

    /// The row of the quoted cell in which the bytes end so far.
    #[must_use]
    pub fn open_row(&self) -> Option<u64> {
        (self.place == Place::QuotedCell).then(|| self.row())
    }

    /// Ends the table.
    ///
    /// # Errors
    /// A quoted cell is still open.
    pub fn finish(&self) -> Result<(), Stray> {
        self.open_row().map_or(Ok(()), |row| Err(Stray { row, text_behind: false }))
    }

    const fn row(&self) -> u64 {
        self.records.saturating_sub(1)
    }

    /// Takes one byte; `false`: it must not be there.
    fn step(&mut self, byte: u8) -> bool {
        let ends = matches!(byte, b'\n' | b'\r');
        if self.place == Place::RecordStart && !ends {
            self.records += 1;
        }
        self.place = match (self.place, byte) {
            (Place::QuotedCell, b'"') => Place::Mark,
            (Place::QuotedCell, _) | (Place::RecordStart | Place::CellStart | Place::Mark, b'"') => Place::QuotedCell,
            _ if ends => Place::RecordStart,
            _ if byte == self.delimiter => Place::CellStart,
            (Place::Mark, _) => return false,
            _ => Place::PlainCell,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str, delimiter: u8) -> Option<(u64, bool)> {
        let mut quotes = Quotes::new(delimiter);
        let found = table.as_bytes().chunks(3).find_map(|chunk| quotes.take(chunk).err().map(|(_, stray)| stray));
        found.or_else(|| quotes.finish().err()).map(|stray| (stray.row, stray.text_behind))
    }

    /// What `csv.reader(io.StringIO(table, newline=""), strict=True)` of Python 3.11 says of each.
    #[test]
    fn case_07_marks_are_judged_as_pythons_strict_reader_judges_them() {
        for (table, found) in [
            ("a,b\n1,2\n", None),
            ("a,b\n\"1\",\"2\"\"3\"\n", None),
            ("a,b\n\"1\n2\",3", None),
            ("a,b\n1\"2,3\"4\n", None),
            ("a,b\n \"1\",2\n", None),
            ("a,b\n1,\"\"\n", None),
            ("a,b\n\n\"1\"\r\n\r\n\"2\"\r\"3\"", None),
            ("a,b\n1,\"2", Some((1, false))),
            ("a,b\n1,2\n3,\"4\n5,6\n", Some((2, false))),
            ("a,b\n1,\"2\"\"", Some((1, false))),
            ("a,b\n\"1\" 2,3\n", Some((1, true))),
            ("a,b\n\n1,2\n3,\"4\n5\" 6\n", Some((2, true))),
            ("\"a\"b,c\n", Some((0, true))),
            ("\"a,b\n1,2\n", Some((0, false))),
        ] {
            assert_eq!(check(table, b','), found, "{table:?}");
            assert_eq!(check(&table.replace(',', "\t"), b'\t'), found, "{table:?} with tabs");
        }
    }
}
