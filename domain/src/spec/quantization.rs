//! The quantization of a base model: part of an adapter's identity, since an adapter fits only the weights that it was
//! trained over.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{range::bad, request::QuantizationFields};
use crate::bad_field::BadField;

/// The storage of a base's frozen weights. An adapter is served over the quantization that it was trained over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Quantization {
    /// 4-bit NormalFloat in blocks of 64.
    Nf4 {
        /// `true`: the blocks' scales are quantized too, to 8 bits.
        double_quant: bool,
    },
    /// 8 bits, with a scale for each row of a weight; dequantized for computation.
    Int8,
    /// Not quantized, in f32.
    #[default]
    None,
}

impl Quantization {
    /// All quantizations.
    pub const ALL: [Self; 4] =
        [Self::None, Self::Int8, Self::Nf4 { double_quant: false }, Self::Nf4 { double_quant: true }];

    /// Checks the fields and fills in the defaults.
    ///
    /// # Errors
    /// The first [`BadField`].
    pub(super) fn check(asked: &QuantizationFields) -> Result<Self, BadField> {
        match asked.r#type.as_deref().unwrap_or("nf4") {
            "nf4" => Ok(Self::Nf4 { double_quant: asked.double_quant.unwrap_or(true) }),
            "int8" | "none" if asked.double_quant == Some(true) => {
                Err(bad("quantization.double_quant", true, "left out when quantization.type is not nf4"))
            }
            "int8" => Ok(Self::Int8),
            "none" => Ok(Self::None),
            other => Err(bad("quantization.type", other, "nf4, int8 or none")),
        }
    }

    /// Returns the fields of a request for this quantization.
    pub(super) fn fields(self) -> QuantizationFields {
        match self {
            Self::Nf4 { double_quant } => {
                QuantizationFields { r#type: Some("nf4".into()), double_quant: Some(double_quant) }
            }
            Self::Int8 | Self::None => QuantizationFields { r#type: Some(self.name().into()), double_quant: None },
        }
    }

    /// Returns the name as one word: in the database, in file names and fingerprints, in the configuration and in
    /// forms.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 { double_quant: true } => "nf4-double",
            Self::Nf4 { double_quant: false } => "nf4",
            Self::Int8 => "int8",
            Self::None => "none",
        }
    }

    /// Returns the quantization with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Returns a phrase for messages: `NF4 with double quantization`.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Nf4 { double_quant: true } => "NF4 with double quantization",
            Self::Nf4 { double_quant: false } => "NF4",
            Self::Int8 => "int8",
            Self::None => "f32",
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quantization_is_found_by_its_name() {
        for quantization in Quantization::ALL {
            assert_eq!(Quantization::from_name(quantization.name()), Some(quantization));
        }
        assert_eq!(Quantization::from_name("fp4"), None);
    }

    #[test]
    fn every_quantization_can_be_requested() {
        for quantization in Quantization::ALL {
            assert_eq!(Quantization::check(&quantization.fields()), Ok(quantization));
        }
        assert_eq!(Quantization::check(&QuantizationFields::default()), Ok(Quantization::Nf4 { double_quant: true }));
    }

    #[test]
    fn only_nf4_has_scales_to_quantize() {
        let int8 = QuantizationFields { r#type: Some("int8".into()), double_quant: Some(true) };
        let refused = Quantization::check(&int8).unwrap_err().to_string();
        assert!(refused.starts_with("quantization.double_quant: true is not allowed"), "{refused}");
        let fp4 = QuantizationFields { r#type: Some("fp4".into()), double_quant: None };
        let refused = Quantization::check(&fp4).unwrap_err().to_string();
        assert_eq!(refused, "quantization.type: fp4 is not allowed; it must be nf4, int8 or none");
    }
}
