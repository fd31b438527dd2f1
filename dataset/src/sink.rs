//! The output of checked rows: one JSON object per line, unless the file itself already has that form.

use std::io::{self, Write};

use attune_domain::dataset::{DatasetFacts, Defects, KEPT_DEFECTS, MAX_LINE_BYTES, Row, RowDefect, Shape};

use crate::bounded::refusal;

/// The writer of rows.
pub(crate) struct Sink<W> {
    out: W,
    /// `true`: the file's own lines are rows as trainers read them, unless their shape differs.
    verbatim: bool,
    written: u64,
    most: u64,
    rewritten: bool,
    line: Vec<u8>,
    too_long: Vec<RowDefect>,
    too_long_count: u64,
    failed: Option<io::Error>,
}

impl<W: Write> Sink<W> {
    /// Returns a sink that writes at most `most` bytes; with `verbatim`, it writes nothing for rows in a canonical
    /// shape.
    pub(crate) fn new(out: W, verbatim: bool, most: u64) -> Self {
        Self {
            out,
            verbatim,
            written: 0,
            most,
            rewritten: false,
            line: Vec::new(),
            too_long: Vec::new(),
            too_long_count: 0,
            failed: None,
        }
    }

    /// Writes a valid row.
    pub(crate) fn take(&mut self, number: u64, shape: Shape, row: &Row) {
        if self.failed.is_some() || self.verbatim && shape.is_canonical() {
            return;
        }
        if let Err(error) = self.write(number, row) {
            self.failed = Some(error);
        }
    }

    fn write(&mut self, number: u64, row: &Row) -> io::Result<()> {
        self.rewritten = true;
        self.line.clear();
        serde_json::to_writer(&mut self.line, row)?;
        if self.line.len() > MAX_LINE_BYTES {
            self.too_long_count += 1;
            if self.too_long.len() < KEPT_DEFECTS {
                let message = format!("the row takes more than {MAX_LINE_BYTES} bytes as a line of JSON");
                self.too_long.push(RowDefect { line: number, message });
            }
            return Ok(());
        }
        self.line.push(b'\n');
        self.written += self.line.len() as u64;
        if self.written > self.most {
            return Err(refusal(format!("its rows take more than {} bytes, the maximum", self.most)));
        }
        self.out.write_all(&self.line)
    }

    /// Returns the error after which reading further is useless, if any.
    pub(crate) fn failure(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Ends the output; the inner error is for the user. Returns whether any row was written.
    pub(crate) fn finish(
        mut self,
        checked: Result<DatasetFacts, Defects>,
    ) -> io::Result<Result<(DatasetFacts, bool), Defects>> {
        self.failure()?;
        self.out.flush()?;
        if self.too_long_count == 0 {
            return Ok(checked.map(|facts| (facts, self.rewritten)));
        }
        let found = checked.err().unwrap_or(Defects { first: Vec::new(), total: 0 });
        let mut first = [found.first, self.too_long].concat();
        first.sort_by_key(|defect| defect.line);
        first.truncate(KEPT_DEFECTS);
        Ok(Err(Defects { first, total: found.total + self.too_long_count }))
    }
}
