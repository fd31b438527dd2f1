//! RMSNorm, forward and backward: `y = x · (mean(x²) + ε)^-½ · w` over the last dimension. The weight is frozen.
//!
//! Shapes: `…` any leading dimensions, `c` the width.
//!
//! Source: Zhang and Sennrich, arXiv:1910.07467, eq. 4. The backward is written by hand: with `g = dy·w` and `i` the
//! inverse root, `dx = i·(g - x·i²·mean(g·x))`.

mod cpu;
mod plain;

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::pick::{Kernel, Number, pick},
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
        match pick(x, &[])? {
            Kernel::Cpu(Number::F32) => cpu::forward::<f32>(self, x),
            Kernel::Cpu(Number::F64) => cpu::forward::<f64>(self, x),
            _ => plain::forward(self, x),
        }
    }

    /// Adds `x` to `sum`, both `[t, c]`, and returns the norm of the sum.
    pub(crate) fn add_forward(&self, sum: &mut Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        match pick(x, &[&*sum])? {
            Kernel::Cpu(Number::F32) => cpu::add_forward::<f32>(self, sum, x),
            Kernel::Cpu(Number::F64) => cpu::add_forward::<f64>(self, sum, x),
            _ => plain::add_forward(self, sum, x),
        }
    }

    /// Computes `dx: […, c]` from `dy: […, c]` and the forward's `x`.
    pub(crate) fn backward(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        plain::backward(self, dy, x)
    }

    /// Computes `dx` plus the residual's gradient `around: [t, c]`, in the memory of `dy`.
    pub(crate) fn backward_around(&self, mut dy: Tensor, x: &Tensor, around: &Tensor) -> Result<Tensor, ModelError> {
        match pick(&dy, &[x, around])? {
            Kernel::Cpu(Number::F32) => cpu::backward_around::<f32>(self, &mut dy, x, around)?,
            Kernel::Cpu(Number::F64) => cpu::backward_around::<f64>(self, &mut dy, x, around)?,
            _ => dy = plain::backward(self, &dy, x)?.f_add_(around)?,
        }
        Ok(dy)
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
                assert!(
                    close(&norm.forward(&x).unwrap(), &plain::forward(&norm, &x).unwrap()),
                    "{kind:?} {rows} {width}"
                );
                let mut sum = start.copy();
                let normed = norm.add_forward(&mut sum, &x).unwrap();
                assert!(close(&sum, &(&start + &x)) && close(&normed, &plain::forward(&norm, &(&start + &x)).unwrap()));
                let want = norm.backward(&dy, &x).unwrap() + &around;
                let got = norm.backward_around(dy.copy(), &x, &around).unwrap();
                assert!(close(&got, &want), "backward {kind:?} {rows} {width}");
            }
        }
    }
}
