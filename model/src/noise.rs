//! Randomness of training, as a pure function of a seed and a position: LoRA's dropout and NEFTune's noise. So a run
//! that resumes from a checkpoint needs no generator state, and a block that is recomputed under checkpointing drops
//! the same numbers.
//!
//! Sources: Steele et al., doi:10.1145/2660193.2660195, fig. 15 with the constants of Vigna's `splitmix64.c` (the
//! mixing); Srivastava et al., JMLR 15 (dropout; the kept numbers are scaled up, as in PyTorch); Jain et al.,
//! arXiv:2310.05914, algorithm 1 (NEFTune).

use tch::Tensor;

use crate::{
    error::ModelError,
    kernels::{ffi::numbers_mut, placement::HOST},
};

/// The random noise of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// The seed, a different one for each micro-batch.
    pub seed: u64,
    /// NEFTune's `α`; 0: no noise on the embeddings.
    pub neftune_noise_alpha: f64,
}

/// A dropout mask, as a pure function of its seed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dropout {
    /// The probability of dropping a number.
    pub(crate) share: f64,
    pub(crate) seed: u64,
}

impl Dropout {
    /// Returns the dropout of one layer or projection, with a seed derived from `place`.
    pub(crate) fn at(self, place: usize) -> Self {
        Self { seed: mixed(self.seed ^ mixed(place as u64 + 1)), ..self }
    }

    /// Returns `x` with a share of its numbers set to zero and the others scaled up. The same function is the backward
    /// pass: apply it to the gradient.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor, ModelError> {
        let kept = (1.0 / (1.0 - self.share)) as f32;
        let mut mask = filled_like(x, |at| if unit(self.seed, at) < self.share { 0.0 } else { kept })?;
        Ok(mask.f_mul_(x)?)
    }
}

/// Returns uniform noise from `±α/√(tokens · width)` in the shape of `x: [t, c]`. `tokens` holds, for each row, the
/// length of its sequence.
pub(crate) fn neftune(x: &Tensor, noise: Noise, tokens: &[usize]) -> Result<Tensor, ModelError> {
    let width = x.size2()?.1 as usize;
    let most = |tokens: &usize| noise.neftune_noise_alpha / (*tokens as f64 * width as f64).sqrt();
    let most: Vec<f64> = tokens.iter().map(most).collect();
    filled_like(x, |at| ((unit(noise.seed, at) * 2.0 - 1.0) * most[at / width]) as f32)
}

/// Returns a tensor like `x` with the `number` of each position.
fn filled_like(x: &Tensor, number: impl Fn(usize) -> f32) -> Result<Tensor, ModelError> {
    let mut made = Tensor::f_empty(x.size(), HOST)?;
    for (at, place) in numbers_mut(&mut made)?.iter_mut().enumerate() {
        *place = number(at);
    }
    Ok(made.f_to_kind(x.f_kind()?)?.f_to_device(x.device())?)
}

/// Returns a uniform number in `[0, 1)` for position `at`.
fn unit(seed: u64, at: usize) -> f64 {
    let bits = mixed(seed.wrapping_add((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Mixes the bits of a number (splitmix64's finalizer), so that neighboring inputs give unrelated outputs.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_share_is_dropped_the_rest_is_scaled_and_places_differ() {
        let x = Tensor::ones([100, 1000], (Kind::Float, Device::Cpu));
        let dropout = Dropout { share: 0.1, seed: 7 };
        let dropped = dropout.apply(&x).unwrap();
        let zeros = dropped.eq(0).sum(Kind::Int64).int64_value(&[]) as f64 / 1e5;
        // Four standard deviations of a share of 0.1 over 100 000 numbers are 0.0038.
        assert!((zeros - 0.1).abs() < 0.004, "{zeros}");
        assert!((dropped.max().double_value(&[]) - 1.0 / 0.9).abs() < 1e-6);
        assert_eq!(dropped, dropout.apply(&x).unwrap());
        let other = dropout.at(3).apply(&x).unwrap();
        let both = (dropped.eq(0) * other.eq(0)).sum(Kind::Int64).int64_value(&[]) as f64 / 1e5;
        assert!((both - 0.01).abs() < 0.002, "{both}");
    }

    #[test]
    fn noise_is_uniform_and_as_large_as_the_paper_has_it() {
        let x = Tensor::zeros([2, 5000], (Kind::Float, Device::Cpu));
        let noise = neftune(&x, Noise { seed: 3, neftune_noise_alpha: 5.0 }, &[10, 40]).unwrap();
        for (row, tokens) in [(0, 10.0), (1, 40.0_f64)] {
            let most = 5.0 / (tokens * 5000.0).sqrt();
            let row = noise.get(row);
            assert!(row.abs().max().double_value(&[]) <= most);
            // A uniform number from ±m has the standard deviation m/√3; 4 % is four of its own errors.
            assert!((row.std(false).double_value(&[]) / (most / 3.0_f64.sqrt()) - 1.0).abs() < 0.04);
            assert!(row.mean(Kind::Float).double_value(&[]).abs() < 4.0 * most / (3.0 * 5000.0_f64).sqrt());
        }
    }

    /// `neftune.*` of testdata/make_variants.py: the bounds of the noise that transformers' own hook generated.
    #[test]
    fn noise_is_as_large_as_transformers_generates_it() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/variants/variants.tensors");
        let bytes = std::fs::read(file).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |name: &str| -> Vec<f64> {
            let data = golden.tensor(name).unwrap().data();
            data.as_chunks().0.iter().map(|number| f64::from_le_bytes(*number)).collect()
        };
        let (cases, bounds) = (numbers("neftune.cases"), numbers("neftune.bounds"));
        assert_eq!(cases.len(), 3 * bounds.len());
        for (case, bound) in cases.as_chunks::<3>().0.iter().zip(bounds) {
            let [alpha, tokens, width] = *case;
            let x = Tensor::zeros([2 * tokens as i64, width as i64], (Kind::Float, Device::Cpu));
            let noise = Noise { seed: 9, neftune_noise_alpha: alpha };
            let drawn = neftune(&x, noise, &vec![tokens as usize; 2 * tokens as usize]).unwrap();
            for most in [drawn.max().double_value(&[]), -drawn.min().double_value(&[])] {
                assert!((0.99 * bound..=1.0001 * bound).contains(&most), "{case:?}: {most} of {bound}");
            }
        }
    }
}
