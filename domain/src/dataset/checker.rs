//! A whole file, checked in constant memory: line by line as it arrives, or row by row where it has no lines.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{KEPT_DEFECTS, MAX_LINE_BYTES, Row, RowDefect, RowFormat, Shape, read};
use crate::text::text_file::without_mark;

/// What a sound file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// The format of every row.
    pub format: RowFormat,
    /// How every row is written.
    pub shape: Shape,
    /// How many rows.
    pub rows: u64,
    /// The file's size.
    pub bytes: u64,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defects {
    /// The first [`KEPT_DEFECTS`] of them, by line.
    pub first: Vec<RowDefect>,
    /// All of them.
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

/// Checks a file that arrives in pieces of any size. Memory: one line and [`KEPT_DEFECTS`] defects.
#[derive(Debug, Default)]
pub struct RowChecker {
    /// The part of the current line that earlier chunks held.
    held: Vec<u8>,
    /// The current line went over [`MAX_LINE_BYTES`]; the rest of it is passed over.
    overlong: bool,
    /// Lines ended so far.
    lines: u64,
    /// The first of the empty lines just passed, if any; they are a defect only if a row follows.
    blank_since: Option<u64>,
    /// Rows are handed over one by one, so defects speak of rows and not of lines.
    by_rows: bool,
    found: Option<(Shape, RowFormat, u64)>,
    rows: u64,
    bytes: u64,
    first: Vec<RowDefect>,
    total: u64,
}

impl RowChecker {
    /// A checker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next row of a file that is not made of lines: a JSON object. It is handed to `each`, with its number and
    /// shape, if it is sound.
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

    /// Notes that the next row cannot be read at all.
    pub fn refuse_row(&mut self, why: String) {
        self.by_rows = true;
        self.bytes += 1;
        self.lines += 1;
        self.defect(self.lines, why);
    }

    /// Notes that row `number` cannot be read, and nothing behind it.
    pub fn refuse_row_at(&mut self, number: u64, why: String) {
        self.by_rows = true;
        self.bytes += 1;
        self.lines = number;
        self.defect(number, why);
    }

    /// Takes the next bytes of the file.
    pub fn push(&mut self, chunk: &[u8]) {
        self.push_with(chunk, &mut |_, _| {});
    }

    /// Takes the next bytes and hands each sound row, with its line, to `each`.
    pub fn push_with(&mut self, chunk: &[u8], each: &mut impl FnMut(u64, Row)) {
        self.push_shaped(chunk, &mut |line, _, row| each(line, row));
    }

    /// Takes the next bytes and hands each sound row, with its line and shape, to `each`.
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

    /// How many defects so far: a caller may stop early.
    #[must_use]
    pub const fn defects_so_far(&self) -> u64 {
        self.total
    }

    /// The file has ended.
    ///
    /// # Errors
    /// [`Defects`]: at least one line is not a sound row, or there is none.
    pub fn finish(self) -> Result<DatasetFacts, Defects> {
        self.finish_with(&mut |_, _| {})
    }

    /// The file has ended; a last line without a newline goes to `each` like any other.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_with(self, each: &mut impl FnMut(u64, Row)) -> Result<DatasetFacts, Defects> {
        self.finish_shaped(&mut |line, _, row| each(line, row))
    }

    /// As [`Self::finish_with`], with the row's shape.
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
        // One byte of grace for the `\r` of a CRLF.
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
        self.held = line; // keeps its room for the next line
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
