//! The API's errors for rows that cannot be read or trained on.

use attune_dataprep::{base_text::OpenError, blob::ReadError, refusal::Refused};

use crate::error::ApiError;

/// Returns the error for a base model whose tokenizer or template cannot be opened.
pub fn unopened(error: OpenError) -> ApiError {
    match error {
        OpenError::Store(error) => error.into(),
        OpenError::Text(error) => {
            ApiError::invalid("model", format!("The base model's tokenizer or chat template cannot be used: {error}."))
        }
        OpenError::Thread(error) => ApiError::internal(error),
    }
}

/// Returns the error for a file whose content cannot be read. A file that cannot even be opened is an internal error.
pub fn unread(error: ReadError) -> ApiError {
    match error {
        ReadError::Open(error) => ApiError::internal(error),
        ReadError::Broken(error) => error.into(),
        ReadError::Thread(error) => ApiError::internal(error),
    }
}

/// Returns the error for a job's file that the job would refuse.
pub fn refused(refused: Refused) -> ApiError {
    let Refused { code, param, reason } = refused;
    ApiError::Invalid { param: Some(param.into()), code, message: format!("Invalid '{param}': {reason}.") }
}

#[cfg(test)]
mod tests {
    use attune_dataprep::refusal::JobFile;
    use attune_text::row_stats::RowsError;

    use super::*;

    #[test]
    fn a_refused_file_is_named_by_its_field() {
        let error = RowsError::NoneLeft { count: 1, max_length: 4 };
        let body = refused(Refused::file(JobFile::Validation, &error)).body().error;
        assert_eq!((body.param.as_deref(), body.code), (Some("validation_file"), Some("row_too_long")));
        assert_eq!(body.message, format!("Invalid 'validation_file': {error}."));
    }
}
