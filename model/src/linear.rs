//! Frozen projections with a trainable low-rank correction, forward and backward:
//! `y = x·Wᵀ + c + s·(x·Aᵀ)·Bᵀ`.
//!
//! Projections that read the same input (q, k, v; gate, up) are one [`FrozenLinear`], so that one matmul serves them all.
//! A 4-bit weight is unpacked for the moment of its use and dropped; a gradient of `W` is never formed. Training adds the
//! correction to the unpacked weight, `W + s·B·A`, which costs less than two thin products and a pass over the output.
//!
//! Shapes: `t` rows (tokens), `in`, `out` widths, `r` rank, `p` corrected parts of one linear.
//!
//! Sources: Hu et al., arXiv:2106.09685, §4.1; Dettmers et al., arXiv:2305.14314, §3. The backward is by hand:
//! with `v = s·dy·B`: `dx = dy·(W + s·B·A)`, `dA = vᵀ·x`, `dB = s·dyᵀ·(x·Aᵀ)`.

use attune_domain::{architecture::PROJECTIONS, spec::Quantization};
use tch::{Kind, Tensor};

use crate::{
    adapter::{LayerPairs, LoraPair},
    error::ModelError,
    nf4::Nf4,
    weights::{Weights, projection_path},
};

/// One or more projections of the same input, their outputs side by side.
#[derive(Debug)]
pub(crate) struct FrozenLinear {
    parts: Vec<Part>,
    in_dim: i64,
    out_dim: i64,
    weight: Weight,
    /// `[out]`.
    bias: Option<Tensor>,
    kind: Kind,
}

/// Where one projection lies in the output.
#[derive(Debug)]
struct Part {
    /// Its place in [`PROJECTIONS`].
    projection: usize,
    start: i64,
    out: i64,
}

#[derive(Debug)]
enum Weight {
    /// `[out, in]`, the parts one below the other.
    Dense(Tensor),
    /// One per part.
    Nf4(Vec<Nf4>),
}

/// The gradients of one block's factors, at the places of its [`LayerPairs`].
#[derive(Debug, Default)]
pub(crate) struct LayerGradients(pub(crate) [Option<LoraPair>; PROJECTIONS.len()]);

/// The factors that correct a linear, and by how much.
#[derive(Clone, Copy)]
pub(crate) struct Correction<'a> {
    pub(crate) pairs: &'a LayerPairs,
    pub(crate) scale: f64,
}

/// What a block's backward learns.
pub(crate) struct Learning<'a> {
    pub(crate) correction: Correction<'a>,
    pub(crate) gradients: &'a mut LayerGradients,
    /// The gradient of the block's input is wanted too.
    pub(crate) want_dx: bool,
}

/// Rows of a batch that share an adapter.
pub(crate) struct RowGroup<'a> {
    pub(crate) correction: Correction<'a>,
    /// Which rows, `Int64`; `None`: all.
    pub(crate) rows: Option<&'a Tensor>,
}

impl FrozenLinear {
    /// Reads the projections `names` of a layer, and their biases where `biased`.
    pub(crate) fn read(
        weights: &Weights,
        layer: usize,
        names: &[&str],
        biased: bool,
        quantization: Quantization,
    ) -> Result<Self, ModelError> {
        let (mut parts, mut tensors, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        let mut packed = Vec::new();
        let (mut start, mut in_dim) = (0, 0);
        for name in names {
            let path = projection_path(layer, name);
            let tensor = weights.read(&format!("{path}.weight"))?;
            let (out, ins) = tensor.size2()?;
            let projection = PROJECTIONS.iter().position(|known| known == name);
            let projection = projection.ok_or_else(|| ModelError::Input(format!("'{name}' is not a projection")))?;
            parts.push(Part { projection, start, out });
            (start, in_dim) = (start + out, ins);
            match quantization {
                Quantization::Int8 | Quantization::None => tensors.push(tensor),
                Quantization::Nf4 { double_quant } => packed.push(Nf4::quantize(&tensor, double_quant)?),
            }
            if biased {
                biases.push(weights.read(&format!("{path}.bias"))?);
            }
        }
        let weight = if packed.is_empty() { Weight::Dense(join(tensors)?) } else { Weight::Nf4(packed) };
        let bias = if biased { Some(join(biases)?) } else { None };
        Ok(Self { parts, in_dim, out_dim: start, weight, bias, kind: Kind::Float })
    }

    /// The same numbers, computed with in another kind from now on. A packed weight stays packed.
    pub(crate) fn to_kind(&self, kind: Kind) -> Result<Self, ModelError> {
        let weight = match &self.weight {
            Weight::Dense(weight) => Weight::Dense(weight.f_to_kind(kind)?),
            Weight::Nf4(parts) => Weight::Nf4(parts.clone()),
        };
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(kind)).transpose()?;
        let parts = self.parts.iter().map(|p| Part { projection: p.projection, start: p.start, out: p.out }).collect();
        Ok(Self { parts, in_dim: self.in_dim, out_dim: self.out_dim, weight, bias, kind })
    }

    /// The weight `[out, in]`, to be dropped after use: a 4-bit one is unpacked here.
    pub(crate) fn weight(&self) -> Result<Tensor, ModelError> {
        let parts = match &self.weight {
            Weight::Dense(weight) => return Ok(weight.shallow_clone()),
            Weight::Nf4(parts) => parts,
        };
        let whole = Tensor::f_empty([self.out_dim, self.in_dim], (Kind::Float, parts[0].device()))?; // [out, in]
        for (part, packed) in self.parts.iter().zip(parts) {
            packed.dequantize_into(&mut whole.f_narrow(0, part.start, part.out)?)?;
        }
        Ok(whole.f_to_kind(self.kind)?)
    }

    /// The weight and bias of one projection alone, for the reference.
    #[cfg(test)]
    pub(crate) fn part(&self, projection: usize) -> (Tensor, Option<Tensor>) {
        let part = self.parts.iter().find(|part| part.projection == projection).unwrap();
        let cut = |t: &Tensor| t.narrow(0, part.start, part.out);
        (cut(&self.weight().unwrap()), self.bias.as_ref().map(cut))
    }

    /// The frozen part: `x: [t, in] -> [t, out]`.
    pub(crate) fn base(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (_, width) = x.size2()?;
        if width != self.in_dim {
            return Err(ModelError::Width { what: "projection", want: self.in_dim, got: width });
        }
        Ok(x.f_linear(&self.weight()?, self.bias.as_ref())?)
    }

    /// With the corrections of each group of rows: `x: [t, in] -> [t, out]`.
    pub(crate) fn forward_rows(&self, x: &Tensor, groups: &[RowGroup<'_>]) -> Result<Tensor, ModelError> {
        let y = self.base(x)?; // [t, out]
        for group in groups {
            let picked = group.rows.map(|rows| x.f_index_select(0, rows)).transpose()?;
            let Some(low) = self.low(picked.as_ref().unwrap_or(x), group.correction)? else { continue };
            match group.rows {
                None => self.add_corrections(&y, &low, group.correction)?,
                Some(rows) => {
                    for (place, (part, pair)) in self.corrected(group.correction.pairs).enumerate() {
                        let delta = slice_of(&low, place, pair)?.f_mm(&pair.b.f_tr()?)?; // [rows, out of part]
                        let _ = y.f_narrow(1, part.start, part.out)?.f_index_add_(0, rows, &delta)?;
                    }
                }
            }
        }
        Ok(y)
    }

    /// With one correction, for training: `x: [t, in] -> [t, out]`.
    pub(crate) fn forward(&self, x: &Tensor, correction: Correction<'_>) -> Result<Tensor, ModelError> {
        Ok(x.f_linear(&self.corrected_weight(correction)?, self.bias.as_ref())?)
    }

    /// `dy: [t, out]` to `dx: [t, in]`.
    pub(crate) fn input_gradient(&self, dy: &Tensor, correction: Correction<'_>) -> Result<Tensor, ModelError> {
        Ok(dy.f_mm(&self.corrected_weight(correction)?)?)
    }

    /// Adds the factors' gradients, from `dy: [t, out]` and the forward's `x: [t, in]`.
    pub(crate) fn learn(&self, dy: &Tensor, x: &Tensor, learning: &mut Learning<'_>) -> Result<(), ModelError> {
        let Learning { correction, gradients, .. } = learning;
        let Some(low) = self.low(x, *correction)? else { return Ok(()) }; // [t, p·r]
        let mut backs = Vec::with_capacity(self.parts.len());
        for (place, (part, pair)) in self.corrected(correction.pairs).enumerate() {
            let Some(gradient) = &mut gradients.0[part.projection] else { continue };
            let dy = dy.f_narrow(1, part.start, part.out)?; // [t, out of part]
            let _ = gradient.b.f_addmm_(&dy.f_tr()?, &slice_of(&low, place, pair)?)?; // [out, r]
            backs.push(dy.f_mm(&pair.b)?); // [t, r]
        }
        let back = Tensor::f_cat(&backs, 1)?.f_mul_scalar_(correction.scale)?; // [t, p·r]
        let first = back.f_tr()?.f_mm(x)?; // [p·r, in]
        for (place, (part, pair)) in self.corrected(correction.pairs).enumerate() {
            let (Some(gradient), (rank, _)) = (&mut gradients.0[part.projection], pair.a.size2()?) else { continue };
            let _ = gradient.a.f_add_(&first.f_narrow(0, place as i64 * rank, rank)?)?; // [r, in]
        }
        Ok(())
    }

    /// `W + s·B·A: [out, in]`, to be dropped after use.
    fn corrected_weight(&self, correction: Correction<'_>) -> Result<Tensor, ModelError> {
        let weight = self.weight()?; // [out, in]
        if self.corrected(correction.pairs).next().is_none() {
            return Ok(weight);
        }
        // Only an unpacked weight is ours to write to.
        let weight = match self.weight {
            Weight::Dense(_) => weight.f_mul_scalar(1.0)?,
            Weight::Nf4(_) => weight,
        };
        for (part, pair) in self.corrected(correction.pairs) {
            let scaled = pair.b.f_mul_scalar(correction.scale)?; // [out of part, r]
            let _ = weight.f_narrow(0, part.start, part.out)?.f_addmm_(&scaled, &pair.a)?;
        }
        Ok(weight)
    }

    /// `s·x·Aᵀ` for all corrected parts at once: `[t, p·r]`.
    fn low(&self, x: &Tensor, correction: Correction<'_>) -> Result<Option<Tensor>, ModelError> {
        let firsts: Vec<&Tensor> = self.corrected(correction.pairs).map(|(_, pair)| &pair.a).collect();
        let a = match firsts.as_slice() {
            [] => return Ok(None),
            [one] => one.shallow_clone(),
            many => Tensor::f_cat(many, 0)?, // [p·r, in]
        };
        Ok(Some(x.f_mm(&a.f_tr()?)?.f_mul_scalar_(correction.scale)?))
    }

    /// Adds `low·Bᵀ` to the parts of `y: [t, out]`, in place.
    fn add_corrections(&self, y: &Tensor, low: &Tensor, correction: Correction<'_>) -> Result<(), ModelError> {
        for (place, (part, pair)) in self.corrected(correction.pairs).enumerate() {
            let low = slice_of(low, place, pair)?; // [t, r]
            let _ = y.f_narrow(1, part.start, part.out)?.f_addmm_(&low, &pair.b.f_tr()?)?;
        }
        Ok(())
    }

    /// The parts that have factors, in order.
    fn corrected<'a>(&'a self, pairs: &'a LayerPairs) -> impl Iterator<Item = (&'a Part, &'a LoraPair)> {
        self.parts.iter().filter_map(|part| pairs[part.projection].as_ref().map(|pair| (part, pair)))
    }
}

/// The columns of `low` that belong to the `place`-th corrected part: `[t, r]`.
fn slice_of(low: &Tensor, place: usize, pair: &LoraPair) -> Result<Tensor, ModelError> {
    let (rank, _) = pair.a.size2()?;
    Ok(low.f_narrow(1, i64::try_from(place).unwrap_or(0) * rank, rank)?)
}

/// One below the other; a single one as it is.
fn join(mut tensors: Vec<Tensor>) -> Result<Tensor, ModelError> {
    match (tensors.len(), tensors.pop()) {
        (1, Some(one)) => Ok(one),
        (_, Some(last)) => {
            tensors.push(last);
            Ok(Tensor::f_cat(&tensors, 0)?)
        }
        (_, None) => Err(ModelError::Input("no projection was named".into())),
    }
}
