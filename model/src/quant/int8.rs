//! Int8: a weight in 8 bits per number and one scale per row. Codes, scales and unpacked numbers equal those of
//! bitsandbytes 0.50.2 bit for bit; the tests compare them. Activations are not quantized: only the storage of weights
//! is.
//!
//! Source: Dettmers et al., arXiv:2208.07339, §2.1 (row-wise quantization, without outlier decomposition); the order of
//! operations from `int8_vectorwise_quant` and `int8_vectorwise_dequant` in bitsandbytes.

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// The constant 1/127, as bitsandbytes writes it.
const STEP: f64 = 7.874_015_718_698_502e-3;

/// A frozen weight `[out, in]` in 8 bits.
#[derive(Debug)]
pub struct Int8 {
    /// The codes, `[out, in]`, `Int8`.
    codes: Tensor,
    /// The scales, `[out, 1]`, `Float`: the largest absolute value of each row.
    scales: Tensor,
}

impl Int8 {
    /// Quantizes `weight: [out, in]`, `Float`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: it does not have two dimensions, or memory ran out.
    pub fn quantize(weight: &Tensor) -> Result<Self, ModelError> {
        weight.size2()?;
        let scales = weight.f_abs()?.f_amax([1i64].as_slice(), true)?; // [out, 1]
        // A row of zeros has a scale of zero; divide by 1 instead.
        let divisor = scales.f_masked_fill(&scales.f_eq(0)?, 1.0)?;
        let mut codes = weight.f_mul(&divisor.f_reciprocal()?.f_mul_scalar(127.0)?)?;
        Ok(Self { codes: codes.f_round_()?.f_to_kind(Kind::Int8)?, scales })
    }

    /// Unpacks to a new `Float` tensor `[out, in]`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn dequantize(&self) -> Result<Tensor, ModelError> {
        let mut out = Tensor::f_empty(self.codes.size(), (Kind::Float, self.device()))?; // [out, in]
        self.dequantize_into(&mut out)?;
        Ok(out)
    }

    /// Unpacks into `out: [out, in]`, `Float`, on the weight's device.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: it has another shape.
    pub(crate) fn dequantize_into(&self, out: &mut Tensor) -> Result<(), ModelError> {
        out.f_copy_(&self.codes)?;
        let _ = out.f_mul_(&self.scales)?.f_mul_scalar_(STEP)?;
        Ok(())
    }

    /// Returns the numbers of outputs and inputs.
    pub(crate) fn size(&self) -> Result<(i64, i64), ModelError> {
        Ok(self.codes.size2()?)
    }

    /// Returns the device of the weight.
    pub(crate) fn device(&self) -> Device {
        self.codes.device()
    }

    /// Returns the size in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.numel() + 4 * self.scales.numel()
    }

    /// Returns the same weight on another device.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn to_device(&self, device: Device) -> Result<Self, ModelError> {
        Ok(Self { codes: self.codes.f_to_device(device)?, scales: self.scales.f_to_device(device)? })
    }

    /// Returns `(codes, scales)`: `Int8` `[out, in]` and `Float` `[out, 1]`.
    pub fn tensors(&self) -> (&Tensor, &Tensor) {
        (&self.codes, &self.scales)
    }

    /// Restores a weight from the result of [`Int8::tensors`].
    pub(crate) fn of(codes: Tensor, scales: Tensor) -> Self {
        Self { codes, scales }
    }
}
