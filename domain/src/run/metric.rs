//! Named metrics: values that the trainer computes and users read. No state of a job depends on them, so a new one
//! needs no change between its computation and the job's events.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;
use strum::{EnumString, IntoStaticStr, VariantArray};

/// The name of a metric in a trainer's report and in the `data` of a job's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, EnumString, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum MetricName {
    /// The number of completed epochs, with fraction.
    Epoch,
    /// The share of a step's trained tokens that the model ranked as the most likely token.
    TrainMeanTokenAccuracy,
    /// The learning rate of the step.
    LearningRate,
    /// Global gradient norm before clipping.
    GradNorm,
    /// The share of the validation file's trained tokens that the model ranked as the most likely token.
    ValidMeanTokenAccuracy,
}

impl MetricName {
    /// Returns the name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A column of a job's result file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The column's heading.
    pub heading: &'static str,
    /// The key of its value in the `data` of the job's events.
    pub key: &'static str,
}

/// Returns the columns of a job's result file after `step`, in order.
#[must_use]
pub fn result_columns() -> [Column; 4] {
    [
        Column { heading: "train_loss", key: "train_loss" },
        Column { heading: "train_accuracy", key: MetricName::TrainMeanTokenAccuracy.name() },
        Column { heading: "valid_loss", key: "valid_loss" },
        Column { heading: "valid_mean_token_accuracy", key: MetricName::ValidMeanTokenAccuracy.name() },
    ]
}

/// Reads the metrics with known names. A trainer of another release may report others, which are ignored.
pub(crate) fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<MetricName, f64>, D::Error> {
    let mut known = BTreeMap::new();
    for (name, value) in BTreeMap::<String, Value>::deserialize(deserializer)? {
        if let Ok(name) = name.parse::<MetricName>() {
            known.insert(name, f64::deserialize(value).map_err(D::Error::custom)?);
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::names::{assert_names_read_back, assert_serialized_by_name};

    #[test]
    fn each_metric_has_one_name() {
        assert_names_read_back::<MetricName>();
        assert_serialized_by_name::<MetricName>();
    }

    #[test]
    fn metrics_with_unknown_names_are_ignored() {
        let read = known(json!({"grad_norm": 0.1, "perplexity": "high", "epoch": 2})).unwrap();
        assert_eq!(read, BTreeMap::from([(MetricName::GradNorm, 0.1), (MetricName::Epoch, 2.0)]));
        assert!(known(json!({"grad_norm": null})).is_err());
    }
}
