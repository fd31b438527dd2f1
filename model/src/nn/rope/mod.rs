//! Rotary position embedding, in Hugging Face's layout: the first half of a head's dimensions is paired with the second
//! half.
//!
//! Shapes: `t` rows, `h` heads, `d` head width.
//!
//! Sources: Su et al., arXiv:2104.09864, §3.2.2; the layout from `rotate_half`, the scaled frequencies from
//! `_compute_linear_scaling_rope_parameters`, `_compute_llama3_parameters` and `_compute_yarn_parameters` in
//! transformers' `modeling_rope_utils.py`, 5.23; YaRN: Peng et al., arXiv:2309.00071, §3.

mod cpu;
mod plain;

use attune_domain::architecture::{Architecture, RopeScaling};
use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::pick::{Kernel, Number, pick},
};

/// The rotary frequencies of a model.
#[derive(Debug)]
pub(crate) struct Rope {
    /// The inverse frequencies, `[d/2]`, in the kind of the model.
    pub(crate) frequencies: Tensor,
    /// The factor of cosines and sines: YaRN's attention scaling, else 1.
    pub(crate) magnitude: f64,
}

/// The cosines and sines of the angles of a batch's rows, each `[t, d/2]`.
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Computes the frequencies in `kind`, with the same operations, and so the same rounding, as transformers.
    pub(crate) fn new(architecture: &Architecture, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let width = i64::try_from(architecture.head_dim).unwrap_or(0);
        let exponents = Tensor::f_arange_start_step(0, width, 2, (kind, device))?.f_div_scalar(width)?; // [d/2]
        let plain = Tensor::f_pow_scalar(architecture.rope_theta, &exponents)?.f_reciprocal()?;
        let frequencies = match architecture.rope_scaling {
            // Dynamic scaling only changes sequences that are longer than the model's context, and there are none.
            None | Some(RopeScaling::Dynamic { .. }) => plain,
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
            Some(RopeScaling::Yarn { factor, .. }) => {
                let values: Vec<f64> = (0..width / 2).map(|at| kept_share(architecture, at as f64)).collect();
                let kept = Tensor::f_from_slice(&values)?.f_to_kind(kind)?.f_to_device(device)?; // [d/2]
                let divided = plain.f_div_scalar(factor)?.f_mul(&kept.f_neg()?.f_add_scalar(1)?)?;
                divided.f_add(&plain.f_mul(&kept)?)?
            }
        };
        let magnitude = match architecture.rope_scaling {
            Some(RopeScaling::Yarn { attention_factor, .. }) => attention_factor,
            _ => 1.0,
        };
        Ok(Self { frequencies, magnitude })
    }

    /// Returns the angles of rows at these positions.
    pub(crate) fn angles(&self, positions: &[i64]) -> Result<Angles, ModelError> {
        let (kind, device) = (self.frequencies.f_kind()?, self.frequencies.device());
        let positions = Tensor::f_from_slice(positions)?.f_to_device(device)?.f_to_kind(kind)?; // [t]
        let angles = positions.f_outer(&self.frequencies)?; // [t, d/2]
        let (mut cos, mut sin) = (angles.f_cos()?, angles.f_sin()?);
        if self.magnitude != 1.0 {
            (cos, sin) = (cos.f_mul_scalar_(self.magnitude)?, sin.f_mul_scalar_(self.magnitude)?);
        }
        Ok(Angles { cos, sin })
    }
}

/// Returns the share of the unscaled frequency `at` that YaRN keeps: 1 below the ramp, 0 above it.
fn kept_share(architecture: &Architecture, at: f64) -> f64 {
    let Some(RopeScaling::Yarn { beta_fast, beta_slow, truncate, original_max_position_embeddings, .. }) =
        architecture.rope_scaling
    else {
        return 1.0;
    };
    let (width, original) = (architecture.head_dim as f64, original_max_position_embeddings as f64);
    // The dimension whose frequency makes this many rotations over the original context.
    let dimension = |rotations: f64| {
        width * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * architecture.rope_theta.ln())
    };
    let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(width - 1.0));
    if low == high {
        high += 0.001;
    }
    1.0 - ((at - low) / (high - low)).clamp(0.0, 1.0)
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
    /// Rotates the first `turned` heads of `rows: [t, all, d]`, in place.
    pub(crate) fn rotate(&self, rows: &mut Tensor, turned: i64) -> Result<(), ModelError> {
        self.turn(rows, turned, 1.0)
    }

    /// Applies the backward of [`Angles::rotate`]: the inverse rotation with the same magnitude.
    pub(crate) fn rotate_back(&self, rows: &mut Tensor, turned: i64) -> Result<(), ModelError> {
        self.turn(rows, turned, -1.0)
    }

    fn turn(&self, rows: &mut Tensor, turned: i64, sign: f64) -> Result<(), ModelError> {
        match pick(rows, &[])? {
            Kernel::Cpu(Number::F32) => cpu::rotate::<f32>(self, rows, turned, sign),
            Kernel::Cpu(Number::F64) => cpu::rotate::<f64>(self, rows, turned, sign),
            _ => plain::rotate(self, rows, turned, sign),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks every supported kind of scaling; see `make_configs.py` in the same folder.
    #[test]
    fn frequencies_and_magnitudes_are_those_of_transformers() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../../domain/testdata/configs.json")).unwrap();
        let configs = file["configs"].as_array().unwrap();
        let mut scaled = 0;
        for entry in configs {
            let (config, known) = (&entry["config"], &entry["known"]);
            let what = format!("{} {config}", entry["name"]);
            let architecture = Architecture::from_config_json(config.to_string().as_bytes()).unwrap();
            scaled += u32::from(architecture.rope_scaling.is_some());
            let rope = Rope::new(&architecture, Kind::Float, Device::Cpu).unwrap();
            let wanted: Vec<f32> = serde_json::from_value(known["frequencies"].clone()).unwrap();
            // Both round to f32 at each operation, but in another order where frequencies are blended.
            assert!(rope.frequencies.allclose(&Tensor::from_slice(&wanted), 1e-6, 0.0, false), "{what}");
            assert!((rope.magnitude / known["magnitude"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{what}");
        }
        assert!(scaled > 40, "{scaled} with a scaling");
    }

    #[test]
    fn the_fused_way_and_the_plain_way_agree_and_turning_back_undoes() {
        tch::manual_seed(5);
        for (kind, rtol) in [(Kind::Float, 2e-6), (Kind::Double, 1e-14)] {
            let frequencies = Tensor::rand([16], (kind, Device::Cpu));
            let rope = Rope { frequencies, magnitude: 1.0 };
            for positions in [vec![0], (0..50).collect::<Vec<i64>>(), (0..400).rev().collect()] {
                let angles = rope.angles(&positions).unwrap();
                let start = Tensor::randn([positions.len() as i64, 5, 32], (kind, Device::Cpu));
                let (mut fused, plain) = (start.copy(), start.copy());
                angles.rotate(&mut fused, 4).unwrap();
                plain::rotate(&angles, &plain, 4, 1.0).unwrap();
                assert!(fused.allclose(&plain, rtol, rtol, false), "{kind:?}");
                assert_eq!(fused.narrow(1, 4, 1), start.narrow(1, 4, 1), "the last head is not turned");
                angles.rotate_back(&mut fused, 4).unwrap();
                assert!(fused.allclose(&start, 10.0 * rtol, 10.0 * rtol, false), "{kind:?}");
            }
        }
    }
}
