//! Jobs that continue from an earlier adapter, whose hyperparameters they keep.

use std::fmt::Display;

use super::{AdapterSpec, Quantization, Requested, adapter::target_modules, range::bad, request::AdapterFields};
use crate::bad_field::BadField;

impl Requested {
    /// Returns the request with the fields that it omits filled in from the adapter that the job continues from: the
    /// hyperparameters `had`, and the quantization `base` that it was trained over. Dropout may differ.
    ///
    /// # Errors
    /// A [`BadField`] if the request sets a hyperparameter to another value than the adapter's.
    pub fn continuing(&self, had: &AdapterSpec, base: Quantization) -> Result<Self, BadField> {
        let adapter = &self.adapter;
        same("adapter.rank", adapter.rank, i64::from(had.rank))?;
        same("adapter.lora_alpha", adapter.lora_alpha, had.lora_alpha)?;
        let given = adapter.target_modules.as_deref().map(target_modules).transpose()?;
        same("adapter.target_modules", given.map(|names| names.join(", ")), had.target_modules.join(", "))?;
        same("adapter.use_rslora", adapter.use_rslora, had.use_rslora)?;
        same("adapter.use_dora", adapter.use_dora, had.use_dora)?;
        let quantization = &self.quantization;
        let is_omitted = quantization.r#type.is_none() && quantization.double_quant.is_none();
        Ok(Self {
            adapter: AdapterFields {
                rank: Some(had.rank.into()),
                lora_alpha: Some(had.lora_alpha),
                target_modules: Some(had.target_modules.clone()),
                lora_dropout: adapter.lora_dropout,
                use_rslora: Some(had.use_rslora),
                use_dora: Some(had.use_dora),
            },
            quantization: if is_omitted { base.fields() } else { quantization.clone() },
            ..self.clone()
        })
    }
}

fn same<T: PartialEq + Display>(param: &'static str, given: Option<T>, had: T) -> Result<(), BadField> {
    match given {
        Some(given) if given != had => {
            Err(bad(param, given, format!("left out or {had}, the value of the adapter to continue from")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{TrainSpec, request::QuantizationFields};

    fn with(adapter: AdapterFields) -> Requested {
        Requested { adapter, ..Requested::default() }
    }

    #[test]
    fn the_shape_that_is_left_out_is_the_adapters() {
        let had = AdapterSpec { use_rslora: true, ..AdapterSpec::lora(8, 12.0, &["q_proj", "v_proj"]) };
        let asked = with(AdapterFields { lora_dropout: Some(0.1), ..AdapterFields::default() });
        for base in Quantization::ALL {
            let spec = TrainSpec::check(&asked.continuing(&had, base).unwrap(), 360, 8192).unwrap();
            assert_eq!(spec.adapter, AdapterSpec { lora_dropout: 0.1, ..had.clone() });
            assert_eq!(spec.quantization, base);
        }
        let quantization = QuantizationFields { r#type: Some("int8".into()), double_quant: None };
        let other = Requested { quantization, ..asked };
        let spec = other.continuing(&had, Quantization::None).unwrap();
        assert_eq!(TrainSpec::check(&spec, 360, 8192).unwrap().quantization, Quantization::Int8);
    }

    #[test]
    fn the_same_shape_may_be_stated_again_in_any_order() {
        let had = AdapterSpec::lora(8, 16.0, &["q_proj", "v_proj"]);
        let target_modules = Some(["v_proj", "q_proj"].map(String::from).to_vec());
        let asked = AdapterFields { rank: Some(8), target_modules, use_dora: Some(false), ..AdapterFields::default() };
        assert!(with(asked).continuing(&had, Quantization::None).is_ok());
    }

    #[test]
    fn another_shape_is_refused_by_its_field() {
        let had = AdapterSpec::lora(8, 16.0, &["q_proj"]);
        let plain = AdapterFields::default();
        for (asked, refusal) in [
            (AdapterFields { rank: Some(16), ..plain.clone() }, "adapter.rank: 16"),
            (AdapterFields { lora_alpha: Some(8.0), ..plain.clone() }, "adapter.lora_alpha: 8"),
            (
                AdapterFields { target_modules: Some(vec!["all-linear".into()]), ..plain.clone() },
                "adapter.target_modules: q_proj, k_proj",
            ),
            (AdapterFields { use_rslora: Some(true), ..plain.clone() }, "adapter.use_rslora: true"),
            (AdapterFields { use_dora: Some(true), ..plain }, "adapter.use_dora: true"),
        ] {
            let refused = with(asked).continuing(&had, Quantization::None).unwrap_err().to_string();
            assert!(refused.starts_with(refusal) && refused.contains("left out or"), "{refused}");
        }
    }
}
