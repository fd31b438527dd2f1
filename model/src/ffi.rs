//! The memory of a tensor as a Rust slice: the one place with `unsafe` in this crate. NF4 packs and unpacks through it,
//! at the speed of memory and without a copy.

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// What a plain slice can stand for: kind `wanted`, on the CPU, without gaps. Returns the number of elements.
fn plain(tensor: &Tensor, wanted: Kind) -> Result<usize, ModelError> {
    let fits = tensor.defined()
        && tensor.f_kind()? == wanted
        && tensor.device() == Device::Cpu
        && tensor.is_contiguous()
        && !tensor.is_sparse()
        && !tensor.is_mkldnn();
    if fits {
        Ok(tensor.numel())
    } else {
        Err(ModelError::Input(format!("a contiguous {wanted:?} tensor on the CPU is needed, and {tensor:?} was given")))
    }
}

/// The numbers of a contiguous `Float` tensor on the CPU, in row-major order.
///
/// # Errors
/// [`ModelError::Input`] for any other tensor.
pub(crate) fn floats(tensor: &Tensor) -> Result<&[f32], ModelError> {
    let count = plain(tensor, Kind::Float)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: `plain` has checked that `data_ptr` leads to `count` f32 in a row; libtorch aligns storage to 64 bytes and
    // views to whole elements; the borrow of `tensor` keeps the storage alive.
    #[expect(unsafe_code, reason = "tch has no view of a tensor's memory; copying every weight would halve the speed")]
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), count) })
}

/// The numbers of a contiguous `Float` tensor on the CPU, to be written. The caller must have made the tensor itself and
/// not have shared its storage: that is why it takes `&mut`, and why only this crate may call it.
///
/// # Errors
/// [`ModelError::Input`] for any other tensor.
pub(crate) fn floats_mut(tensor: &mut Tensor) -> Result<&mut [f32], ModelError> {
    let count = plain(tensor, Kind::Float)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `floats`; and the caller owns the only handle to this part of the storage, exclusively borrowed.
    #[expect(unsafe_code, reason = "tch has no view of a tensor's memory; copying every weight would halve the speed")]
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_shows_what_the_tensor_holds_and_writes_to_it() {
        let mut tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view((2, 2));
        assert_eq!(floats(&tensor).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        floats_mut(&mut tensor).unwrap()[3] = 9.0;
        assert_eq!(tensor.double_value(&[1, 1]), 9.0);
        let mut row = tensor.narrow(0, 1, 1);
        floats_mut(&mut row).unwrap()[0] = 7.0;
        assert_eq!(tensor.double_value(&[1, 0]), 7.0);
    }

    #[test]
    fn what_no_slice_can_stand_for_is_refused() {
        assert!(floats(&Tensor::from_slice(&[1f64])).is_err());
        assert!(floats(&Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view((2, 2)).tr()).is_err());
        assert!(floats(&Tensor::new()).is_err());
        assert!(floats(&Tensor::zeros([0], (Kind::Float, Device::Cpu))).unwrap().is_empty());
    }
}
