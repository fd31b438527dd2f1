//! Shadows: versions that answer copies of a share of an alias's requests.

use attune_domain::traffic::canary::{MAX_SHADOW_PERCENT, MIN_PERCENT};
use attune_store::adapters::adapter_shadow::Shadow;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::canary::whole;
use crate::error::ApiError;

/// The request body for starting a shadow.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewShadow {
    /// A version of the adapter: its number, its ID or its model name.
    #[schema(example = "3")]
    pub version: String,
    /// The share of the alias's requests that the version answers copies of, in percent, from 1 to 100.
    #[schema(minimum = 1, maximum = 100)]
    pub percent: i64,
}

impl NewShadow {
    /// Returns the share, in percent.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: it is out of its range.
    pub fn share(&self) -> Result<u8, ApiError> {
        whole("percent", self.percent, MIN_PERCENT..=MAX_SHADOW_PERCENT)
    }
}

/// A shadow: a version that answers copies of a share of an alias's requests, or did so. Only counts are kept.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ShadowView {
    /// The shadow's ID.
    pub id: String,
    /// The object type, always `adapter.shadow`.
    pub object: &'static str,
    /// The number of the version.
    pub version: i32,
    /// The ID of the version.
    pub adapter_version: String,
    /// The model name of the version.
    pub model: String,
    /// The share of the requests, in percent.
    pub percent: u8,
    /// The number of copies that were answered.
    pub compared: u64,
    /// The number of copies whose answers were the same text.
    pub equal: u64,
    /// The number of copies that failed.
    pub errors: u64,
    /// The number of copies that were not sent: too many were being answered, or the answers were too long.
    pub skipped: u64,
    /// The mean of the copies' answers' length minus that of the requests' answers, in tokens; `null` without copies.
    pub mean_length_difference: Option<f64>,
    /// The tokens of the copies' prompts. Copies are not charged.
    pub input_tokens: u64,
    /// The tokens of the copies' answers. Copies are not charged.
    pub output_tokens: u64,
    /// The start, in Unix seconds.
    pub started_at: i64,
    /// The end, in Unix seconds; `null` while it is active.
    pub ended_at: Option<i64>,
}

impl From<Shadow> for ShadowView {
    fn from(shadow: Shadow) -> Self {
        let counts = shadow.counts;
        let difference = counts.shadow_tokens as f64 - counts.answered_tokens as f64;
        Self {
            id: shadow.adapter_shadow_id.to_string(),
            object: "adapter.shadow",
            version: shadow.version,
            adapter_version: shadow.adapter_version_id.to_string(),
            model: shadow.model_name,
            percent: shadow.percent,
            compared: counts.compared,
            equal: counts.equal,
            errors: counts.errors,
            skipped: counts.skipped,
            mean_length_difference: (counts.compared > 0).then(|| difference / counts.compared as f64),
            input_tokens: counts.input_tokens,
            output_tokens: counts.shadow_tokens,
            started_at: shadow.started_at.timestamp(),
            ended_at: shadow.ended_at.map(|ended| ended.timestamp()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_share_of_a_shadow() {
        let share = |percent| NewShadow { version: "2".into(), percent }.share();
        assert_eq!((share(1).unwrap(), share(100).unwrap()), (1, 100));
        for percent in [0, 101] {
            let message = share(percent).unwrap_err().body().error.message;
            assert_eq!(message, format!("Invalid 'percent': {percent} is not from 1 to 100."));
        }
    }
}
