//! RMSNorm, forward and backward: `y = x · (mean(x²) + ε)^-½ · w` over the last dimension. The weight is frozen.
//!
//! Shapes: `…` any leading dimensions, `c` the width.
//!
//! Source: Zhang and Sennrich, arXiv:1910.07467, eq. 4. The backward is written by hand: with `g = dy·w` and `i` the
//! inverse root, `dx = i·(g - x·i²·mean(g·x))`.

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{
        ffi::{is_plain, numbers, numbers_mut},
        fused,
        number::Real,
    },
};

/// An RMSNorm with a frozen weight.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    /// The weight, `[c]`.
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
}

impl RmsNorm {
    /// Returns the norm in another kind, on another device.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        Ok(Self { weight: self.weight.f_to_kind(kind)?.f_to_device(device)?, epsilon: self.epsilon })
    }

    /// Normalizes `x: […, c] -> […, c]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match x.f_kind()? {
            Kind::Float if is_plain(x) => self.fused::<f32>(x),
            Kind::Double if is_plain(x) => self.fused::<f64>(x),
            _ => self.plain(x),
        }
    }

    /// Adds `x` to `sum`, both `[t, c]`, and returns the norm of the sum.
    pub(crate) fn add_forward(&self, sum: &mut Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        match x.f_kind()? {
            Kind::Float if is_plain(x) && is_plain(sum) => self.fused_add::<f32>(sum, x),
            Kind::Double if is_plain(x) && is_plain(sum) => self.fused_add::<f64>(sum, x),
            _ => {
                let _ = sum.f_add_(x)?;
                self.plain(sum)
            }
        }
    }

    /// Computes `dx: […, c]` from `dy: […, c]` and the forward's `x`.
    pub(crate) fn backward(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        let kind = x.f_kind()?;
        let x = &x.f_to_kind(at_least_float(kind))?;
        let inverse = self.inverse_root(x)?; // […, 1]
        let mut g = dy.f_mul(&self.weight)?.f_to_kind(at_least_float(kind))?; // […, c]
        let mut mean = g.f_mul(x)?.f_mean_dim([-1i64].as_slice(), true, None)?; // […, 1]
        let along = mean.f_mul_(&inverse)?.f_mul_(&inverse)?.f_neg_()?; // […, 1]
        Ok(g.f_addcmul_(x, &along)?.f_mul_(&inverse)?.f_to_kind(kind)?)
    }

    /// Computes `dx` plus the residual's gradient `around: [t, c]`, in the memory of `dy`.
    pub(crate) fn backward_around(&self, mut dy: Tensor, x: &Tensor, around: &Tensor) -> Result<Tensor, ModelError> {
        let plain = is_plain(&dy) && is_plain(x) && is_plain(around);
        match dy.f_kind()? {
            Kind::Float if plain => self.fused_backward::<f32>(&mut dy, x, around)?,
            Kind::Double if plain => self.fused_backward::<f64>(&mut dy, x, around)?,
            _ => dy = self.backward(&dy, x)?.f_add_(around)?,
        }
        Ok(dy)
    }

    fn fused<T: Real>(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let mut out = x.f_empty_like()?;
        fused::rms_norm::<T>(numbers(x)?, numbers(&self.weight)?, self.epsilon, numbers_mut(&mut out)?);
        Ok(out)
    }

    fn fused_add<T: Real>(&self, sum: &mut Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        let mut out = x.f_empty_like()?;
        let (sum, x, weight) = (numbers_mut(sum)?, numbers(x)?, numbers(&self.weight)?);
        fused::add_rms_norm::<T>(sum, x, weight, self.epsilon, numbers_mut(&mut out)?);
        Ok(out)
    }

    fn fused_backward<T: Real>(&self, dy: &mut Tensor, x: &Tensor, around: &Tensor) -> Result<(), ModelError> {
        let (x, weight, around) = (numbers(x)?, numbers(&self.weight)?, numbers(around)?);
        fused::rms_norm_backward::<T>(numbers_mut(dy)?, x, weight, self.epsilon, around);
        Ok(())
    }

    /// Normalizes with plain tensor operations: half-precision kinds in `f32`, as in transformers.
    fn plain(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let kind = x.f_kind()?;
        let wide = x.f_to_kind(at_least_float(kind))?;
        let normed = wide.f_mul(&self.inverse_root(&wide)?)?; // […, c]
        Ok(normed.f_to_kind(kind)?.f_mul_(&self.weight)?)
    }

    /// Computes `(mean(x²) + ε)^-½`: `[…, c] -> […, 1]`.
    fn inverse_root(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_square()?.f_mean_dim([-1i64].as_slice(), true, None)?.f_add_scalar_(self.epsilon)?.f_rsqrt_()?)
    }
}

/// Returns the kind in which sums and roots of `kind` are computed.
pub(crate) fn at_least_float(kind: Kind) -> Kind {
    if matches!(kind, Kind::BFloat16 | Kind::Half) { Kind::Float } else { kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative and absolute tolerance: the sums are in another order, so the last bits may differ.
    const KINDS: [(Kind, f64); 2] = [(Kind::Float, 2e-6), (Kind::Double, 1e-14)];

    #[test]
    fn the_fused_way_and_the_plain_way_agree() {
        tch::manual_seed(3);
        for (kind, rtol) in KINDS {
            for (rows, width) in [(1, 8), (3, 60), (200, 576), (1, 1001)] {
                let random = || Tensor::randn([rows, width], (kind, Device::Cpu));
                let norm = RmsNorm { weight: random().get(0), epsilon: 1e-5 };
                let (x, dy, around, start) = (random(), random(), random(), random());
                let close = |got: &Tensor, want: &Tensor| got.allclose(want, rtol, rtol, false);
                assert!(close(&norm.forward(&x).unwrap(), &norm.plain(&x).unwrap()), "{kind:?} {rows} {width}");
                let mut sum = start.copy();
                let normed = norm.add_forward(&mut sum, &x).unwrap();
                assert!(close(&sum, &(&start + &x)) && close(&normed, &norm.plain(&(&start + &x)).unwrap()));
                let want = norm.backward(&dy, &x).unwrap() + &around;
                let got = norm.backward_around(dy.copy(), &x, &around).unwrap();
                assert!(close(&got, &want), "backward {kind:?} {rows} {width}");
            }
        }
    }
}
