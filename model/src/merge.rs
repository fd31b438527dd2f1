//! A base with an adapter merged into it, tensor by tensor: memory does not grow with the model.
//!
//! The merged weight of a projection is `W + s·B·A` in `f32`; with DoRA, each of its rows is scaled to the norm
//! `magnitude`. All other tensors are the base's.
//!
//! Sources: Hu et al., arXiv:2106.09685, §4.1; Liu et al., arXiv:2402.09353, eq. 5; `get_delta_weight` and `merge` of
//! PEFT's `tuners/lora/layer.py`, and of `tuners/lora/bnb.py` for a quantized base.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use attune_domain::{
    architecture::{Architecture, PROJECTIONS},
    spec::Quantization,
};
use tch::{Kind, Tensor};

use crate::{
    adapter::{LoraAdapter, LoraPair},
    error::ModelError,
    io::{
        tensor_file::is_finite,
        weights::{self, Weights, expected, projection_path},
    },
    quant::{int8::Int8, nf4::Nf4},
};

/// A base and an adapter, opened to be merged.
pub struct Merged {
    architecture: Architecture,
    weights: Weights,
    adapter: LoraAdapter,
    /// The quantization through which the projections' weights go before the merge.
    quantization: Quantization,
    /// The layer and the index in [`PROJECTIONS`] of each projection's weight.
    projections: HashMap<String, (usize, usize)>,
}

impl Merged {
    /// Opens the base's Hugging Face folder and the adapter's PEFT folder. The projections' weights are quantized and
    /// dequantized before the merge; [`Quantization::None`] leaves them as they are.
    ///
    /// # Errors
    /// Those of [`weights::architecture`], [`Weights::open`] and [`LoraAdapter::load`].
    pub fn open(base: &Path, adapter: &Path, quantization: Quantization) -> Result<Self, ModelError> {
        let architecture = weights::architecture(base)?;
        let weights = Weights::open(base, &architecture)?;
        let adapter = LoraAdapter::load(adapter, &architecture)?;
        let layers = usize::try_from(architecture.num_hidden_layers).unwrap_or(0);
        let all = (0..layers).flat_map(|layer| (0..PROJECTIONS.len()).map(move |projection| (layer, projection)));
        let projections = all
            .map(|(layer, projection)| {
                (format!("{}.weight", projection_path(layer, PROJECTIONS[projection])), (layer, projection))
            })
            .collect();
        Ok(Self { architecture, weights, adapter, quantization, projections })
    }

    /// Returns the names and shapes of all tensors.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Vec<i64>> {
        expected(&self.architecture)
    }

    /// Returns a merged tensor, in `f32`.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::NotFinite`], [`ModelError::Torch`].
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let weight = self.weights.read(name)?;
        let Some((layer, projection)) = self.projections.get(name) else { return Ok(weight) };
        let weight = match self.quantization {
            Quantization::None => weight,
            Quantization::Int8 => Int8::quantize(&weight)?.dequantize()?,
            Quantization::Nf4 { double_quant } => Nf4::quantize(&weight, double_quant)?.dequantize()?,
        };
        let Some(pair) = &self.adapter.layer(*layer)?[*projection] else { return Ok(weight) };
        let merged = merge(&weight, pair, self.adapter.scale())?;
        if is_finite(&merged)? { Ok(merged) } else { Err(ModelError::NotFinite(name.to_owned())) }
    }

    /// Returns a merged tensor's numbers, row by row.
    ///
    /// # Errors
    /// As [`Merged::read`].
    pub fn numbers(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        numbers(&self.read(name)?)
    }
}

/// Returns a tensor's numbers, row by row.
///
/// # Errors
/// [`ModelError::Torch`].
pub fn numbers(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    let tensor = tensor.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut numbers = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut numbers, tensor.numel())?;
    Ok(numbers)
}

fn merge(weight: &Tensor, pair: &LoraPair, scale: f64) -> Result<Tensor, ModelError> {
    let merged = weight.f_addmm(&pair.b.f_mul_scalar(scale)?, &pair.a)?; // [out, in]
    let Some(magnitude) = &pair.magnitude else { return Ok(merged) };
    let lengths = merged.f_square()?.f_sum_dim_intlist([1i64].as_slice(), false, None)?.f_sqrt()?; // [out]
    Ok(merged.f_mul(&magnitude.f_div(&lengths)?.f_unsqueeze(1)?)?)
}

/// The difference of two models' logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitDrift {
    /// The largest absolute difference of a logit.
    pub max_difference: f64,
    /// The mean Kullback-Leibler divergence of the second model's distributions from those of the first, in nats.
    pub mean_kl: f64,
}

/// Compares the logits `[t, v]` of two models at the same tokens.
///
/// # Errors
/// [`ModelError::Input`]: the shapes differ. [`ModelError::Torch`].
pub fn logit_drift(first: &Tensor, second: &Tensor) -> Result<LogitDrift, ModelError> {
    if first.size() != second.size() {
        let (one, other) = (first.size(), second.size());
        return Err(ModelError::Input(format!("logits of the shapes {one:?} and {other:?} cannot be compared")));
    }
    let (first, second) = (first.f_to_kind(Kind::Double)?, second.f_to_kind(Kind::Double)?);
    let max_difference = first.f_sub(&second)?.f_abs()?.f_max()?.f_double_value(&[])?;
    let (p, q) = (first.f_log_softmax(-1, Kind::Double)?, second.f_log_softmax(-1, Kind::Double)?); // [t, v]
    let apart = p.f_exp()?.f_mul(&p.f_sub(&q)?)?;
    let each = apart.f_sum_dim_intlist([1i64].as_slice(), false, None)?; // [t]
    Ok(LogitDrift { max_difference, mean_kl: each.f_mean(Kind::Double)?.f_double_value(&[])?.max(0.0) })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn random(rows: i64, columns: i64) -> Tensor {
        Tensor::randn([rows, columns], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn a_merge_adds_the_scaled_product_of_the_factors() {
        let (weight, a, b) = (random(6, 4), random(2, 4), random(6, 2));
        let x = random(3, 4);
        let wanted = x.matmul(&weight.tr()) + x.matmul(&a.tr()).matmul(&b.tr()) * 0.5;
        let merged = merge(&weight, &LoraPair::new(a, b, None), 0.5).unwrap();
        assert!((x.matmul(&merged.tr()) - wanted).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn rows_of_a_merged_dora_have_its_magnitudes() {
        let magnitude = Tensor::from_slice(&[1f32, 2.0, 3.0]);
        let pair = LoraPair::new(random(2, 4), random(3, 2), Some(magnitude.shallow_clone()));
        let merged = merge(&random(3, 4), &pair, 2.0).unwrap();
        let lengths = merged.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sqrt();
        assert!((lengths - magnitude).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn a_drift_is_none_for_equal_logits_and_grows_with_their_difference() {
        let one = Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0]).view((2, 2));
        let same = logit_drift(&one, &one).unwrap();
        assert_eq!((same.max_difference, same.mean_kl), (0.0, 0.0));
        let other = Tensor::from_slice(&[0f32, 2.0, 2.0, 3.0]).view((2, 2));
        let drift = logit_drift(&one, &other).unwrap();
        // p = softmax(0, 1), q = softmax(0, 2), in one of two rows.
        let (p, q) = (1.0 / (1.0 + (-1f64).exp()), 1.0 / (1.0 + (-2f64).exp()));
        let kl = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((drift.max_difference - 1.0).abs() < 1e-6 && (drift.mean_kl - kl / 2.0).abs() < 1e-6, "{drift:?}");
        assert!(logit_drift(&one, &Tensor::from_slice(&[0f32])).is_err());
    }
}
