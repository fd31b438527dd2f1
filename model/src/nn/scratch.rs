//! The memory of the largest tensors of a step, which are needed for a short time each: the weight that is in use, and
//! the logits. Each thread has one buffer for either, as large as the largest so far.
//!
//! A linear needs its weight unpacked, or a copy to add the factors to, once or twice in a step. As separate tensors of
//! several sizes they would leave holes among the activations, which other tensors then fill in part; so a run would
//! need up to a half more memory than its tensors, and each run another amount. The buffers are reserved before the
//! activations exist.

use std::{cell::RefCell, ops::Deref};

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

thread_local! {
    /// The buffers, `[n]` each, indexed by [`Slot`]; empty while they are in use.
    static BUFFERS: [RefCell<Option<Tensor>>; 2] = const { [RefCell::new(None), RefCell::new(None)] };
}

/// A buffer of a thread.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Slot {
    Weight,
    Logits,
}

/// A matrix in a buffer of this thread. Dropping it returns the buffer.
pub(crate) struct Scratch {
    slot: Slot,
    buffer: Option<Tensor>,
    matrix: Tensor,
}

/// Frees this thread's buffers.
pub(crate) fn clear() {
    BUFFERS.with(|buffers| buffers.iter().for_each(|buffer| drop(buffer.take())));
}

/// Makes a buffer of this thread large enough for `count` numbers.
pub(crate) fn reserve(slot: Slot, count: i64, options: (Kind, Device)) -> Result<(), ModelError> {
    if count > 0 {
        drop(Scratch::of(slot, (1, count), options)?);
    }
    Ok(())
}

impl Scratch {
    /// Returns a matrix of this size with any content. While the buffer is in use, it is in new memory.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub(crate) fn of(slot: Slot, (rows, columns): (i64, i64), options: (Kind, Device)) -> Result<Self, ModelError> {
        let count = rows * columns;
        let fits = |buffer: &Tensor| {
            buffer.numel() as i64 >= count && buffer.f_kind().is_ok_and(|kind| (kind, buffer.device()) == options)
        };
        let buffer = match BUFFERS.with(|buffers| buffers[slot as usize].take()).filter(fits) {
            Some(buffer) => buffer,
            None => Tensor::f_empty([count], options)?,
        };
        let matrix = buffer.f_narrow(0, 0, count)?.f_view_([rows, columns])?;
        Ok(Self { slot, buffer: Some(buffer), matrix })
    }

    /// Returns the matrix.
    pub(crate) fn matrix(&self) -> &Tensor {
        &self.matrix
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let size = |buffer: &Option<Tensor>| buffer.as_ref().map_or(0, Tensor::numel);
        // Fails if the thread is ending, and its buffers gone.
        let _ = BUFFERS.try_with(|buffers| {
            let mut kept = buffers[self.slot as usize].borrow_mut();
            if size(&kept) < size(&self.buffer) {
                *kept = self.buffer.take();
            }
        });
    }
}

/// A weight for one use.
pub(crate) enum InUse {
    /// In this thread's buffer.
    Scratch(Scratch),
    /// In memory of its own, or shared with the linear.
    Tensor(Tensor),
}

impl Deref for InUse {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Scratch(scratch) => scratch.matrix(),
            Self::Tensor(tensor) => tensor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_buffer_serves_all_sizes_and_nested_uses_do_not_share_it() {
        let options = (Kind::Float, Device::Cpu);
        let address = |scratch: &Scratch| scratch.matrix().data_ptr();
        let of = |size| Scratch::of(Slot::Weight, size, options).unwrap();
        reserve(Slot::Weight, 600, options).unwrap();
        let large = of((20, 30));
        let first = address(&large);
        let (nested, logits) = (of((2, 3)), Scratch::of(Slot::Logits, (2, 3), options).unwrap());
        assert!(address(&nested) != first && address(&logits) != first);
        drop((large, nested, logits));
        let small = of((5, 7));
        assert_eq!((address(&small), small.matrix().size()), (first, vec![5, 7]));
        drop(small);
        let other = Scratch::of(Slot::Weight, (5, 7), (Kind::Double, Device::Cpu)).unwrap();
        assert_eq!(other.matrix().kind(), Kind::Double);
        drop(other);
        clear();
        assert!(BUFFERS.with(|buffers| buffers.iter().all(|buffer| buffer.borrow().is_none())));
    }
}
