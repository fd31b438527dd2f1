//! SwiGLU, the nonlinearity of the feed-forward block: `silu(gate) · up`, forward and backward.
//!
//! Shapes: `t` rows, `f` the inner width. One linear computes `gate` and `up` as one tensor `[t, 2f]`.
//!
//! Source: Shazeer, arXiv:2002.05202, eq. 5 (without biases).

use tch::{Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{
        ffi::{is_plain, numbers, numbers_mut},
        fused,
        number::Real,
    },
};

/// Computes `gate_up: [t, 2f] -> [t, f]`.
pub(crate) fn swiglu(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    match gate_up.f_kind()? {
        Kind::Float if is_plain(gate_up) => fused::<f32>(gate_up),
        Kind::Double if is_plain(gate_up) => fused::<f64>(gate_up),
        _ => plain(gate_up),
    }
}

/// Computes from `dy: [t, f]` and the forward's `gate_up: [t, 2f]` the forward's output `[t, f]` again, and the
/// gradient `[t, 2f]` of `gate_up`. On a CPU both reuse the memory of the arguments.
pub(crate) fn swiglu_backward(mut dy: Tensor, mut gate_up: Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let is_plain = is_plain(&dy) && is_plain(&gate_up);
    match dy.f_kind()? {
        Kind::Float if is_plain => fused_backward::<f32>(&mut dy, &mut gate_up)?,
        Kind::Double if is_plain => fused_backward::<f64>(&mut dy, &mut gate_up)?,
        _ => return plain_backward(&dy, &gate_up),
    }
    Ok((dy, gate_up))
}

fn fused<T: Real>(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (rows, f) = (gate_up.size2()?.0, gate_up.size2()?.1 / 2);
    let mut out = Tensor::f_empty([rows, f], (gate_up.f_kind()?, gate_up.device()))?; // [t, f]
    fused::swiglu::<T>(numbers(gate_up)?, usize::try_from(f).unwrap_or(0), numbers_mut(&mut out)?);
    Ok(out)
}

fn fused_backward<T: Real>(dy: &mut Tensor, gate_up: &mut Tensor) -> Result<(), ModelError> {
    let f = usize::try_from(dy.size2()?.1).unwrap_or(0);
    fused::swiglu_backward::<T>(numbers_mut(gate_up)?, f, numbers_mut(dy)?);
    Ok(())
}

fn plain(gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (gate, up) = halves(gate_up)?;
    Ok(gate.f_silu()?.f_mul_(&up)?)
}

fn plain_backward(dy: &Tensor, gate_up: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let (gate, up) = halves(gate_up)?;
    let silu = gate.f_silu()?; // [t, f]
    let d_gate = gate.f_silu_backward(&dy.f_mul(&up)?)?; // [t, f]
    let d_up = dy.f_mul(&silu)?; // [t, f]
    Ok((silu.f_mul(&up)?, Tensor::f_cat(&[d_gate, d_up], 1)?))
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let half = gate_up.size2()?.1 / 2;
    Ok((gate_up.f_narrow(1, 0, half)?, gate_up.f_narrow(1, half, half)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_fused_way_and_the_plain_way_agree() {
        tch::manual_seed(4);
        // The fused `exp` is accurate to two units in the last place, libtorch's to one.
        for (kind, rtol) in [(Kind::Float, 2e-6), (Kind::Double, 1e-13)] {
            for (rows, f) in [(1, 3), (5, 64), (300, 515)] {
                let gate_up = Tensor::randn([rows, 2 * f], (kind, Device::Cpu)) * 6.0;
                let dy = Tensor::randn([rows, f], (kind, Device::Cpu));
                let close = |got: &Tensor, want: &Tensor| got.allclose(want, rtol, rtol, false);
                assert!(close(&swiglu(&gate_up).unwrap(), &plain(&gate_up).unwrap()), "{kind:?} {rows} {f}");
                let (want, d_want) = plain_backward(&dy, &gate_up).unwrap();
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
