//! The choice of an operation's kernel: every choice by kind and device is in this file.
//!
//! An operation with several kernels is a folder: `mod.rs` states the formula and calls the kernel that is picked,
//! `cpu.rs` has the fused loops, and `plain.rs` the plain tensor operations that every device and kind has. Its tests
//! compare the two.

use tch::{Device, Kind, Tensor};

use crate::{error::ModelError, kernels::ffi::is_plain};

/// A family of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Loops over the memory of tensors, compiled for each number type.
    Cpu(Number),
    /// libtorch's tensor operations.
    Plain,
}

/// The number types of the CPU loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    F32,
    F64,
}

impl Kernel {
    /// Returns the family for a tensor's kind and device, for kernels that take any strides.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self, ModelError> {
        Ok(match tensor.f_kind()? {
            Kind::Float if is_on_cpu(tensor) => Self::Cpu(Number::F32),
            Kind::Double if is_on_cpu(tensor) => Self::Cpu(Number::F64),
            _ => Self::Plain,
        })
    }
}

/// Returns the family for an operation over the memory of `first` and `others`: the kind of `first` decides, and the
/// loops need all of them dense and contiguous. The loops refuse tensors of different kinds.
pub(crate) fn pick(first: &Tensor, others: &[&Tensor]) -> Result<Kernel, ModelError> {
    let is_memory = is_plain(first) && others.iter().all(|tensor| is_plain(tensor));
    if is_memory { Kernel::of(first) } else { Ok(Kernel::Plain) }
}

/// Returns whether a tensor is on the CPU: libtorch's own CPU kernels take every kind and any strides.
pub(crate) fn is_on_cpu(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_tensors_on_the_cpu_use_the_loops_of_their_kind() {
        let made = |kind| Tensor::zeros([4, 6], (kind, Device::Cpu));
        let (single, double, half) = (made(Kind::Float), made(Kind::Double), made(Kind::BFloat16));
        assert_eq!(pick(&single, &[]).unwrap(), Kernel::Cpu(Number::F32));
        assert_eq!(pick(&double, &[&double]).unwrap(), Kernel::Cpu(Number::F64));
        assert_eq!(pick(&half, &[]).unwrap(), Kernel::Plain);
    }

    #[test]
    fn a_view_with_gaps_is_plain_unless_the_kernel_takes_strides() {
        let whole = Tensor::zeros([4, 6], (Kind::Float, Device::Cpu));
        let view = whole.narrow(1, 0, 3);
        assert_eq!(pick(&view, &[]).unwrap(), Kernel::Plain);
        assert_eq!(pick(&whole, &[&view]).unwrap(), Kernel::Plain);
        assert_eq!(Kernel::of(&view).unwrap(), Kernel::Cpu(Number::F32));
        assert_eq!(Kernel::of(&view.to_kind(Kind::Half)).unwrap(), Kernel::Plain);
    }
}
