//! A dataset file to token ids. The platform has checked it before; what does not fit here all the same is told line
//! by line, and no row is cut or left out.

use std::{fs::File, io::Read, path::Path};

use attune_domain::dataset::{Defects, KEPT_DEFECTS, Row, RowChecker, RowDefect};
use attune_text::{encode::Example, model::TextModel};

use crate::error::TrainerError;

/// One row, ready to be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainRow {
    /// Its line in the file, from 1.
    pub line: u64,
    /// Its tokens and which of them are trained.
    pub example: Example,
}

/// Reads every row of the file at `path`. `param` names the request's field that the file came from.
///
/// # Errors
/// [`TrainerError::Data`]: lines that are no rows, that have no tokens, or that are longer than `max_length` tokens.
/// [`TrainerError::Node`]: the file cannot be read.
pub fn read_rows(
    path: &Path,
    text: &TextModel,
    max_length: u32,
    param: &'static str,
) -> Result<Vec<TrainRow>, TrainerError> {
    let mut file = File::open(path).map_err(TrainerError::io(path))?;
    let mut reading = Reading { text, max_length: max_length as usize, rows: Vec::new(), defects: Vec::new() };
    let mut checker = RowChecker::new();
    let mut part = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut part).map_err(TrainerError::io(path))?;
        if count == 0 {
            break;
        }
        checker.push_with(&part[..count], &mut |line, row| reading.take(line, &row));
    }
    let checked = checker.finish_with(&mut |line, row| reading.take(line, &row));
    match (checked, reading.defects.is_empty()) {
        (Ok(_), true) => Ok(reading.rows),
        (checked, _) => Err(TrainerError::Data { param, defects: together(checked.err(), reading.defects) }),
    }
}

struct Reading<'a> {
    text: &'a TextModel,
    max_length: usize,
    rows: Vec<TrainRow>,
    defects: Vec<RowDefect>,
}

impl Reading<'_> {
    fn take(&mut self, line: u64, row: &Row) {
        match self.text.encode_row(row) {
            Ok(example) if example.ids.len() > self.max_length => {
                let (length, most) = (example.ids.len(), self.max_length);
                let message = format!("the row has {length} tokens, and max_length is {most}; it is not cut");
                self.defects.push(RowDefect { line, message });
            }
            Ok(example) => self.rows.push(TrainRow { line, example }),
            Err(why) => self.defects.push(RowDefect { line, message: why.to_string() }),
        }
    }
}

fn together(checked: Option<Defects>, ours: Vec<RowDefect>) -> Defects {
    let checked = checked.unwrap_or(Defects { first: Vec::new(), total: 0 });
    let total = checked.total + ours.len() as u64;
    let mut first = [checked.first, ours].concat();
    first.sort_by_key(|defect| defect.line);
    first.truncate(KEPT_DEFECTS);
    Defects { first, total }
}
