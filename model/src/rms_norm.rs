//! RMSNorm, forward and backward: `y = x · (mean(x²) + ε)^-½ · w` over the last dimension. The weight is frozen.
//!
//! Shapes: `…` any leading dimensions, `c` the width.
//!
//! Source: Zhang and Sennrich, arXiv:1910.07467, eq. 4. The backward is by hand: with `g = dy·w` and `i` the inverse root,
//! `dx = i·(g - x·i²·mean(g·x))`.

use tch::Tensor;

use crate::error::ModelError;

/// A frozen norm.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    /// `[c]`.
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
}

impl RmsNorm {
    /// `x: […, c] -> […, c]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_mul(&self.inverse_root(x)?)?.f_mul_(&self.weight)?)
    }

    /// `dy: […, c]` and the forward's `x` to `dx: […, c]`.
    pub(crate) fn backward(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        let inverse = self.inverse_root(x)?; // […, 1]
        let mut g = dy.f_mul(&self.weight)?; // […, c]
        let mut mean = g.f_mul(x)?.f_mean_dim([-1i64].as_slice(), true, None)?; // […, 1]
        let along = mean.f_mul_(&inverse)?.f_mul_(&inverse)?.f_neg_()?; // […, 1]
        Ok(g.f_addcmul_(x, &along)?.f_mul_(&inverse)?)
    }

    /// `[…, c] -> […, 1]`.
    fn inverse_root(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_square()?.f_mean_dim([-1i64].as_slice(), true, None)?.f_add_scalar_(self.epsilon)?.f_rsqrt_()?)
    }
}
