//! The end of the decoder: the final norm and the output projection; for training, also the weighted cross-entropy of
//! the rows that predict a token, and its backward.
//!
//! Logits exist for [`LOSS_ROWS`] predicted tokens at a time, in one buffer. The vocabulary is their outer dimension,
//! `[v, m]`: libtorch's matmul is a sixth faster in this layout (162 against 138 of 181 GFLOP/s at 256 × 576 × 49152).
//!
//! Shapes: `t` rows of a batch, `m` predicted tokens, `c` hidden width, `v` vocabulary.
//!
//! Source: the loss is the cross-entropy of the next token over trained positions, as in transformers'
//! `ForCausalLMLoss` with `num_items_in_batch`.

mod cpu;
mod plain;

use attune_domain::memory::LOSS_CHUNK_ROWS;
use tch::{Device, Kind, Tensor};

use crate::{
    batch::{LossSum, Target},
    error::ModelError,
    kernels::{
        matmul::mm_into,
        pick::{Kernel, Number, pick},
    },
    nn::{
        rms_norm::{RmsNorm, at_least_float},
        scratch::{self, Scratch, Slot},
        token_matrix::TokenMatrix,
    },
};

/// The number of predicted tokens whose logits exist at the same time.
pub const LOSS_ROWS: i64 = LOSS_CHUNK_ROWS as i64;

/// The final norm and the output projection of a decoder.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) norm: RmsNorm,
    /// The output projection `[v, c]`; it shares the embedding's memory if the two are tied.
    pub(crate) lm_head: TokenMatrix,
}

/// Returns the rows `[m]` that predict the targets. A shared row that predicts several tokens occurs once for each.
pub(crate) fn rows_of(targets: &[Target], device: Device) -> Result<Tensor, ModelError> {
    if targets.is_empty() {
        return Err(ModelError::Input("a batch without a trained token".into()));
    }
    let rows: Vec<i64> = targets.iter().map(|target| target.row as i64).collect();
    Ok(Tensor::f_from_slice(&rows)?.f_to_device(device)?)
}

impl Head {
    /// Returns the head in another kind, on another device. `embed` is the converted embedding if the two are tied.
    pub(crate) fn to(&self, kind: Kind, device: Device, embed: Option<&TokenMatrix>) -> Result<Self, ModelError> {
        let lm_head = match embed {
            Some(embed) => embed.shared(),
            None => self.lm_head.to(kind, device)?,
        };
        Ok(Self { norm: self.norm.to(kind, device)?, lm_head })
    }

    /// Computes the logits: `[t, c] -> [t, v]`.
    pub(crate) fn logits(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.lm_head.products(&self.norm.forward(x)?)
    }

    /// Computes the weighted loss of `targets`, predicted from `x: [m, c]`. With a normaliser it also returns the
    /// gradient `[m, c]` of the summed loss divided by the normaliser.
    pub(crate) fn loss(
        &self,
        x: &Tensor,
        targets: &[Target],
        normaliser: Option<u64>,
    ) -> Result<(LossSum, Option<Tensor>), ModelError> {
        let normed = self.norm.forward(x)?; // [m, c]
        let d_normed = normed.f_empty_like()?; // [m, c]
        let size = (1, self.logit_numbers(normed.size2()?.0)?);
        let scratch = Scratch::of(Slot::Logits, size, (x.f_kind()?, x.device()))?; // [1, v·m]
        let buffer = scratch.matrix().f_view_([-1])?; // [v·m]
        let mut all = LossSum::default();
        let mut start = 0;
        for targets in targets.chunks(LOSS_ROWS as usize) {
            let count = targets.len() as i64;
            let chunk = self.predict(&normed.f_narrow(0, start, count)?, targets, &buffer)?;
            all += chunk.loss();
            if let Some(normaliser) = normaliser {
                chunk.backward(self.lm_head.dense()?, normaliser, d_normed.f_narrow(0, start, count)?)?;
            }
            start += count;
        }
        let dx = normaliser.map(|_| self.norm.backward(&d_normed, x)).transpose()?; // [m, c]
        Ok((all, dx))
    }

    /// Returns how many logits exist at the same time, for `rows` predicted tokens in all.
    fn logit_numbers(&self, rows: i64) -> Result<i64, ModelError> {
        Ok(self.lm_head.dense()?.size2()?.0 * LOSS_ROWS.min(rows))
    }

    /// Reserves memory for the logits of `rows` predicted tokens.
    pub(crate) fn reserve(&self, rows: i64, options: (Kind, Device)) -> Result<(), ModelError> {
        scratch::reserve(Slot::Logits, self.logit_numbers(rows)?, options)
    }

    /// Computes the predictions of `targets` from `normed: [m, c]`. Their logits are in `buffer`, until the next call.
    fn predict<'a>(
        &self,
        normed: &Tensor,
        targets: &'a [Target],
        buffer: &Tensor,
    ) -> Result<Predictions<'a>, ModelError> {
        let lm_head = self.lm_head.dense()?;
        let (vocabulary, count) = (lm_head.size2()?.0, targets.len() as i64);
        let mut logits = buffer.f_narrow(0, 0, vocabulary * count)?.f_view_([vocabulary, count])?;
        mm_into(&mut logits, lm_head, &normed.f_tr()?)?; // [v, m]
        // The softmax of half-precision kinds is computed in `f32`.
        logits = logits.f_to_kind(at_least_float(logits.f_kind()?))?;
        let softmax = softmax(&mut logits, targets)?;
        Ok(Predictions { targets, powers: logits, softmax })
    }
}

/// The predictions of one chunk of targets.
struct Predictions<'a> {
    targets: &'a [Target],
    /// The softmax of each target `[v, m]`, not yet divided by its sum.
    powers: Tensor,
    softmax: Softmax,
}

impl Predictions<'_> {
    /// Returns the log-probability of each target, in nats.
    fn token_logprobs(&self) -> impl Iterator<Item = f64> {
        self.softmax.wanted.iter().zip(&self.softmax.divisor).map(|(wanted, divisor)| wanted - divisor.ln())
    }

    fn loss(&self) -> LossSum {
        let mut all = LossSum::default();
        for ((target, logprob), wanted) in self.targets.iter().zip(self.token_logprobs()).zip(&self.softmax.wanted) {
            let count = u64::from(target.count);
            all.sum -= logprob * target.weight;
            all.tokens += count;
            // A tie counts as correct.
            all.correct += if *wanted >= 0.0 { count } else { 0 };
        }
        all
    }

    /// Writes the gradient of the weighted loss, `weight · (softmax - one-hot)·head / normaliser`, to `out: [m, c]`.
    /// The softmax is divided by its sums after the matmul, on the smaller matrix.
    fn backward(self, lm_head: &Tensor, normaliser: u64, mut out: Tensor) -> Result<(), ModelError> {
        let Self { targets, mut powers, softmax } = self;
        let like = (powers.f_kind()?, powers.device());
        let ids = ids(targets, &powers)?; // [1, m]
        let column = |numbers: Vec<f64>| Tensor::f_from_slice(&numbers)?.f_to_device(like.1)?.f_to_kind(like.0);
        let whole = column(softmax.divisor.iter().map(|divisor| -divisor).collect())?.f_unsqueeze(0)?; // [1, m]
        let _ = powers.f_scatter_add_(0, &ids, &whole)?;
        let scale = |(target, divisor): (&Target, &f64)| target.weight / (divisor * normaliser as f64);
        let scales = column(targets.iter().zip(&softmax.divisor).map(scale).collect())?.f_unsqueeze(1)?; // [m, 1]
        mm_into(&mut out, &powers.f_to_kind(lm_head.f_kind()?)?.f_tr()?, lm_head)?; // [m, c]
        let _ = out.f_mul_(&scales)?;
        Ok(())
    }
}

/// The sums of the softmax of each column, and the difference between the target's logit and the largest.
struct Softmax {
    /// The sum `Σ exp(logit - largest)`.
    divisor: Vec<f64>,
    /// The difference `wanted - largest`; 0 only if the target's logit is the largest, NaN if a logit is.
    wanted: Vec<f64>,
}

/// Replaces `logits: [v, m]` by `exp(logit - max)`: each column's softmax, not yet divided by its sum.
fn softmax(logits: &mut Tensor, targets: &[Target]) -> Result<Softmax, ModelError> {
    match pick(logits, &[])? {
        Kernel::Cpu(Number::F32) => cpu::softmax::<f32>(logits, targets),
        Kernel::Cpu(Number::F64) => cpu::softmax::<f64>(logits, targets),
        _ => {
            let ids = ids(targets, logits)?; // [1, m]
            plain::softmax(logits, &ids)
        }
    }
}

/// Returns the token IDs as `[1, m]`.
fn ids(targets: &[Target], like: &Tensor) -> Result<Tensor, ModelError> {
    let ids: Vec<i64> = targets.iter().map(|target| i64::from(target.id)).collect();
    Ok(Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?.f_to_device(like.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fused_way_and_the_plain_way_agree() {
        tch::manual_seed(6);
        for (kind, rtol) in [(Kind::Float, 1e-5), (Kind::Double, 1e-12)] {
            for (vocabulary, count) in [(3, 1), (70, 9), (5000, 130)] {
                let logits = Tensor::randn([vocabulary, count], (kind, Device::Cpu)) * 9.0;
                let target =
                    |at: i64| Target { row: at as usize, id: (at * 31 % vocabulary) as u32, count: 1, weight: 1.0 };
                let targets: Vec<Target> = (0..count).map(target).collect();
                let (mut a, mut b) = (logits.copy(), logits.copy());
                let (got, want) = (
                    softmax(&mut a, &targets).unwrap(),
                    plain::softmax(&mut b, &ids(&targets, &logits).unwrap()).unwrap(),
                );
                assert!(a.allclose(&b, rtol, 1e-37, false), "{kind:?} {vocabulary} {count}");
                let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= rtol * b.abs());
                assert!(close(&got.divisor, &want.divisor) && close(&got.wanted, &want.wanted));
            }
        }
    }

    #[test]
    fn the_logprobs_are_those_of_log_softmax_and_the_loss_is_weighted() {
        let mut logits = Tensor::from_slice(&[0.5, -1.0, 2.0, 0.25, 3.0, 1.0]).view((3, 2)); // [v, m]
        let log = logits.log_softmax(0, None);
        let target = |row, id, weight| Target { row, id, count: 2, weight };
        let targets = [target(0, 1, 2.0), target(1, 2, -0.5)];
        let softmax = softmax(&mut logits, &targets).unwrap();
        let chunk = Predictions { targets: &targets, powers: logits, softmax };
        let want = [log.double_value(&[1, 0]), log.double_value(&[2, 1])];
        let got: Vec<f64> = chunk.token_logprobs().collect();
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12), "{got:?} {want:?}");
        let loss = chunk.loss();
        assert!((loss.sum - (0.5 * want[1] - 2.0 * want[0])).abs() < 1e-12, "{loss:?}");
        assert_eq!((loss.tokens, loss.correct), (4, 2));
    }

    #[test]
    fn a_number_that_is_not_finite_makes_the_loss_one() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = Tensor::from_slice(&[0.5, bad, 1.0, 2.0]).view((4, 1));
            let targets = [Target { row: 0, id: 0, count: 1, weight: 1.0 }];
            let softmax = softmax(&mut logits, &targets).unwrap();
            let loss = Predictions { targets: &targets, powers: logits, softmax }.loss();
            assert!(!loss.sum.is_finite(), "{bad}: {}", loss.sum);
        }
    }
}
