//! The memory of a tensor as a Rust slice. NF4 packs and unpacks through it, and the fused loops of the operations run
//! over it, at memory speed and without a copy. With `thread_pool.rs`, which lends borrowed work to threads, this is
//! the only file with `unsafe` in this crate.

use tch::{Device, Kind, Tensor};

#[cfg(target_arch = "x86_64")]
use crate::kernels::integer_matmul::{avx2, tiles::Piece, vnni};
use crate::{
    error::ModelError,
    kernels::{
        number::{Element, Real},
        thread_pool::parallel_for,
    },
};

/// Checks that a tensor can be read as a plain slice: kind `wanted`, on the CPU, contiguous. Returns the number of
/// elements.
fn plain(tensor: &Tensor, wanted: Kind) -> Result<usize, ModelError> {
    if tensor.defined() && tensor.f_kind()? == wanted && is_plain(tensor) {
        Ok(tensor.numel())
    } else {
        Err(ModelError::Input(format!("a contiguous {wanted:?} tensor on the CPU is needed, and {tensor:?} was given")))
    }
}

/// Checks as [`plain`] a tensor of any kind. Returns its size in bytes.
fn byte_count(tensor: &Tensor) -> Result<usize, ModelError> {
    let kind = tensor.f_kind()?;
    Ok(plain(tensor, kind)? * kind.elt_size_in_bytes())
}

/// Returns whether a tensor is on the CPU, dense and contiguous.
pub(crate) fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.is_contiguous() && !tensor.is_sparse() && !tensor.is_mkldnn()
}

/// Returns the numbers of a contiguous tensor on the CPU, in row-major order.
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

/// Returns the numbers of a contiguous tensor on the CPU, mutably. The caller must have created the tensor itself and
/// not have shared its storage: that is why this takes `&mut`, and why only this crate may call it.
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

/// Returns the bytes of a contiguous tensor on the CPU, of any kind, in row-major order.
///
/// # Errors
/// [`ModelError::Input`] for any other tensor.
pub(crate) fn bytes(tensor: &Tensor) -> Result<&[u8], ModelError> {
    let count = byte_count(tensor)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: as in `numbers`; every byte of a number is initialized, and a byte has no alignment.
    #[expect(unsafe_code, reason = "as in `numbers`")]
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), count) })
}

/// Returns the bytes of a contiguous tensor on the CPU, of any kind, mutably. The caller must have created the tensor
/// itself and not have shared its storage, as for [`numbers_mut`].
///
/// # Errors
/// [`ModelError::Input`] for any other tensor.
pub(crate) fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8], ModelError> {
    let count = byte_count(tensor)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `bytes`; and the caller has the only handle to this part of the storage, exclusively borrowed.
    #[expect(unsafe_code, reason = "as in `numbers`")]
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), count) })
}

/// Returns the bytes of numbers, in this processor's order.
pub(crate) fn bytes_of<T: Element>(numbers: &[T]) -> &[u8] {
    // SAFETY: `Element` is only implemented for number types, which have no padding, and a byte has no alignment; the
    // slice has the length and the lifetime of `numbers`.
    #[expect(unsafe_code, reason = "writing the scales of a whole model must not copy them")]
    unsafe {
        std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers))
    }
}

/// Returns the allocator's free memory to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn release_free_memory() {
    // SAFETY: the function takes a number, and may be called at any time from any thread.
    #[expect(unsafe_code, reason = "the allocator has no other interface")]
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Sets the size in bytes from which a block is mapped separately, and returned to the system when it is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn map_blocks_from(bytes: i32) {
    // SAFETY: the function takes two numbers, and may be called at any time from any thread.
    #[expect(unsafe_code, reason = "the allocator has no other interface")]
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}

/// Without glibc there is nothing to release.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn release_free_memory() {}

/// Without glibc there is nothing to set.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn map_blocks_from(_bytes: i32) {}

/// A matrix in a slice, with strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    numbers: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Returns a matrix of contiguous rows of `columns` numbers.
    pub(crate) fn rows(numbers: &'a [T], columns: usize) -> Self {
        Self { numbers, rows: numbers.len() / columns.max(1), columns, row_stride: columns, column_stride: 1 }
    }

    /// Returns a view of a two-dimensional tensor with contiguous rows or columns, with gaps between them or without.
    /// `None`: the tensor is not on the CPU, has another kind, or has other strides.
    pub(crate) fn of(tensor: &'a Tensor) -> Option<Self>
    where
        T: Element,
    {
        let count = |n: i64| usize::try_from(n).ok();
        let (&[rows, columns], &[row_stride, column_stride]) = (&tensor.size()[..], &tensor.stride()[..]) else {
            return None;
        };
        let lies_here = tensor.device() == Device::Cpu && tensor.kind() == T::KIND && !tensor.is_mkldnn();
        if !lies_here || rows.min(columns) < 1 || row_stride.min(column_stride) != 1 {
            return None;
        }
        let (rows, columns) = (count(rows)?, count(columns)?);
        let (row_stride, column_stride) = (count(row_stride)?, count(column_stride)?);
        let span = (rows - 1) * row_stride + (columns - 1) * column_stride + 1;
        // SAFETY: the tensor's numbers are of this kind and the last of them is `span - 1` after the first, all in the
        // one storage that the borrow keeps alive; those between them are numbers of the same storage.
        #[expect(unsafe_code, reason = "as in `numbers`")]
        let numbers = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), span) };
        Some(Self { numbers, rows, columns, row_stride, column_stride })
    }

    /// Returns the numbers of rows and columns.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Returns `count` columns, starting at `first`.
    fn columns_from(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.columns, "{count} columns from {first} of {}", self.columns);
        Self { numbers: &self.numbers[first * self.column_stride..], columns: count, ..self }
    }

    /// Returns the transpose of [`Self::rows`].
    pub(crate) fn turned(numbers: &'a [T], columns: usize) -> Self {
        let Self { rows, .. } = Self::rows(numbers, columns);
        Self { numbers, rows: columns, columns: rows, row_stride: 1, column_stride: columns }
    }
}

/// Some columns of a matrix with contiguous rows, for one thread to write while others write the other columns.
struct Columns<T> {
    /// The first number of the first row.
    first: *mut T,
    count: usize,
    /// The distance from row to row, in numbers.
    stride: usize,
}

// SAFETY: the code that constructs it ensures that no two have a column in common, and that the matrix outlives them.
#[expect(unsafe_code, reason = "the slices of columns overlap, although their elements do not")]
unsafe impl<T: Send> Send for Columns<T> {}

/// Computes `out = a·b`, or `out += a·b`, with contiguous rows, on this thread.
///
/// # Panics
/// The sizes do not fit.
pub(crate) fn multiply<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    let n = b.columns;
    assert!(a.columns == b.rows && out.len() == a.rows * n, "{} x {} into {}", a.rows, n, out.len());
    multiply_columns(&Columns { first: out.as_mut_ptr(), count: n, stride: n }, a, b, add);
}

/// Computes as [`multiply`], with the columns split into this many parts, in parallel.
///
/// # Panics
/// The sizes do not fit.
pub(crate) fn multiply_at_once<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool, pieces: usize) {
    let n = b.columns;
    assert!(a.columns == b.rows && out.len() == a.rows * n, "{} x {} into {}", a.rows, n, out.len());
    // Multiples of the library's innermost block, so that no part has a remainder, except the last.
    let share = n.div_ceil(pieces.max(1)).next_multiple_of(COLUMNS_TOGETHER);
    let first = out.as_mut_ptr();
    let columns = |start| Columns { first: first.wrapping_add(start), count: share.min(n - start), stride: n };
    parallel_for((0..n).step_by(share).map(|start| (start, columns(start))), |(start, columns)| {
        multiply_columns(&columns, a, b.columns_from(start, columns.count), add);
    });
}

/// The number of columns that a part's size is a multiple of.
const COLUMNS_TOGETHER: usize = 64;

/// Multiplies `a·b` into some columns of a matrix with `a`'s rows, which only the caller may write to.
fn multiply_columns<T: Real>(out: &Columns<T>, a: Matrix<'_, T>, b: Matrix<'_, T>, add: bool) {
    let (m, n, k) = (a.rows, out.count, a.columns);
    let stride = |stride: usize| stride as isize;
    // SAFETY: a `Matrix` is only constructed with strides that keep all of `rows × columns` inside its slice; the code
    // that constructed `out` has checked that it has as many rows as `a` and as many columns as `b`, and has exclusive
    // access to it.
    #[expect(unsafe_code, reason = "the library takes pointers")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.first,
            1,
            stride(out.stride),
            add,
            a.numbers.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.numbers.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Computes a piece of a product with AVX2.
///
/// # Panics
/// The processor does not have it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn with_avx2(piece: Piece<'_>) {
    assert!(avx2::is_available(), "the processor has no AVX2");
    // SAFETY: the function needs instructions that the processor has, as was checked.
    #[expect(unsafe_code, reason = "the function is compiled for more instructions than its caller")]
    unsafe {
        avx2::multiply(piece);
    }
}

/// Computes a piece of a product with AVX-512 VNNI.
///
/// # Panics
/// The processor does not have it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn with_vnni(piece: Piece<'_>) {
    assert!(vnni::is_available(), "the processor has no AVX-512 VNNI");
    // SAFETY: the function needs instructions that the processor has, as was checked.
    #[expect(unsafe_code, reason = "the function is compiled for more instructions than its caller")]
    unsafe {
        vnni::multiply(piece);
    }
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
    fn the_bytes_of_a_tensor_are_those_of_its_numbers() {
        let mut tensor = Tensor::from_slice(&[1f32, -2.5]);
        let want = [1f32.to_ne_bytes(), (-2.5f32).to_ne_bytes()].concat();
        assert_eq!((bytes(&tensor).unwrap(), bytes_of(&[1f32, -2.5])), (&want[..], &want[..]));
        bytes_mut(&mut tensor).unwrap()[4..].copy_from_slice(&8f32.to_ne_bytes());
        assert_eq!(tensor.double_value(&[1]), 8.0);
        assert!(bytes(&Tensor::zeros([0], (Kind::BFloat16, Device::Cpu))).unwrap().is_empty());
        assert!(bytes(&Tensor::zeros([2, 3], (Kind::Uint8, Device::Cpu)).tr()).is_err());
    }

    #[test]
    fn matrices_are_multiplied_as_libtorch_does() {
        tch::manual_seed(8);
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (64, 17, 33)] {
            let random = |rows, columns| Tensor::randn([rows, columns], (Kind::Double, Device::Cpu));
            let (a, b, mut out) = (random(m, k), random(n, k), random(m, n));
            let want = &out + a.mm(&b.tr());
            let (a, b) = (numbers::<f64>(&a).unwrap(), numbers::<f64>(&b).unwrap());
            let (a, b) = (Matrix::rows(a, k as usize), Matrix::turned(b, k as usize));
            multiply(numbers_mut(&mut out).unwrap(), a, b, true);
            assert!(out.allclose(&want, 1e-12, 1e-12, false), "{m} {k} {n}");
        }
    }

    #[test]
    fn what_no_slice_can_represent_is_refused() {
        assert!(numbers::<f32>(&Tensor::from_slice(&[1f64])).is_err());
        assert!(numbers::<f32>(&Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view((2, 2)).tr()).is_err());
        assert!(numbers::<f32>(&Tensor::new()).is_err());
        assert!(numbers::<f32>(&Tensor::zeros([0], (Kind::Float, Device::Cpu))).unwrap().is_empty());
    }
}
