//! The validation of a batch's whole input file: no request is executed before every line is valid.

use std::collections::HashMap;

use attune_domain::batch::{Defect, LINE_BYTES, MOST_ROWS, read_row};
use attune_inference::context::Inference;
use attune_store::batches::batch::Batch;

use crate::batches::{
    error::BatchError,
    lines::{Line, Lines},
};

/// The maximum number of defects that are reported.
const MOST_DEFECTS: usize = 100;

/// Returns the number of requests in the file, or its defects.
///
/// # Errors
/// [`BatchError::Failed`]: the store fails.
pub(crate) async fn check(inference: &Inference, batch: &Batch) -> Result<Result<i32, Vec<Defect>>, BatchError> {
    let mut lines = Lines::open(inference, batch).await?;
    let mut checker = Checker::default();
    while let Some(line) = lines.next().await? {
        if !checker.take(&line, batch.endpoint.path()) {
            break;
        }
    }
    Ok(checker.finish())
}

#[derive(Default)]
struct Checker {
    /// The line number of each `custom_id`.
    ids: HashMap<String, u64>,
    rows: usize,
    defects: Vec<Defect>,
}

impl Checker {
    /// Checks the next line, and returns whether to continue.
    fn take(&mut self, line: &Line, endpoint: &str) -> bool {
        let (number, text) = match line {
            Line::Text(number, text) => (*number, text),
            Line::TooLong(number) => {
                let message = format!("This line is longer than {LINE_BYTES} bytes. The lines after it were not read.");
                self.defects.push(Defect { line: Some(*number), ..Defect::of_file("line_too_long", message) });
                return false;
            }
        };
        self.rows += 1;
        if self.rows > MOST_ROWS {
            let message = format!("The file has more than {MOST_ROWS} requests.");
            self.defects.push(Defect::of_file("too_many_requests", message));
            return false;
        }
        match read_row(text, number, endpoint) {
            Err(defect) => self.defects.push(defect),
            Ok(row) => match self.ids.get(&row.custom_id) {
                Some(first) => {
                    let message = format!("The custom_id '{}' is already used in line {first}.", row.custom_id);
                    self.defects.push(Defect::of_line(number, "duplicate_custom_id", Some("custom_id"), message));
                }
                None => drop(self.ids.insert(row.custom_id, number)),
            },
        }
        self.defects.len() < MOST_DEFECTS
    }

    fn finish(mut self) -> Result<i32, Vec<Defect>> {
        if self.rows == 0 && self.defects.is_empty() {
            self.defects.push(Defect::of_file("empty_file", "The file has no requests."));
        }
        if self.defects.is_empty() { Ok(i32::try_from(self.rows).unwrap_or(i32::MAX)) } else { Err(self.defects) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> Line {
        let text =
            format!(r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/completions", "body": {{"model": "m"}}}}"#);
        Line::Text(1, text.into_bytes())
    }

    fn codes(lines: &[Line]) -> Vec<String> {
        let mut checker = Checker::default();
        for line in lines {
            checker.take(line, "/v1/completions");
        }
        checker.finish().err().unwrap_or_default().into_iter().map(|defect| defect.code).collect()
    }

    #[test]
    fn a_file_is_taken_whole_or_refused_with_its_lines() {
        assert!(codes(&[row("a"), row("b")]).is_empty());
        assert_eq!(codes(&[]), ["empty_file"]);
        assert_eq!(codes(&[row("a"), row("b"), row("a")]), ["duplicate_custom_id"]);
        assert_eq!(
            codes(&[row("a"), Line::Text(2, b"{".to_vec()), Line::TooLong(3)]),
            ["invalid_json_line", "line_too_long"]
        );
    }

    #[test]
    fn limit_a_batch_has_at_most_so_many_requests() {
        let mut checker = Checker { rows: MOST_ROWS - 1, ..Checker::default() };
        assert!(checker.take(&row("a"), "/v1/completions"));
        assert!(!checker.take(&row("b"), "/v1/completions"));
        assert_eq!(checker.finish().unwrap_err()[0].code, "too_many_requests");
    }

    #[test]
    fn limit_the_check_of_a_batch_ends_at_the_first_hundred_defects() {
        let mut checker = Checker::default();
        let taken = (0..MOST_DEFECTS + 5).take_while(|_| checker.take(&Line::Text(1, b"{".to_vec()), "/")).count();
        assert_eq!((taken + 1, checker.finish().unwrap_err().len()), (MOST_DEFECTS, MOST_DEFECTS));
    }
}
