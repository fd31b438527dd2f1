//! The end of the decoder: the final norm and the output projection; for training, also the cross-entropy of the rows
//! that predict a token, and its backward.
//!
//! Logits exist for [`LOSS_ROWS`] predicted tokens at a time, in one buffer. The vocabulary is their outer dimension,
//! `[v, m]`: libtorch's matmul is a sixth faster in this layout (162 against 138 of 181 GFLOP/s at 256 × 576 × 49152).
//!
//! Shapes: `t` rows of a batch, `m` predicted tokens, `c` hidden width, `v` vocabulary.
//!
//! Source: the loss is the cross-entropy of the next token over trained positions, as in transformers'
//! `ForCausalLMLoss` with `num_items_in_batch`.

use tch::{Device, Kind, Tensor};

use crate::{
    batch::{LossSum, Target},
    error::ModelError,
    kernels::{
        ffi::{is_plain, numbers_mut},
        fused::{self, Softmax},
        matmul::{linear, mm_into},
        number::Real,
    },
    nn::rms_norm::{RmsNorm, at_least_float},
};

/// The number of predicted tokens whose logits exist at the same time.
pub const LOSS_ROWS: i64 = 512;

/// The final norm and the output projection of a decoder.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) norm: RmsNorm,
    /// The output projection `[v, c]`; it shares the embedding's memory if the two are tied.
    pub(crate) lm_head: Tensor,
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
    pub(crate) fn to(&self, kind: Kind, device: Device, embed: Option<&Tensor>) -> Result<Self, ModelError> {
        let lm_head = match embed {
            Some(embed) => embed.shallow_clone(),
            None => self.lm_head.f_to_kind(kind)?.f_to_device(device)?,
        };
        Ok(Self { norm: self.norm.to(kind, device)?, lm_head })
    }

    /// Computes the logits: `[t, c] -> [t, v]`.
    pub(crate) fn logits(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        linear(&self.norm.forward(x)?, &self.lm_head, None)
    }

    /// Computes the loss of `targets`, predicted from `x: [m, c]`. With a normaliser it also returns the gradient
    /// `[m, c]` of the summed loss divided by the normaliser.
    pub(crate) fn loss(
        &self,
        x: &Tensor,
        targets: &[Target],
        normaliser: Option<u64>,
    ) -> Result<(LossSum, Option<Tensor>), ModelError> {
        let normed = self.norm.forward(x)?; // [m, c]
        let d_normed = normed.f_empty_like()?; // [m, c]
        let vocabulary = self.lm_head.size2()?.0;
        // One buffer for all chunks: memory of this size would be returned to the system, and cleared again, each time.
        let most = LOSS_ROWS.min(normed.size2()?.0);
        let kind = x.f_kind()?;
        let buffer = Tensor::f_empty([vocabulary * most], (kind, x.device()))?; // [v·m]
        let mut all = LossSum::default();
        let mut start = 0;
        for targets in targets.chunks(LOSS_ROWS as usize) {
            let count = targets.len() as i64;
            let mut logits = buffer.f_narrow(0, 0, vocabulary * count)?.f_view_([vocabulary, count])?;
            mm_into(&mut logits, &self.lm_head, &normed.f_narrow(0, start, count)?.f_tr()?)?; // [v, m]
            // The softmax of half-precision kinds is computed in `f32`.
            logits = logits.f_to_kind(at_least_float(kind))?;
            let softmax = softmax(&mut logits, targets)?;
            all += softmax.loss(targets);
            if let Some(normaliser) = normaliser {
                let out = d_normed.f_narrow(0, start, count)?;
                head_backward(&self.lm_head, &logits, (targets, &softmax), normaliser, out)?;
            }
            start += count;
        }
        let dx = normaliser.map(|_| self.norm.backward(&d_normed, x)).transpose()?; // [m, c]
        Ok((all, dx))
    }
}

/// Replaces `logits: [v, m]` by `exp(logit - max)`, see [`fused::softmax_columns`].
fn softmax(logits: &mut Tensor, targets: &[Target]) -> Result<Softmax<f64>, ModelError> {
    match logits.f_kind()? {
        Kind::Float if is_plain(logits) => fused::<f32>(logits, targets),
        Kind::Double if is_plain(logits) => fused::<f64>(logits, targets),
        _ => plain(logits, targets),
    }
}

fn fused<T: Real>(logits: &mut Tensor, targets: &[Target]) -> Result<Softmax<f64>, ModelError> {
    let ids: Vec<usize> = targets.iter().map(|target| target.id as usize).collect();
    let made = fused::softmax_columns::<T>(numbers_mut(logits)?, &ids);
    Ok(Softmax { divisor: made.divisor, wanted: made.wanted.into_iter().map(Real::wide).collect() })
}

fn plain(logits: &mut Tensor, targets: &[Target]) -> Result<Softmax<f64>, ModelError> {
    let largest = logits.f_amax([0i64].as_slice(), true)?; // [1, m]
    let wanted = logits.f_sub_(&largest)?.f_gather(0, &ids(targets, logits)?, false)?; // [1, m]
    let divisor = logits.f_exp_()?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?; // [m]
    let list = |t: &Tensor| Ok::<_, ModelError>(Vec::<f64>::try_from(t.f_to_kind(Kind::Double)?.f_reshape([-1])?)?);
    Ok(Softmax { divisor: list(&divisor)?, wanted: list(&wanted)? })
}

/// Returns the token IDs as `[1, m]`.
fn ids(targets: &[Target], like: &Tensor) -> Result<Tensor, ModelError> {
    let ids: Vec<i64> = targets.iter().map(|target| i64::from(target.id)).collect();
    Ok(Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?.f_to_device(like.device())?)
}

impl Softmax<f64> {
    fn loss(&self, targets: &[Target]) -> LossSum {
        let mut all = LossSum::default();
        for ((target, divisor), wanted) in targets.iter().zip(&self.divisor).zip(&self.wanted) {
            let count = u64::from(target.count);
            all.sum += (divisor.ln() - wanted) * count as f64;
            all.tokens += count;
            // A tie counts as correct.
            all.correct += if *wanted >= 0.0 { count } else { 0 };
        }
        all
    }
}

/// Writes `(softmax - one-hot)·head / normaliser` to `out: [m, c]`. `powers: [v, m]` are not divided by their sums yet:
/// that is done after the matmul, on the smaller matrix.
fn head_backward(
    lm_head: &Tensor,
    powers: &Tensor,
    (targets, softmax): (&[Target], &Softmax<f64>),
    normaliser: u64,
    mut out: Tensor,
) -> Result<(), ModelError> {
    let like = (powers.f_kind()?, powers.device());
    let ids = ids(targets, powers)?; // [1, m]
    let column = |numbers: Vec<f64>| Tensor::f_from_slice(&numbers)?.f_to_device(like.1)?.f_to_kind(like.0);
    let whole = column(softmax.divisor.iter().map(|divisor| -divisor).collect())?.f_unsqueeze(0)?; // [1, m]
    let _ = powers.shallow_clone().f_scatter_add_(0, &ids, &whole)?;
    let scale = |(target, divisor): (&Target, &f64)| f64::from(target.count) / (divisor * normaliser as f64);
    let scales = column(targets.iter().zip(&softmax.divisor).map(scale).collect())?.f_unsqueeze(1)?; // [m, 1]
    mm_into(&mut out, &powers.f_to_kind(lm_head.f_kind()?)?.f_tr()?, lm_head)?; // [m, c]
    let _ = out.f_mul_(&scales)?;
    Ok(())
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
                let target = |at: i64| Target { row: at as usize, id: (at * 31 % vocabulary) as u32, count: 1 };
                let targets: Vec<Target> = (0..count).map(target).collect();
                let (mut a, mut b) = (logits.copy(), logits.copy());
                let (got, want) = (softmax(&mut a, &targets).unwrap(), plain(&mut b, &targets).unwrap());
                assert!(a.allclose(&b, rtol, 1e-37, false), "{kind:?} {vocabulary} {count}");
                let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= rtol * b.abs());
                assert!(close(&got.divisor, &want.divisor) && close(&got.wanted, &want.wanted));
            }
        }
    }

    #[test]
    fn a_number_that_is_none_makes_the_loss_one() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = Tensor::from_slice(&[0.5, bad, 1.0, 2.0]).view((4, 1));
            let target = [Target { row: 0, id: 0, count: 1 }];
            let loss = softmax(&mut logits, &target).unwrap().loss(&target);
            assert!(!loss.sum.is_finite(), "{bad}: {}", loss.sum);
        }
    }
}
