//! The properties that a user sets for an uploaded file: purpose, name and expiry.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};
use utoipa::ToSchema;

use crate::{error::ApiError, http::path_id::truncated};

/// The range of seconds after which a file may expire. Source: OpenAI's API reference, `expires_after`.
const EXPIRY_SECONDS: std::ops::RangeInclusive<u32> = 3_600..=2_592_000;

/// The purpose of an uploaded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Purpose {
    /// A dataset: every row is checked.
    #[strum(serialize = "fine-tune")]
    FineTune,
    /// The requests of a batch.
    Batch,
    /// Data of the user, which is only stored.
    UserData,
    /// Data of an evaluation, which is only stored.
    Evals,
}

impl Purpose {
    /// Returns OpenAI's name of the purpose.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns the purpose with this name.
    ///
    /// # Errors
    /// The name is unknown, or only the platform creates such files.
    pub fn check(given: &str) -> Result<Self, ApiError> {
        given.parse().map_err(|_| {
            let shown = truncated(given);
            let why = match given {
                "fine-tune-results" | "batch_output" => "only the platform creates such files",
                "assistants" | "assistants_output" | "vision" => "this platform does not use such files",
                _ => "it is unknown",
            };
            let allowed = Self::VARIANTS.join(", ");
            ApiError::invalid("purpose", format!("Invalid 'purpose': '{shown}': {why}; allowed: {allowed}."))
        })
    }
}

/// The expiry of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpiresAfter {
    /// The timestamp from which the seconds count: always `created_at`.
    #[schema(example = "created_at")]
    pub anchor: String,
    /// The number of seconds after the anchor at which the file expires.
    #[schema(minimum = 3600, maximum = 2_592_000)]
    pub seconds: u32,
}

impl ExpiresAfter {
    /// Checks the values of a JSON body.
    ///
    /// # Errors
    /// The anchor is not `created_at`, or the seconds are out of range.
    pub fn check(self) -> Result<Self, ApiError> {
        if self.anchor != "created_at" {
            let shown = truncated(&self.anchor);
            let message = format!("Invalid 'expires_after.anchor': '{shown}'. Use 'created_at'.");
            return Err(ApiError::invalid("expires_after.anchor", message));
        }
        if !EXPIRY_SECONDS.contains(&self.seconds) {
            let message = format!(
                "Invalid 'expires_after.seconds': {} is not a whole number from {} to {}.",
                self.seconds,
                EXPIRY_SECONDS.start(),
                EXPIRY_SECONDS.end()
            );
            return Err(ApiError::invalid("expires_after.seconds", message));
        }
        Ok(self)
    }

    /// Reads the two fields of a form; returns `None` if neither is given.
    ///
    /// # Errors
    /// One is missing, or as [`ExpiresAfter::check`].
    pub fn from_form(anchor: Option<&str>, seconds: Option<&str>) -> Result<Option<Self>, ApiError> {
        let (anchor, seconds) = match (anchor, seconds) {
            (None, None) => return Ok(None),
            (Some(anchor), Some(seconds)) => (anchor.to_owned(), seconds),
            (None, Some(_)) => return Err(incomplete("anchor")),
            (Some(_), None) => return Err(incomplete("seconds")),
        };
        // A text that is not an integer is out of range too.
        let seconds = seconds.parse().map_err(|_| {
            let shown = truncated(seconds);
            let message = format!(
                "Invalid 'expires_after.seconds': '{shown}' is not a whole number from {} to {}.",
                EXPIRY_SECONDS.start(),
                EXPIRY_SECONDS.end()
            );
            ApiError::invalid("expires_after.seconds", message)
        })?;
        Self { anchor, seconds }.check().map(Some)
    }
}

fn incomplete(field: &str) -> ApiError {
    let param = format!("expires_after.{field}");
    let message = format!("Missing required parameter: '{param}'.");
    ApiError::Invalid { param: Some(param), code: "missing_required_parameter", message }
}

/// Checks a file's name.
///
/// # Errors
/// The name is empty, longer than 255 bytes, or has control characters.
pub fn check_filename(param: &str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.len() > 255 || name.contains(char::is_control) {
        return Err(ApiError::invalid(param, "The file's name must be 1 to 255 bytes, without control characters."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_that_cannot_be_is_refused_with_its_reason() {
        for name in Purpose::VARIANTS {
            assert_eq!(Purpose::check(name).unwrap().name(), *name);
        }
        for (given, why) in [
            ("batch_output", "only the platform creates such files"),
            ("vision", "this platform does not use such files"),
            ("fine_tune", "allowed: fine-tune, batch, user_data, evals"),
        ] {
            let refused = Purpose::check(given).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn an_expiry_is_taken_whole_and_in_range() {
        assert_eq!(ExpiresAfter::from_form(None, None).unwrap(), None);
        let taken = ExpiresAfter::from_form(Some("created_at"), Some("3600")).unwrap().unwrap();
        assert_eq!(taken.seconds, 3600);
        for (anchor, seconds, param) in [
            (Some("created_at"), None, "expires_after.seconds"),
            (None, Some("3600"), "expires_after.anchor"),
            (Some("last_active_at"), Some("3600"), "expires_after.anchor"),
            (Some("created_at"), Some("3599"), "expires_after.seconds"),
            (Some("created_at"), Some("2592001"), "expires_after.seconds"),
            (Some("created_at"), Some("-1"), "expires_after.seconds"),
            (Some("created_at"), Some("1e4"), "expires_after.seconds"),
        ] {
            let refused = ExpiresAfter::from_form(anchor, seconds).unwrap_err();
            assert_eq!(refused.body().error.param.as_deref(), Some(param), "{anchor:?} {seconds:?}");
        }
    }

    #[test]
    fn a_name_is_short_and_plain() {
        assert!(check_filename("file", "träin.jsonl").is_ok());
        for name in ["", "a\nb", &"x".repeat(256)] {
            assert!(check_filename("file", name).is_err());
        }
    }
}
