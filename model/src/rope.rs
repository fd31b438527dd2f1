//! Rotary position embedding, in the layout of Hugging Face: the first half of a head's numbers is rotated against the
//! second.
//!
//! Shapes: `t` rows, `h` heads, `d` head width.
//!
//! Sources: Su et al., arXiv:2104.09864, §3.2.2; the layout from `rotate_half`, the stretched frequencies from
//! `_compute_linear_scaling_rope_parameters` and `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`.

use attune_domain::architecture::{Architecture, RopeScaling};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// The frequencies of a model.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[d/2]`, in the kind of the model.
    pub(crate) frequencies: Tensor,
}

/// Cosines and sines of the angles of a batch's rows, each `[t, 1, d/2]`.
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
    minus_sin: Tensor,
}

impl Rope {
    /// Works the frequencies out in `kind`, with the operations and so the rounding of transformers.
    pub(crate) fn new(architecture: &Architecture, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let width = i64::try_from(architecture.head_dim).unwrap_or(0);
        let exponents = Tensor::f_arange_start_step(0, width, 2, (kind, device))?.f_div_scalar(width)?; // [d/2]
        let plain = Tensor::f_pow_scalar(architecture.rope_theta, &exponents)?.f_reciprocal()?;
        let frequencies = match architecture.rope_scaling {
            None => plain,
            Some(RopeScaling::Linear { factor }) => plain.f_div_scalar(factor)?,
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => {
                let stretch = Llama3 {
                    factor,
                    low: low_freq_factor,
                    high: high_freq_factor,
                    original: original_max_position_embeddings as f64,
                };
                let values = Vec::<f64>::try_from(plain.f_to_kind(Kind::Double)?)?;
                let values: Vec<f64> = values.into_iter().map(|frequency| stretch.apply(frequency)).collect();
                Tensor::f_from_slice(&values)?.f_to_kind(kind)?.f_to_device(device)?
            }
        };
        Ok(Self { frequencies })
    }

    /// The angles of rows at these positions.
    pub(crate) fn angles(&self, positions: &[i64]) -> Result<Angles, ModelError> {
        let (kind, device) = (self.frequencies.f_kind()?, self.frequencies.device());
        let positions = Tensor::f_from_slice(positions)?.f_to_device(device)?.f_to_kind(kind)?; // [t]
        let angles = positions.f_outer(&self.frequencies)?.f_unsqueeze(1)?; // [t, 1, d/2]
        let sin = angles.f_sin()?;
        Ok(Angles { cos: angles.f_cos()?, minus_sin: sin.f_neg()?, sin })
    }
}

struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength > self.original / self.low {
            frequency / self.factor
        } else if wavelength < self.original / self.high {
            frequency
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

impl Angles {
    /// Rotates `x: [t, h, d]` into `out: [t, h, d]`, which is other memory and may be a view.
    pub(crate) fn rotate_into(&self, x: &Tensor, out: &Tensor) -> Result<(), ModelError> {
        self.turn(x, out, &self.sin, &self.minus_sin)
    }

    /// The other way round, which is also the backward of [`Angles::rotate_into`].
    pub(crate) fn rotate_back_into(&self, x: &Tensor, out: &Tensor) -> Result<(), ModelError> {
        self.turn(x, out, &self.minus_sin, &self.sin)
    }

    fn turn(&self, x: &Tensor, out: &Tensor, sin: &Tensor, minus_sin: &Tensor) -> Result<(), ModelError> {
        let half = x.size3()?.2 / 2;
        let (first, second) = (x.f_narrow(2, 0, half)?, x.f_narrow(2, half, half)?); // [t, h, d/2]
        let mut out_first = out.f_narrow(2, 0, half)?;
        let mut out_second = out.f_narrow(2, half, half)?;
        let _ = first.f_mul_out(&out_first, &self.cos)?;
        let _ = out_first.f_addcmul_(&second, minus_sin)?;
        let _ = second.f_mul_out(&out_second, &self.cos)?;
        let _ = out_second.f_addcmul_(&first, sin)?;
        Ok(())
    }
}
