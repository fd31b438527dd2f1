//! Merged adapters of a request in LoRAX's format.

use attune_domain::{
    serve::{MajoritySign, MergeRule, MergeStrategy},
    text::message_text::truncated,
};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{error::InferenceError, wire::sampling::range};

/// The maximum number of adapters of a merge. All of them are in memory at the same time.
const MOST_MERGED: usize = 8;
/// The largest absolute value of a weight.
const LARGEST_WEIGHT: f64 = 10.0;
/// The smallest density of a strategy that prunes.
const LEAST_DENSITY: f64 = 0.01;
/// The seed of DARE's random values: the same merge is the same adapter, on any replica.
const SEED: u64 = 0;

/// The adapters of a merge.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MergedAdapters {
    /// The names of 1 to 8 fine-tuned models of the base model in the path, of the same rank and scale, without DoRA.
    #[schema(min_items = 1, max_items = 8)]
    pub ids: Vec<String>,
    /// The weights, from -10 to 10, one for each adapter. Default to 1.
    pub weights: Option<Vec<f64>>,
    /// The strategy: `linear` (the default), `ties`, `dare_linear` or `dare_ties`.
    #[schema(example = "ties")]
    pub merge_strategy: Option<String>,
    /// The fraction of the values of each adapter that is kept, from 0.01 to 1, the default. `linear` keeps all.
    pub density: Option<f64>,
    /// The choice of the majority's sign: `total` (the default) or `frequency`.
    #[schema(example = "total")]
    pub majority_sign_method: Option<String>,
}

/// The checked adapters of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeRequest {
    /// The rule.
    pub rule: MergeRule,
    /// The names of the adapters, with their weights.
    pub adapters: Vec<(String, f64)>,
}

/// The path of the field in the request.
pub const AT: &str = "parameters.merged_adapters";

impl MergedAdapters {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`].
    pub fn checked(&self) -> Result<MergeRequest, InferenceError> {
        let count = self.ids.len();
        if count == 0 || count > MOST_MERGED {
            let message = format!("Invalid '{AT}.ids': {count} adapters; from 1 to {MOST_MERGED} are taken.");
            return Err(InferenceError::invalid(format!("{AT}.ids"), message));
        }
        let weights = self.weights.clone().unwrap_or_else(|| vec![1.0; count]);
        if weights.len() != count {
            let message = format!("Invalid '{AT}.weights': {} weights for {count} adapters.", weights.len());
            return Err(InferenceError::invalid(format!("{AT}.weights"), message));
        }
        for (i, weight) in weights.iter().enumerate() {
            range(&format!("{AT}.weights[{i}]"), Some(*weight), -LARGEST_WEIGHT, LARGEST_WEIGHT)?;
        }
        let strategy = named("merge_strategy", self.merge_strategy.as_deref(), &MergeStrategy::ALL)?;
        let majority_sign = named("majority_sign_method", self.majority_sign_method.as_deref(), &MajoritySign::ALL)?;
        let least = if strategy == MergeStrategy::Linear { 0.0 } else { LEAST_DENSITY };
        range(&format!("{AT}.density"), self.density, least, 1.0)?;
        let rule = MergeRule { strategy, density: self.density.unwrap_or(1.0), majority_sign, seed: SEED };
        Ok(MergeRequest { rule, adapters: self.ids.iter().cloned().zip(weights).collect() })
    }
}

/// Returns the value with this name; the first one if no name is given.
fn named<T: Copy>(field: &str, name: Option<&str>, all: &[(&str, T)]) -> Result<T, InferenceError> {
    let found = match name {
        Some(name) => all.iter().find(|(known, _)| *known == name),
        None => all.first(),
    };
    found.map(|(_, value)| *value).ok_or_else(|| {
        let (at, allowed) = (format!("{AT}.{field}"), all.iter().map(|(known, _)| *known).collect::<Vec<_>>());
        let given = truncated(name.unwrap_or_default());
        InferenceError::invalid(&at, format!("Invalid '{at}': '{given}'; allowed: {}.", allowed.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(more: &Value) -> Result<MergeRequest, InferenceError> {
        let mut fields = json!({"ids": ["a", "b"], "weights": [0.5, 2]});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<MergedAdapters>(fields).unwrap().checked()
    }

    #[test]
    fn the_defaults_are_lorax_s() {
        let merge = checked(&json!({"merge_strategy": null, "density": 0, "majority_sign_method": null})).unwrap();
        assert_eq!(merge.adapters, [("a".to_owned(), 0.5), ("b".to_owned(), 2.0)]);
        assert_eq!((merge.rule.strategy, merge.rule.majority_sign), (MergeStrategy::Linear, MajoritySign::Total));
        assert_eq!(checked(&json!({"weights": null})).unwrap().adapters[1].1, 1.0);
        let merge = checked(&json!({"merge_strategy": "dare_ties", "density": 0.5})).unwrap();
        assert_eq!((merge.rule.strategy, merge.rule.density), (MergeStrategy::DareTies, 0.5));
    }

    #[test]
    fn limit_of_merged_adapters() {
        let many = |count: usize| json!({"ids": vec!["a"; count], "weights": null});
        let ties = |density: f64| json!({"merge_strategy": "ties", "density": density});
        for (most, beyond, field) in [
            (many(8), many(9), "ids"),
            (many(1), many(0), "ids"),
            (json!({"weights": [-10, 10]}), json!({"weights": [1, 10.1]}), "weights[1]"),
            (json!({"weights": [1, 1]}), json!({"weights": [1]}), "weights"),
            (ties(0.01), ties(0.0), "density"),
            (ties(1.0), ties(1.1), "density"),
            (json!({"merge_strategy": "ties"}), json!({"merge_strategy": "svd"}), "merge_strategy"),
            (json!({"majority_sign_method": "total"}), json!({"majority_sign_method": "x"}), "majority_sign_method"),
        ] {
            let error = checked(&beyond).unwrap_err().body().error;
            assert_eq!(error.param, Some(format!("{AT}.{field}")), "{}", error.message);
            assert!(checked(&most).is_ok(), "{field}");
        }
    }
}
