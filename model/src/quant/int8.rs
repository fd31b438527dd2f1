//! A weight in 8 bits per number and one scale per row. Codes, scales and unpacked numbers equal those of bitsandbytes
//! 0.50.2 bit for bit; the tests compare them. Activations stay as they are: this is a way to hold a weight, not to multiply.
//!
//! Source: Dettmers et al., arXiv:2208.07339, §2.1 (row-wise quantisation, without the split of outliers); the order of
//! operations from `int8_vectorwise_quant` and `int8_vectorwise_dequant` in bitsandbytes.

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// 1/127, as bitsandbytes writes it.
const STEP: f64 = 7.874_015_718_698_502e-3;

/// A frozen weight `[out, in]` in 8 bits.
#[derive(Debug)]
pub struct Int8 {
    /// `[out, in]`, `Int8`.
    codes: Tensor,
    /// `[out, 1]`, `Float`: the largest absolute value of each row.
    scales: Tensor,
}

impl Int8 {
    /// Packs `weight: [out, in]`, `Float`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: it has not two dimensions, or there is no memory.
    pub fn quantize(weight: &Tensor) -> Result<Self, ModelError> {
        weight.size2()?;
        let scales = weight.f_abs()?.f_amax([1i64].as_slice(), true)?; // [out, 1]
        // A row of zeros has no scale to divide by: any will do.
        let divisor = scales.f_masked_fill(&scales.f_eq(0)?, 1.0)?;
        let mut codes = weight.f_mul(&divisor.f_reciprocal()?.f_mul_scalar(127.0)?)?;
        Ok(Self { codes: codes.f_round_()?.f_to_kind(Kind::Int8)?, scales })
    }

    /// Unpacks to a new `Float` tensor `[out, in]`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: no memory.
    pub fn dequantize(&self) -> Result<Tensor, ModelError> {
        Ok(self.codes.f_to_kind(Kind::Float)?.f_mul_(&self.scales)?.f_mul_scalar_(STEP)?)
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.numel() + 4 * self.scales.numel()
    }

    /// The same weight elsewhere.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: no memory.
    pub fn to_device(&self, device: Device) -> Result<Self, ModelError> {
        Ok(Self { codes: self.codes.f_to_device(device)?, scales: self.scales.f_to_device(device)? })
    }

    /// `(codes, scales)`: `Int8` `[out, in]` and `Float` `[out, 1]`.
    pub fn tensors(&self) -> (&Tensor, &Tensor) {
        (&self.codes, &self.scales)
    }

    /// From what [`Int8::tensors`] gave.
    pub(crate) fn of(codes: Tensor, scales: Tensor) -> Self {
        Self { codes, scales }
    }
}
