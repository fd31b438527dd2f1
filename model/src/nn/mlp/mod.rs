//! SwiGLU, the nonlinearity of the feed-forward block: `silu(gate) · up`, forward and backward.
//!
//! Shapes: `t` rows, `f` the inner width. One linear computes `gate` and `up` as one tensor `[t, 2f]`.
//!
//! Source: Shazeer, arXiv:2002.05202, eq. 5 (without biases).

mod cpu;
mod plain;

use tch::Tensor;

use crate::{
    error::ModelError,
    kernels::pick::{Kernel, Number, pick},
};

/// Computes `gate_up: [t, 2f] -> [t, f]`.
pub(crate) fn swiglu(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    match pick(gate_up, &[])? {
        Kernel::Cpu(Number::F32) => cpu::forward::<f32>(gate_up),
        Kernel::Cpu(Number::F64) => cpu::forward::<f64>(gate_up),
        _ => plain::forward(gate_up),
    }
}

/// Computes from `dy: [t, f]` and the forward's `gate_up: [t, 2f]` the forward's output `[t, f]` again, and the
/// gradient `[t, 2f]` of `gate_up`. On a CPU both reuse the memory of the arguments.
pub(crate) fn swiglu_backward(mut dy: Tensor, mut gate_up: Tensor) -> Result<(Tensor, Tensor), ModelError> {
    match pick(&dy, &[&gate_up])? {
        Kernel::Cpu(Number::F32) => cpu::backward::<f32>(&mut dy, &mut gate_up)?,
        Kernel::Cpu(Number::F64) => cpu::backward::<f64>(&mut dy, &mut gate_up)?,
        _ => return plain::backward(&dy, &gate_up),
    }
    Ok((dy, gate_up))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_fused_way_and_the_plain_way_agree() {
        tch::manual_seed(4);
        // The fused `exp` is accurate to two units in the last place, libtorch's to one.
        for (kind, rtol) in [(Kind::Float, 2e-6), (Kind::Double, 1e-13)] {
            for (rows, f) in [(1, 3), (5, 64), (300, 515)] {
                let gate_up = Tensor::randn([rows, 2 * f], (kind, Device::Cpu)) * 6.0;
                let dy = Tensor::randn([rows, f], (kind, Device::Cpu));
                let close = |got: &Tensor, want: &Tensor| got.allclose(want, rtol, rtol, false);
                assert!(close(&swiglu(&gate_up).unwrap(), &plain::forward(&gate_up).unwrap()), "{kind:?} {rows} {f}");
                let (want, d_want) = plain::backward(&dy, &gate_up).unwrap();
                let (got, d_got) = swiglu_backward(dy.copy(), gate_up.copy()).unwrap();
                assert!(close(&got, &want) && close(&d_got, &d_want), "backward {kind:?} {rows} {f}");
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_are_kept() {
        let gate = Tensor::from_slice(&[-1e30f32, -200.0, -87.5, 0.0, 88.5, 1e30, f32::NAN, f32::INFINITY]);
        let up = Tensor::ones([8], (Kind::Float, Device::Cpu));
        let row = Tensor::cat(&[gate.shallow_clone(), up], 0).unsqueeze(0);
        let got = Vec::<f32>::try_from(swiglu(&row).unwrap().squeeze_dim(0)).unwrap();
        assert!(got[..3].iter().all(|y| y.abs() < 1e-5), "{got:?}");
        assert_eq!((got[3], got[4], got[5]), (0.0, 88.5, 1e30));
        assert!(got[6].is_nan() && got[7].is_infinite(), "{got:?}");
    }
}
