//! The memory of a tensor as a Rust slice: the one place with `unsafe` in this crate. NF4 packs and unpacks through it, and
//! the fused loops of `kernels.rs` run over it, at the speed of memory and without a copy.

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// A number that a tensor can hold and a slice can show.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Its kind in libtorch.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for f64 {
    const KIND: Kind = Kind::Double;
}

/// What a plain slice can stand for: kind `wanted`, on the CPU, without gaps. Returns the number of elements.
fn plain(tensor: &Tensor, wanted: Kind) -> Result<usize, ModelError> {
    if tensor.defined() && tensor.f_kind()? == wanted && is_plain(tensor) {
        Ok(tensor.numel())
    } else {
        Err(ModelError::Input(format!("a contiguous {wanted:?} tensor on the CPU is needed, and {tensor:?} was given")))
    }
}

/// It lies on the CPU, one number behind the other.
pub(crate) fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.is_contiguous() && !tensor.is_sparse() && !tensor.is_mkldnn()
}

/// The numbers of a contiguous tensor on the CPU, in row-major order.
///
/// # Errors
/// [`ModelError::Input`] for any other tensor.
pub(crate) fn numbers<T: Element>(tensor: &Tensor) -> Result<&[T], ModelError> {
    let count = plain(tensor, T::KIND)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: `plain` has checked that `data_ptr` leads to `count` numbers of this kind in a row, and `Element` is only
    // implemented for the types whose layout their kind has; libtorch aligns storage to 64 bytes and views to whole
    // elements; the borrow of `tensor` keeps the storage alive.
    #[expect(unsafe_code, reason = "tch has no view of a tensor's memory; copying every weight would halve the speed")]
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), count) })
}

/// The numbers of a contiguous tensor on the CPU, to be written. The caller must have made the tensor itself and not have
/// shared its storage: that is why it takes `&mut`, and why only this crate may call it.
///
/// # Errors
/// [`ModelError::Input`] for any other tensor.
pub(crate) fn numbers_mut<T: Element>(tensor: &mut Tensor) -> Result<&mut [T], ModelError> {
    let count = plain(tensor, T::KIND)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `numbers`; and the caller owns the only handle to this part of the storage, exclusively borrowed.
    #[expect(unsafe_code, reason = "tch has no view of a tensor's memory; copying every weight would halve the speed")]
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_shows_what_the_tensor_holds_and_writes_to_it() {
        let mut tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view((2, 2));
        assert_eq!(numbers::<f32>(&tensor).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        numbers_mut::<f32>(&mut tensor).unwrap()[3] = 9.0;
        assert_eq!(tensor.double_value(&[1, 1]), 9.0);
        let mut row = tensor.narrow(0, 1, 1);
        numbers_mut::<f32>(&mut row).unwrap()[0] = 7.0;
        assert_eq!(tensor.double_value(&[1, 0]), 7.0);
        assert_eq!(numbers::<f64>(&Tensor::from_slice(&[0.5])).unwrap(), [0.5]);
    }

    #[test]
    fn what_no_slice_can_stand_for_is_refused() {
        assert!(numbers::<f32>(&Tensor::from_slice(&[1f64])).is_err());
        assert!(numbers::<f32>(&Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view((2, 2)).tr()).is_err());
        assert!(numbers::<f32>(&Tensor::new()).is_err());
        assert!(numbers::<f32>(&Tensor::zeros([0], (Kind::Float, Device::Cpu))).unwrap().is_empty());
    }
}
