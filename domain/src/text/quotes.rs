//! Validation of the quotation marks in CSV and TSV files, equivalent to Python's `csv` with `strict=True`.
//!
//! CSV readers are lenient: a quotation mark that opens and never closes puts the rest of the file into one cell, and
//! text after a closing mark is appended to the cell. Either would be trained on as part of an answer, so the bytes are
//! checked before they reach the reader, and the error names the row in which the mark opens.
//!
//! Source: `parse_process_char` in CPython's `Modules/_csv.c`, with the dialects `excel` and `excel-tab`.

use std::fmt;

use crate::text::text_file::UTF8_MARK;

/// The parser's state between two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a record's first byte.
    RecordStart,
    CellStart,
    PlainCell,
    QuotedCell,
    /// After a quotation mark in a quoted cell: it closes the cell, or is the first of two.
    Mark,
    /// After this many bytes of a byte order mark at the beginning of a record.
    ByteOrderMark(usize),
}

/// The kind of a quoting error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The mark opens a cell that is never closed.
    NeverClosed,
    /// Text follows a closing mark.
    TextBehind,
    /// The mark follows a byte order mark: a second, concatenated file begins here, and its marks would be read as
    /// text.
    JoinedTable,
}

/// A row with a quoting error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// The number of records before it: the row's number under a header; 0 is the header itself.
    pub row: u64,
    /// The kind of the error.
    pub fault: Fault,
}

/// The message for a row at which a second, concatenated file begins.
pub const JOINED_TABLE: &str = "it begins with a byte order mark: another file was appended here; append only its rows";

impl fmt::Display for Stray {
    /// Writes the message for the user, without the row.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.fault {
            Fault::TextBehind => "text follows the quotation mark that closes a cell",
            Fault::NeverClosed => "a quotation mark opens a cell here and is never closed",
            Fault::JoinedTable => return f.write_str(JOINED_TABLE),
        })?;
        f.write_str("; quote the whole cell, and double each quotation mark inside it")
    }
}

/// A validator for a file's bytes as they arrive. The caller removes a UTF-8 byte order mark at the file's beginning.
#[derive(Debug)]
pub struct Quotes {
    delimiter: u8,
    place: Place,
    records: u64,
}

impl Quotes {
    /// Returns a validator for cells separated by `delimiter`.
    #[must_use]
    pub const fn new(delimiter: u8) -> Self {
        Self { delimiter, place: Place::RecordStart, records: 0 }
    }

    /// Validates the next bytes.
    ///
    /// # Errors
    /// The index in `bytes` of the first invalid byte, and its row.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), (usize, Stray)> {
        for (i, byte) in bytes.iter().enumerate() {
            self.step(*byte).map_err(|fault| (i, Stray { row: self.row(), fault }))?;
        }
        Ok(())
    }

    /// Returns the row of a quoted cell that is still open.
    #[must_use]
    pub fn open_row(&self) -> Option<u64> {
        (self.place == Place::QuotedCell).then(|| self.row())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`Stray`] if a quoted cell is still open.
    pub fn finish(&self) -> Result<(), Stray> {
        self.open_row().map_or(Ok(()), |row| Err(Stray { row, fault: Fault::NeverClosed }))
    }

    const fn row(&self) -> u64 {
        self.records.saturating_sub(1)
    }

    /// Processes one byte, or returns the reason why it is invalid.
    fn step(&mut self, byte: u8) -> Result<(), Fault> {
        let ends = matches!(byte, b'\n' | b'\r');
        if self.place == Place::RecordStart && !ends {
            self.records += 1;
        }
        self.place = match (self.place, byte) {
            (Place::QuotedCell, b'"') => Place::Mark,
            (Place::QuotedCell, _) | (Place::RecordStart | Place::CellStart | Place::Mark, b'"') => Place::QuotedCell,
            _ if ends => Place::RecordStart,
            _ if byte == self.delimiter => Place::CellStart,
            (Place::Mark, _) => return Err(Fault::TextBehind),
            (Place::ByteOrderMark(3), b'"') => return Err(Fault::JoinedTable),
            (Place::RecordStart, _) if byte == UTF8_MARK[0] => Place::ByteOrderMark(1),
            (Place::ByteOrderMark(seen), _) if UTF8_MARK.get(seen) == Some(&byte) => Place::ByteOrderMark(seen + 1),
            _ => Place::PlainCell,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str, delimiter: u8) -> Option<(u64, Fault)> {
        let mut quotes = Quotes::new(delimiter);
        let found = table.as_bytes().chunks(3).find_map(|chunk| quotes.take(chunk).err().map(|(_, stray)| stray));
        found.or_else(|| quotes.finish().err()).map(|stray| (stray.row, stray.fault))
    }

    /// The results of `csv.reader(io.StringIO(table, newline=""), strict=True)` of Python 3.11 for each.
    #[test]
    fn case_07_marks_are_checked_as_pythons_strict_reader_checks_them() {
        for (table, found) in [
            ("a,b\n1,2\n", None),
            ("a,b\n\"1\",\"2\"\"3\"\n", None),
            ("a,b\n\"1\n2\",3", None),
            ("a,b\n1\"2,3\"4\n", None),
            ("a,b\n \"1\",2\n", None),
            ("a,b\n1,\"\"\n", None),
            ("a,b\n\n\"1\"\r\n\r\n\"2\"\r\"3\"", None),
            ("a,b\n1,\"2", Some((1, Fault::NeverClosed))),
            ("a,b\n1,2\n3,\"4\n5,6\n", Some((2, Fault::NeverClosed))),
            ("a,b\n1,\"2\"\"", Some((1, Fault::NeverClosed))),
            ("a,b\n\"1\" 2,3\n", Some((1, Fault::TextBehind))),
            ("a,b\n\n1,2\n3,\"4\n5\" 6\n", Some((2, Fault::TextBehind))),
            ("\"a\"b,c\n", Some((0, Fault::TextBehind))),
            ("\"a,b\n1,2\n", Some((0, Fault::NeverClosed))),
        ] {
            assert_eq!(check(table, b','), found, "{table:?}");
            assert_eq!(check(&table.replace(',', "\t"), b'\t'), found, "{table:?} with tabs");
        }
    }

    /// Python reads these marks as text; in concatenated files they belong to the second file.
    #[test]
    fn case_08_a_quoted_cell_behind_a_byte_order_mark_begins_a_second_table() {
        for (table, found) in [
            ("a,b\n\u{feff}\"1\",2\n", Some((1, Fault::JoinedTable))),
            ("a,b\n1,2\n\u{feff}\"\"", Some((2, Fault::JoinedTable))),
            ("a,b\n\u{feff}1,\"2\"\n", None),
            ("a,b\n1,\u{feff}\"2\n", None),
            ("a,b\n\"\u{feff}\"\"1\",2\n", None),
            ("a,b\n\u{feff}\n\"1\",2\n", None),
            ("a,b\n\u{fefe}\"1,2\n", None),
        ] {
            assert_eq!(check(table, b','), found, "{table:?}");
        }
    }
}
