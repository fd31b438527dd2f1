//! One pass over a file's rows with the base model's own tokenizer: how many tokens, and which rows cannot be trained on.
//! Blocking, in constant memory; pure but for the bytes that come in.

use std::fmt::Write;

use attune_domain::dataset::{Defects, KEPT_DEFECTS, Row, RowChecker, RowDefect};
use attune_store::job::{FileFacts, JobError};
use attune_text::model::TextModel;

/// A row that is longer than the job allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LongRow {
    line: u64,
    tokens: u64,
}

/// Takes a file's bytes as they come.
pub(super) struct Scan<'a> {
    model: &'a TextModel,
    /// The request's field: `training_file`.
    param: &'static str,
    max_length: u64,
    checker: RowChecker,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    facts: FileFacts,
    defects: Vec<RowDefect>,
    defect_count: u64,
    long: Vec<LongRow>,
    long_count: u64,
}

impl<'a> Scan<'a> {
    /// A scan that has seen nothing.
    pub(super) fn new(model: &'a TextModel, param: &'static str, max_length: u32) -> Self {
        let (checker, tally) = (RowChecker::new(), Tally::default());
        Self { model, param, max_length: max_length.into(), checker, tally }
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let (model, max_length, tally) = (self.model, self.max_length, &mut self.tally);
        self.checker.push_with(piece, &mut |line, row| tally.row(model, max_length, line, &row));
    }

    /// The file has ended.
    ///
    /// # Errors
    /// What is wrong with the file, for its user: the rows by their lines.
    pub(super) fn finish(self) -> Result<FileFacts, JobError> {
        let Self { model, param, max_length, checker, mut tally } = self;
        checker
            .finish_with(&mut |line, row| tally.row(model, max_length, line, &row))
            .map_err(|defects| invalid(param, &defects))?;
        if tally.defect_count > 0 {
            return Err(invalid(param, &Defects { first: tally.defects, total: tally.defect_count }));
        }
        if tally.long_count > 0 {
            return Err(too_long(param, max_length, &tally));
        }
        Ok(tally.facts)
    }
}

impl Tally {
    fn row(&mut self, model: &TextModel, max_length: u64, line: u64, row: &Row) {
        let example = match model.encode_row(row) {
            Ok(example) => example,
            Err(error) => {
                self.defect_count += 1;
                if self.defects.len() < KEPT_DEFECTS {
                    self.defects.push(RowDefect { line, message: error.to_string() });
                }
                return;
            }
        };
        let tokens = example.ids.len() as u64;
        if tokens > max_length {
            self.long_count += 1;
            if self.long.len() < KEPT_DEFECTS {
                self.long.push(LongRow { line, tokens });
            }
        }
        self.facts.rows += 1;
        self.facts.tokens += tokens;
        self.facts.trained_tokens += example.trained_tokens() as u64;
        self.facts.longest_row = self.facts.longest_row.max(tokens);
    }
}

fn invalid(param: &str, defects: &Defects) -> JobError {
    let rows = if defects.total == 1 { "1 row".to_owned() } else { format!("{} rows", defects.total) };
    let message = format!("{param}: {rows} cannot be trained on:\n{defects}");
    JobError { code: format!("invalid_{param}"), message, param: Some(param.to_owned()) }
}

fn too_long(param: &str, max_length: u64, tally: &Tally) -> JobError {
    let rows = if tally.long_count == 1 { "1 row is".to_owned() } else { format!("{} rows are", tally.long_count) };
    let mut message = format!("{param}: {rows} longer than trainer.max_length = {max_length} tokens:");
    for (i, row) in tally.long.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(message, "{comma} line {} ({} tokens)", row.line, row.tokens);
    }
    let more = tally.long_count - tally.long.len() as u64;
    if more > 0 {
        let _ = write!(message, " and {more} more");
    }
    message.push_str(". Nothing is cut: shorten them, or raise trainer.max_length");
    JobError { code: "row_too_long".into(), message, param: Some(param.to_owned()) }
}
