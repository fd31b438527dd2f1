//! The validation of a whole file in constant memory: line by line as it arrives, or row by row for formats without
//! lines.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{KEPT_DEFECTS, MAX_LINE_BYTES, Row, RowDefect, RowFormat, Shape, read};
use crate::text::text_file::without_mark;

/// Facts about a valid file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// The format of every row.
    pub format: RowFormat,
    /// The shape of every row.
    pub shape: Shape,
    /// The number of rows.
    pub rows: u64,
    /// The file's size.
    pub bytes: u64,
}

/// The defects of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defects {
    /// The first [`KEPT_DEFECTS`] defects, by line.
    pub first: Vec<RowDefect>,
    /// The number of all defects.
    pub total: u64,
}

impl fmt::Display for Defects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, defect) in self.first.iter().enumerate() {
            write!(f, "{}{defect}", if i == 0 { "" } else { "\n" })?;
        }
        match self.total - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more"),
        }
    }
}

impl std::error::Error for Defects {}

/// A validator for a file that arrives in chunks of any size. Memory: one line and [`KEPT_DEFECTS`] defects.
#[derive(Debug, Default)]
pub struct RowChecker {
    /// The part of the current line that earlier chunks contained.
    held: Vec<u8>,
    /// `true`: the current line exceeded [`MAX_LINE_BYTES`]; its remaining bytes are ignored.
    overlong: bool,
    /// The number of complete lines.
    lines: u64,
    /// The first of the preceding empty lines, if any; they are a defect only if a row follows.
    blank_since: Option<u64>,
    /// `true`: the input is single rows, so messages refer to rows instead of lines.
    by_rows: bool,
    found: Option<(Shape, RowFormat, u64)>,
    rows: u64,
    bytes: u64,
    first: Vec<RowDefect>,
    total: u64,
}

impl RowChecker {
    /// Returns a validator without input.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Validates the next row of a file that does not consist of lines: a JSON object. A valid row is passed to `each`,
    /// with its number and shape.
    pub fn take_row(&mut self, json: &[u8], each: &mut impl FnMut(u64, Shape, Row)) {
        self.by_rows = true;
        self.bytes += json.len() as u64;
        self.lines += 1;
        if json.len() > MAX_LINE_BYTES {
            self.defect(self.lines, format!("the row is longer than {MAX_LINE_BYTES} bytes"));
        } else {
            self.row(json, each);
        }
    }

    /// Records that the next row cannot be read at all.
    pub fn refuse_row(&mut self, why: String) {
        self.by_rows = true;
        self.bytes += 1;
        self.lines += 1;
        self.defect(self.lines, why);
    }

    /// Records that row `number` and all later rows cannot be read.
    pub fn refuse_row_at(&mut self, number: u64, why: String) {
        self.by_rows = true;
        self.bytes += 1;
        self.lines = number;
        self.defect(number, why);
    }

    /// Validates the next bytes of the file.
    pub fn push(&mut self, chunk: &[u8]) {
        self.push_with(chunk, &mut |_, _| {});
    }

    /// Validates the next bytes and passes each valid row, with its line number, to `each`.
    pub fn push_with(&mut self, chunk: &[u8], each: &mut impl FnMut(u64, Row)) {
        self.push_shaped(chunk, &mut |line, _, row| each(line, row));
    }

    /// Validates the next bytes and passes each valid row, with its line number and shape, to `each`.
    pub fn push_shaped(&mut self, chunk: &[u8], each: &mut impl FnMut(u64, Shape, Row)) {
        self.bytes += chunk.len() as u64;
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.hold(&rest[..end]);
            self.end_line(each);
            rest = &rest[end + 1..];
        }
        self.hold(rest);
    }

    /// Returns the number of defects so far, for a caller that stops early.
    #[must_use]
    pub const fn defects_so_far(&self) -> u64 {
        self.total
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`Defects`]: at least one line is not a valid row, or the file has no rows.
    pub fn finish(self) -> Result<DatasetFacts, Defects> {
        self.finish_with(&mut |_, _| {})
    }

    /// Ends the file; a last line without a newline is passed to `each` like any other.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_with(self, each: &mut impl FnMut(u64, Row)) -> Result<DatasetFacts, Defects> {
        self.finish_shaped(&mut |line, _, row| each(line, row))
    }

    /// Ends the file like [`Self::finish_with`], and passes the row's shape too.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_shaped(mut self, each: &mut impl FnMut(u64, Shape, Row)) -> Result<DatasetFacts, Defects> {
        if !self.held.is_empty() || self.overlong {
            self.end_line(each);
        }
        if self.total == 0 && self.rows == 0 {
            let message = if self.bytes == 0 { "the file is empty" } else { "the file has no rows" };
            self.defect(1, message.into());
        }
        match self.found {
            Some((shape, format, _)) if self.total == 0 => {
                Ok(DatasetFacts { format, shape, rows: self.rows, bytes: self.bytes })
            }
            _ => Err(Defects { first: self.first, total: self.total }),
        }
    }

    fn hold(&mut self, part: &[u8]) {
        // One extra byte for the `\r` of a CRLF.
        if self.overlong || self.held.len() + part.len() > MAX_LINE_BYTES + 1 {
            self.overlong = true;
            self.held.clear();
        } else {
            self.held.extend_from_slice(part);
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(u64, Shape, Row)) {
        self.lines += 1;
        let mut line = std::mem::take(&mut self.held);
        let overlong = std::mem::take(&mut self.overlong);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if !overlong && without_mark(&line).trim_ascii().is_empty() {
            self.blank_since.get_or_insert(self.lines);
        } else {
            if let Some(blank) = self.blank_since.take() {
                self.defect(blank, "the line is empty, yet rows follow it".into());
            }
            if overlong || line.len() > MAX_LINE_BYTES {
                self.defect(self.lines, format!("the line is longer than {MAX_LINE_BYTES} bytes"));
            } else {
                self.row(&line, each);
            }
        }
        line.clear();
        self.held = line; // reuses its allocation for the next line
    }

    fn row(&mut self, line: &[u8], each: &mut impl FnMut(u64, Shape, Row)) {
        match read(self.lines, line) {
            Err(message) => self.defect(self.lines, message),
            Ok((shape, row)) => {
                let (first, _, since) = *self.found.get_or_insert((shape, row.format(), self.lines));
                if first == shape {
                    self.rows += 1;
                    each(self.lines, shape, row);
                } else {
                    let noun = if self.by_rows { "row" } else { "line" };
                    let row = |shape| format!("{} {shape} row", if shape == Shape::Alpaca { "an" } else { "a" });
                    let mixed = format!("{}, but {noun} {since} is {}; one format per file", row(shape), row(first));
                    self.defect(self.lines, mixed);
                }
            }
        }
    }

    fn defect(&mut self, line: u64, message: String) {
        self.total += 1;
        if self.first.len() < KEPT_DEFECTS {
            self.first.push(RowDefect { line, message });
        }
    }
}
