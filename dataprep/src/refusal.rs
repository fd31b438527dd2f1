//! Refusals of rows and files, with the codes that the API documents. A refusal reads the same in a preview, in an
//! estimate and in a failed job; each of them adds its own words around the reason.

use attune_text::{row_stats::RowsError, rows::Refusal};

const ROW_TOO_LONG: &str = "row_too_long";

/// A file of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobFile {
    /// The rows that the job trains on.
    Training,
    /// The rows that it measures its loss on.
    Validation,
}

impl JobFile {
    /// Returns the field of the request that names the file.
    #[must_use]
    pub const fn param(self) -> &'static str {
        match self {
            Self::Training => "training_file",
            Self::Validation => "validation_file",
        }
    }
}

/// The refusal of a row or of a file's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The stable code, for programs: `row_too_long`.
    pub code: &'static str,
    /// The field of the request that names the rows.
    pub param: &'static str,
    /// The reason, for the user.
    pub reason: String,
}

impl Refused {
    /// Returns the refusal of a job's file.
    #[must_use]
    pub fn file(file: JobFile, error: &RowsError) -> Self {
        let code = match file {
            _ if error.is_length() => ROW_TOO_LONG,
            JobFile::Training => "invalid_training_file",
            JobFile::Validation => "invalid_validation_file",
        };
        Self { code, param: file.param(), reason: error.to_string() }
    }

    /// Returns the refusal of one of the rows that a preview selects.
    #[must_use]
    pub fn row(refusal: Refusal, max_length: u32) -> Self {
        match refusal {
            Refusal::TooLong(tokens) => Self::selected(
                ROW_TOO_LONG,
                format!(
                    "the row has {tokens} tokens, trainer.max_length is {max_length}, and trainer.over_length is error"
                ),
            ),
            Refusal::Unusable(reason) => Self::invalid_row(reason),
            Refusal::Format(wrong) => Self::invalid_row(wrong.to_string()),
        }
    }

    /// Returns the refusal of a selected row for its content.
    #[must_use]
    pub const fn invalid_row(reason: String) -> Self {
        Self::selected("invalid_row", reason)
    }

    /// Returns a refusal of rows that a preview selects.
    #[must_use]
    pub const fn selected(code: &'static str, reason: String) -> Self {
        Self { code, param: "rows", reason }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::dataset::Defects;

    use super::*;

    #[test]
    fn a_file_is_refused_for_its_length_or_under_its_own_code() {
        let long = RowsError::NoneLeft { count: 1, max_length: 4 };
        let wrong = RowsError::Defects(Defects { first: Vec::new(), total: 1 });
        let codes = |file| [&long, &wrong].map(|error| Refused::file(file, error).code);
        assert_eq!(codes(JobFile::Training), ["row_too_long", "invalid_training_file"]);
        assert_eq!(codes(JobFile::Validation), ["row_too_long", "invalid_validation_file"]);
        let refused = Refused::file(JobFile::Validation, &long);
        assert_eq!((refused.param, refused.reason), ("validation_file", long.to_string()));
    }

    #[test]
    fn a_selected_row_is_refused_with_its_length_or_the_reason() {
        let long = Refused::row(Refusal::TooLong(6), 4);
        let reason = "the row has 6 tokens, trainer.max_length is 4, and trainer.over_length is error";
        assert_eq!(long, Refused { code: "row_too_long", param: "rows", reason: reason.into() });
        let wrong = Refused::row(Refusal::Unusable("no".into()), 4);
        assert_eq!(wrong, Refused { code: "invalid_row", param: "rows", reason: "no".into() });
    }
}
