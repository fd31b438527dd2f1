//! How the allocator treats the memory of tensors. A process that trains switches between two ways:
//!
//! - Tensors that stay, such as weights and moments, are mapped separately. So the copies that a load makes leave no
//!   holes between them: what is freed is returned to the system.
//! - The tensors of a training step are hundreds of the same sizes, again and again. Mapping each again, page by page
//!   and zeroed, is a twentieth of the step's time, so freed memory is kept for the next one.
//!
//! The settings are glibc's. Elsewhere both functions do nothing.

use crate::{
    kernels::ffi::{map_blocks_from, release_free_memory},
    nn::scratch,
};

/// The size of a block, in bytes, from which it is mapped separately: glibc's default, which is fixed here and does not
/// grow with the blocks that are freed.
const SEPARATE: i32 = 1 << 17;

/// Returns freed memory to the system, now and from now on: before a phase that allocates what stays. This thread's
/// buffers are freed, too.
pub fn return_freed_memory() {
    scratch::clear();
    map_blocks_from(SEPARATE);
    release_free_memory();
}

/// Keeps freed memory for the next tensor, from now on: before a phase that repeats the same work.
pub fn keep_freed_memory() {
    release_free_memory();
    map_blocks_from(i32::MAX);
}
