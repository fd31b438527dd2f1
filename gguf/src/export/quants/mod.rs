//! The block formats of 4, 5, 6 and 8 bits, as ggml reads them, and the choice of their scales.
//!
//! The formats are those of ggml's `ggml-common.h` and of the functions `dequantize_row_…` in its `ggml-quants.c`. A
//! scale is the solution of a weighted least-squares problem: for given codes `q` of the numbers `x` with the weights
//! `w`, the scale `s` and the minimum `m` that minimize `Σ w (s·q − m − x)²` have a closed form; codes are rounded with
//! several scales around the one that spans all numbers, and the one with the least error is taken. The method is that
//! of llama.cpp's pull requests 1684 ("k-quants") and 4861.
//!
//! The weights are the importance of the columns, or else equal: an error of a weight changes the output of a matrix by
//! its product with the input, so the sum above, with the inputs' mean squares as weights, is the expected square of
//! the error of an output. llama.cpp multiplies these weights with a function of the numbers.

/// The encoding of a tensor's rows, in parallel.
pub(crate) mod encode;
/// Scales by weighted least squares.
mod fit;
/// Blocks of 256 4-bit integers.
mod q4_k;
/// Blocks of 32 5-bit integers.
mod q5_zero;
/// Blocks of 256 6-bit integers.
mod q6_k;
/// Blocks of 32 8-bit integers.
mod q8_zero;

#[cfg(test)]
mod tests;
