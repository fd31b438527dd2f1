//! Jobs that continue from an earlier adapter, whose hyperparameters they keep.

use std::fmt::Display;

use super::{
    AdapterSpec, Quantization, Requested,
    check::{bad, target_modules},
};
use crate::bad_field::BadField;

impl Requested {
    /// Returns the request with the fields that it omits filled in from the adapter that the job continues from: the
    /// hyperparameters `had`, and the quantization `base` that it was trained over. Dropout may differ.
    ///
    /// # Errors
    /// A [`BadField`] if the request sets a hyperparameter to another value than the adapter's.
    pub fn continuing(&self, had: &AdapterSpec, base: Quantization) -> Result<Self, BadField> {
        same("adapter.rank", self.rank, i64::from(had.rank))?;
        same("adapter.lora_alpha", self.lora_alpha, had.lora_alpha)?;
        let given = self.target_modules.as_deref().map(|given| target_modules(Some(given))).transpose()?;
        same("adapter.target_modules", given.map(|names| names.join(", ")), had.target_modules.join(", "))?;
        same("adapter.use_rslora", self.use_rslora, had.use_rslora)?;
        same("adapter.use_dora", self.use_dora, had.use_dora)?;
        let (quantization, double_quant) = match (&self.quantization, self.double_quant) {
            (None, None) => of_base(base),
            (asked, double_quant) => (asked.clone(), double_quant),
        };
        Ok(Self {
            quantization,
            double_quant,
            rank: Some(had.rank.into()),
            lora_alpha: Some(had.lora_alpha),
            target_modules: Some(had.target_modules.clone()),
            use_rslora: Some(had.use_rslora),
            use_dora: Some(had.use_dora),
            ..self.clone()
        })
    }
}

/// Returns a quantization in the form of a request.
fn of_base(base: Quantization) -> (Option<String>, Option<bool>) {
    match base {
        Quantization::Nf4 { double_quant } => (Some("nf4".into()), Some(double_quant)),
        Quantization::Int8 | Quantization::None => (Some(base.name().into()), None),
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
    use crate::spec::TrainSpec;

    #[test]
    fn the_shape_that_is_left_out_is_the_adapters() {
        let had = AdapterSpec { use_rslora: true, ..AdapterSpec::lora(8, 12.0, &["q_proj", "v_proj"]) };
        let asked = Requested { lora_dropout: Some(0.1), ..Requested::default() };
        for base in Quantization::ALL {
            let spec = TrainSpec::check(&asked.continuing(&had, base).unwrap(), 360, 8192).unwrap();
            assert_eq!(spec.adapter, AdapterSpec { lora_dropout: 0.1, ..had.clone() });
            assert_eq!(spec.quantization, base);
        }
        let other = Requested { quantization: Some("int8".into()), ..asked };
        let spec = other.continuing(&had, Quantization::None).unwrap();
        assert_eq!(TrainSpec::check(&spec, 360, 8192).unwrap().quantization, Quantization::Int8);
    }

    #[test]
    fn the_same_shape_may_be_said_again_in_any_order() {
        let had = AdapterSpec::lora(8, 16.0, &["q_proj", "v_proj"]);
        let names = ["v_proj", "q_proj"].map(String::from).to_vec();
        let asked =
            Requested { rank: Some(8), target_modules: Some(names), use_dora: Some(false), ..Requested::default() };
        assert!(asked.continuing(&had, Quantization::None).is_ok());
    }

    #[test]
    fn another_shape_is_refused_by_its_field() {
        let had = AdapterSpec::lora(8, 16.0, &["q_proj"]);
        for (asked, refusal) in [
            (Requested { rank: Some(16), ..Requested::default() }, "adapter.rank: 16"),
            (Requested { lora_alpha: Some(8.0), ..Requested::default() }, "adapter.lora_alpha: 8"),
            (
                Requested { target_modules: Some(vec!["all-linear".into()]), ..Requested::default() },
                "adapter.target_modules: q_proj, k_proj",
            ),
            (Requested { use_rslora: Some(true), ..Requested::default() }, "adapter.use_rslora: true"),
            (Requested { use_dora: Some(true), ..Requested::default() }, "adapter.use_dora: true"),
        ] {
            let refused = asked.continuing(&had, Quantization::None).unwrap_err().to_string();
            assert!(refused.starts_with(refusal) && refused.contains("left out or"), "{refused}");
        }
    }
}
