//! The adapter's LoRA configuration, checked.

use serde::{Deserialize, Serialize};

use super::{
    range::{bad, set_float, set_int},
    request::AdapterFields,
};
use crate::{architecture::PROJECTIONS, bad_field::BadField};

/// The adapter's LoRA configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = AdapterSpecView))]
#[expect(missing_docs, reason = "PEFT's names")]
pub struct AdapterSpec {
    // The rank of the two factors.
    pub rank: u32,
    // The numerator of the adapter's scale, `lora_alpha / rank`.
    pub lora_alpha: f64,
    // The projections that have an adapter, in the order of a block.
    pub target_modules: Vec<String>,
    // The dropout probability of the adapter's inputs during training.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub lora_dropout: f64,
    // rsLoRA: the scale is `lora_alpha / √rank` instead. Source: Kalajdzievski, arXiv:2312.03732.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub use_rslora: bool,
    // DoRA: the rows of the adapted weight are scaled to a trained magnitude. Source: Liu et al., arXiv:2402.09353.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub use_dora: bool,
}

impl AdapterSpec {
    /// Returns plain LoRA: no dropout, no rsLoRA, no DoRA.
    #[must_use]
    pub fn lora(rank: u32, lora_alpha: f64, target_modules: &[&str]) -> Self {
        let target_modules = target_modules.iter().map(|name| (*name).to_owned()).collect();
        Self { rank, lora_alpha, target_modules, lora_dropout: 0.0, use_rslora: false, use_dora: false }
    }

    /// Checks every field and fills in every default. Alpha defaults to twice the rank.
    ///
    /// # Errors
    /// The first [`BadField`].
    pub(super) fn check(asked: &AdapterFields) -> Result<Self, BadField> {
        let mut spec = Self::lora(16, 0.0, &PROJECTIONS);
        set_int(&mut spec.rank, "adapter.rank", asked.rank, 1..=256)?;
        spec.use_dora = asked.use_dora.unwrap_or(spec.use_dora);
        set_float(&mut spec.lora_dropout, "adapter.lora_dropout", asked.lora_dropout, 0.0..=0.9)?;
        if spec.use_dora && spec.lora_dropout > 0.0 {
            return Err(bad("adapter.lora_dropout", spec.lora_dropout, "0 or left out with adapter.use_dora"));
        }
        spec.lora_alpha = 2.0 * f64::from(spec.rank);
        set_float(&mut spec.lora_alpha, "adapter.lora_alpha", asked.lora_alpha, 1e-3..=1e4)?;
        if let Some(given) = &asked.target_modules {
            spec.target_modules = target_modules(given)?;
        }
        spec.use_rslora = asked.use_rslora.unwrap_or(spec.use_rslora);
        Ok(spec)
    }
}

/// Returns the modules in the order of a block, each once; `all-linear` is all seven.
pub(super) fn target_modules(given: &[String]) -> Result<Vec<String>, BadField> {
    const PARAM: &str = "adapter.target_modules";
    let allowed = || format!("'all-linear' or some of {}", PROJECTIONS.join(", "));
    if given.is_empty() {
        return Err(bad(PARAM, "[]", allowed()));
    }
    if given == ["all-linear"] {
        return Ok(PROJECTIONS.map(String::from).to_vec());
    }
    if let Some(unknown) = given.iter().find(|name| !PROJECTIONS.contains(&name.as_str())) {
        return Err(bad(PARAM, unknown, allowed()));
    }
    Ok(PROJECTIONS.iter().filter(|name| given.iter().any(|g| g == *name)).map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(asked: &AdapterFields) -> String {
        AdapterSpec::check(asked).unwrap_err().to_string()
    }

    #[test]
    fn defaults_fill_every_field() {
        let spec = AdapterSpec::check(&AdapterFields::default()).unwrap();
        assert_eq!(spec, AdapterSpec::lora(16, 32.0, &PROJECTIONS));
        let spec = AdapterSpec::check(&AdapterFields { rank: Some(8), ..AdapterFields::default() }).unwrap();
        assert_eq!(spec.lora_alpha, 16.0);
    }

    #[test]
    fn a_refusal_names_the_field_the_value_and_the_range() {
        assert_eq!(
            refused(&AdapterFields { rank: Some(512), ..AdapterFields::default() }),
            "adapter.rank: 512 is not allowed; it must be a whole number from 1 to 256"
        );
        let refused = refused(&AdapterFields { lora_dropout: Some(1.0), ..AdapterFields::default() });
        assert!(refused.starts_with("adapter.lora_dropout: 1 is not allowed"), "{refused}");
    }

    #[test]
    fn dropout_does_not_go_with_magnitudes() {
        let both = AdapterFields { use_dora: Some(true), lora_dropout: Some(0.1), ..AdapterFields::default() };
        let refused = refused(&both);
        assert!(refused.starts_with("adapter.lora_dropout: 0.1 is not allowed"), "{refused}");
    }

    #[test]
    fn targets_are_sorted_and_listed_once() {
        let given = ["v_proj", "q_proj", "v_proj"].map(String::from).to_vec();
        let asked = AdapterFields { target_modules: Some(given), ..AdapterFields::default() };
        assert_eq!(AdapterSpec::check(&asked).unwrap().target_modules, ["q_proj", "v_proj"]);
    }
}
