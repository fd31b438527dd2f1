//! The memory of the keys and values of a few tokens: numbers, or codes of 8 bits.
//!
//! A code of 8 bits is the nearest of 255 steps between the negative and the positive largest number of its row, which
//! is one token's key or value of one head; the scale of the row is the size of a step.
//!
//! Shapes: `l` layers, `n` key heads, `b` tokens of a block, `d` head width.
//!
//! Source: "absmax" of Dettmers et al., arXiv:2208.07339, §2, by row; Liu et al., arXiv:2402.02750 (KIVI), compare it
//! with other granularities for keys and values.

use std::ops::Range;

use attune_domain::serve::KvCacheDtype;
use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::ffi::{numbers, numbers_mut},
};

/// The number of tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

/// The largest code.
const LARGEST_CODE: f32 = 127.0;
/// The least largest number of a row whose reciprocal, times 127, is finite. A row of smaller numbers has codes of 0.
const LEAST: f32 = 1e-30;

/// The keys and values of the tokens of a block.
#[derive(Debug)]
pub(crate) enum Pairs {
    /// Numbers, `[l, 2, n, b, d]`.
    Dense(Tensor),
    /// Codes of 8 bits.
    Int8 {
        /// `[l, 2, n, b, d]`.
        codes: Tensor,
        /// The scale of each row, `[l, 2, n, b]`.
        scales: Tensor,
    },
}

/// Rows of keys or values in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Numbers, `[_, d]`.
    Dense(&'a [f32]),
    /// Codes of 8 bits.
    Int8 {
        /// `[_, d]`.
        codes: &'a [i8],
        /// `[_]`.
        scales: &'a [f32],
    },
}

impl Rows<'_> {
    /// Returns the number of rows.
    pub(crate) fn count(&self, width: usize) -> usize {
        match self {
            Self::Dense(rows) => rows.len() / width.max(1),
            Self::Int8 { scales, .. } => scales.len(),
        }
    }

    /// Returns some of the rows.
    pub(crate) fn part(&self, rows: Range<usize>, width: usize) -> Self {
        let numbers = rows.start * width..rows.end * width;
        match *self {
            Self::Dense(all) => Self::Dense(&all[numbers]),
            Self::Int8 { codes, scales } => Self::Int8 { codes: &codes[numbers], scales: &scales[rows] },
        }
    }
}

impl Pairs {
    /// Creates the memory of a block of `shape`, `[l, 2, n, b, d]`.
    pub(crate) fn new(
        shape: &[i64; 5],
        (kind, device): (Kind, Device),
        dtype: KvCacheDtype,
    ) -> Result<Self, ModelError> {
        Ok(match dtype {
            KvCacheDtype::Auto => Self::Dense(Tensor::f_empty(shape.as_slice(), (kind, device))?),
            KvCacheDtype::Int8 => Self::Int8 {
                codes: Tensor::f_empty(shape.as_slice(), (Kind::Int8, device))?,
                scales: Tensor::f_empty(&shape[..4], (Kind::Float, device))?,
            },
        })
    }

    /// Copies all of another block.
    pub(crate) fn copy_from(&self, other: &Self) -> Result<(), ModelError> {
        match (self, other) {
            (Self::Dense(own), Self::Dense(other)) => own.shallow_clone().f_copy_(other)?,
            (Self::Int8 { codes, scales }, Self::Int8 { codes: other_codes, scales: other_scales }) => {
                codes.shallow_clone().f_copy_(other_codes)?;
                scales.shallow_clone().f_copy_(other_scales)?
            }
            _ => return Err(ModelError::Input("blocks of different types".into())),
        };
        Ok(())
    }

    /// Writes `new: [n, _, d]` as the keys (`half` 0) or values (1) of some tokens in a layer.
    pub(crate) fn put(&self, place: (usize, i64), tokens: &Range<usize>, new: &Tensor) -> Result<(), ModelError> {
        match self {
            Self::Dense(pairs) => view(pairs, place, tokens)?.f_copy_(new)?,
            Self::Int8 { codes, scales } => {
                let new = new.f_to_kind(Kind::Float)?;
                let largest = new.f_abs()?.f_amax([-1i64].as_slice(), true)?; // [n, _, 1]
                let steps =
                    largest.f_clamp_min(f64::from(LEAST))?.f_reciprocal()?.f_mul_scalar(f64::from(LARGEST_CODE))?;
                view(codes, place, tokens)?.f_copy_(&new.f_mul(&steps)?.f_round()?)?;
                let scale = largest.f_mul_scalar(f64::from(1.0 / LARGEST_CODE))?.f_squeeze_dim(-1)?; // [n, _]
                view(scales, place, tokens)?.f_copy_(&scale)?
            }
        };
        Ok(())
    }

    /// Returns the keys (`half` 0) or values (1) of some tokens in a layer, in `kind`: `[n, _, d]`.
    pub(crate) fn get(&self, place: (usize, i64), tokens: &Range<usize>, kind: Kind) -> Result<Tensor, ModelError> {
        match self {
            Self::Dense(pairs) => view(pairs, place, tokens),
            Self::Int8 { codes, scales } => {
                let codes = view(codes, place, tokens)?.f_to_kind(Kind::Float)?;
                let scales = view(scales, place, tokens)?.f_unsqueeze(-1)?; // [n, _, 1]
                Ok(codes.f_mul(&scales)?.f_to_kind(kind)?)
            }
        }
    }

    /// Writes one token's keys and values of a layer, `[n, d]` each, in `f32` on the CPU. `at` is the token's place in
    /// the block.
    pub(crate) fn put_row(
        &mut self,
        (layer, at): (usize, usize),
        (heads, width): (usize, usize),
        (key, value): (&[f32], &[f32]),
    ) -> Result<(), ModelError> {
        let first = 2 * layer * heads * BLOCK_TOKENS;
        // The places of the rows among those of the block, `[l, 2, n, b]`.
        let places = (0..2 * heads).map(|head| first + head * BLOCK_TOKENS + at);
        let rows = key.chunks_exact(width).chain(value.chunks_exact(width)).zip(places);
        match self {
            Self::Dense(pairs) => {
                let all = numbers_mut::<f32>(pairs)?;
                for (row, place) in rows {
                    all[place * width..(place + 1) * width].copy_from_slice(row);
                }
            }
            Self::Int8 { codes, scales } => {
                let (codes, scales) = (numbers_mut::<i8>(codes)?, numbers_mut::<f32>(scales)?);
                for (row, place) in rows {
                    scales[place] = quantize(row, &mut codes[place * width..(place + 1) * width]);
                }
            }
        }
        Ok(())
    }

    /// Returns the keys and the values of a layer, `[n, b, d]` each, in `f32` on the CPU.
    pub(crate) fn layer(&self, layer: usize, heads: usize, width: usize) -> Result<(Rows<'_>, Rows<'_>), ModelError> {
        let half = heads * BLOCK_TOKENS;
        let all = match self {
            Self::Dense(pairs) => Rows::Dense(numbers(pairs)?),
            Self::Int8 { codes, scales } => Rows::Int8 { codes: numbers(codes)?, scales: numbers(scales)? },
        };
        let first = 2 * layer * half;
        Ok((all.part(first..first + half, width), all.part(first + half..first + 2 * half, width)))
    }
}

/// Returns a view of the keys (`half` 0) or values (1) of some tokens in a layer: `[n, _, …]`.
fn view(all: &Tensor, (layer, half): (usize, i64), tokens: &Range<usize>) -> Result<Tensor, ModelError> {
    let all = all.f_select(0, layer as i64)?.f_select(0, half)?; // [n, b, …]
    Ok(all.f_narrow(1, tokens.start as i64, tokens.len() as i64)?)
}

/// Writes the codes of a row, and returns its scale, by the operations of [`Pairs::put`].
fn quantize(row: &[f32], codes: &mut [i8]) -> f32 {
    // The bits of positive numbers have the order of the numbers, and NaN comes last: its row must have a scale of NaN.
    let largest = row.iter().fold(0u32, |largest, number| largest.max(number.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let steps = 1.0 / largest.max(LEAST) * LARGEST_CODE;
    for (code, number) in codes.iter_mut().zip(row) {
        *code = (number * steps).round_ties_even() as i8;
    }
    largest * (1.0 / LARGEST_CODE)
}
