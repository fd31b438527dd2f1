//! A weight in tiles of codes, as the kernels read it: [`LANES`] outputs next to each other, so that the codes of a
//! decoding step are read once, in order.
//!
//! A tile is cut into blocks of [`BLOCK`] inputs, and a block into chunks of 64 bytes. A chunk has four bytes for each
//! output. With 8 bits these are the codes of four inputs; with 4 bits their low halves are the codes of four inputs,
//! and their high halves those of the next four.
//!
//! GGUF's blocks have 32 inputs: they are laid out with scales, and minima, for the halves of a block, in the half
//! precision that they have in the file.
//!
//! Shapes: `out`, `in` widths, `t` rows.

use half::f16;

use super::rows::{BLOCK, Rows};
use crate::kernels::thread_pool::parallel_for;

/// The number of outputs of a tile: the 32-bit lanes of an AVX-512 register.
pub(crate) const LANES: usize = 16;

/// 64 bytes of codes, one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Chunk(pub(crate) [u8; 64]);

/// A weight `[out, in]` of 8-bit numbers, or of 4-bit codes of 13-bit numbers, with scales.
///
/// A weight is `number · scale`, or `number · scale + minimum`.
#[derive(Debug)]
pub(crate) struct Tiles {
    out_dim: usize,
    in_dim: usize,
    /// The number that each 4-bit code represents, up to [`LARGEST_LEVEL`](super::rows::LARGEST_LEVEL); `None`: the
    /// codes are the numbers.
    levels: Option<[i16; 16]>,
    codes: Vec<Chunk>,
    scales: Scales,
}

/// The scales of all tiles, each for the outputs of a tile.
#[derive(Debug)]
enum Scales {
    /// In `f32`, per block or per tile.
    Single(Scaled, Vec<[f32; LANES]>),
    /// In half precision, per half of a block; `mins` are the minima, or empty.
    Half { scales: Vec<[u16; LANES]>, mins: Vec<[u16; LANES]> },
}

/// The number in half precision, as its bits, of an output and a half of a block.
pub(crate) type OfHalf<'a> = &'a dyn Fn(usize, usize) -> u16;

/// The inputs that a scale of the weight applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaled {
    /// The inputs of one block.
    Block,
    /// All inputs of an output.
    Row,
}

/// One tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// The chunks of all blocks: 8 per block with `levels`, else 16.
    pub(crate) codes: &'a [Chunk],
    pub(crate) scales: TileScales<'a>,
}

/// The scales of one tile.
#[derive(Clone, Copy)]
pub(crate) enum TileScales<'a> {
    /// In `f32`, per block; or one for all.
    Single(&'a [[f32; LANES]]),
    /// In half precision, per half of a block; `mins` are the minima, or empty.
    Half { scales: &'a [[u16; LANES]], mins: &'a [[u16; LANES]] },
}

impl TileScales<'_> {
    /// Returns the scales of a part, a block or a half of one, and its minima.
    #[inline(always)]
    pub(crate) fn of(&self, part: usize) -> ([f32; LANES], Option<[f32; LANES]>) {
        let wide = |numbers: &[u16; LANES]| numbers.map(|bits| f16::from_bits(bits).to_f32());
        match self {
            Self::Single(scales) => (*scales.get(part).unwrap_or(&scales[0]), None),
            Self::Half { scales, mins } => (wide(&scales[part]), mins.get(part).map(wide)),
        }
    }
}

/// The columns of some tiles of a product, for one thread.
pub(crate) struct Piece<'a> {
    pub(crate) tiles: &'a Tiles,
    /// The index of the first tile.
    pub(crate) first: usize,
    pub(crate) rows: &'a Rows,
    /// The columns of each row.
    out: Vec<&'a mut [f32]>,
}

impl Tiles {
    /// Lays out a weight from its codes, `code(output, input)`, and scales, `scale(output, block)`. Codes without
    /// `levels` are numbers from -127 to 127 as `i8`.
    ///
    /// # Panics
    /// `in_dim` is not a positive multiple of [`BLOCK`]; see [`Tiles::fits`].
    pub(crate) fn new(
        (out_dim, in_dim): (usize, usize),
        levels: Option<[i16; 16]>,
        code: impl Fn(usize, usize) -> u8 + Sync,
        (scaled, scale): (Scaled, impl Fn(usize, usize) -> f32),
    ) -> Self {
        let codes = lay_out((out_dim, in_dim), levels, code);
        let per_tile = if scaled == Scaled::Block { in_dim / BLOCK } else { 1 };
        let scales = Scales::Single(scaled, by_tile(out_dim, per_tile, scale));
        Self { out_dim, in_dim, levels, codes, scales }
    }

    /// Lays out a weight as [`Tiles::new`] does, with a scale for each half of a block, and a minimum if there is one.
    ///
    /// # Panics
    /// As [`Tiles::new`].
    pub(crate) fn with_halves(
        (out_dim, in_dim): (usize, usize),
        levels: Option<[i16; 16]>,
        code: impl Fn(usize, usize) -> u8 + Sync,
        (scale, min): (OfHalf<'_>, Option<OfHalf<'_>>),
    ) -> Self {
        let codes = lay_out((out_dim, in_dim), levels, code);
        let per_tile = in_dim / BLOCK * 2;
        let mins = min.map(|min| by_tile(out_dim, per_tile, min)).unwrap_or_default();
        let scales = Scales::Half { scales: by_tile(out_dim, per_tile, scale), mins };
        Self { out_dim, in_dim, levels, codes, scales }
    }

    /// Returns whether a weight of `in_dim` inputs can be laid out.
    pub(crate) fn fits(in_dim: usize) -> bool {
        in_dim > 0 && in_dim.is_multiple_of(BLOCK)
    }

    /// Returns `(out, in)`.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.out_dim, self.in_dim)
    }

    /// Returns the size in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Single(_, scales) => size_of_val(scales.as_slice()),
            Scales::Half { scales, mins } => size_of_val(scales.as_slice()) + size_of_val(mins.as_slice()),
        };
        size_of_val(self.codes.as_slice()) + scales
    }

    /// Returns the number that each 4-bit code represents; `None`: the codes are the numbers.
    pub(crate) fn levels(&self) -> Option<[i16; 16]> {
        self.levels
    }

    /// Returns the number of blocks of an output.
    pub(crate) fn blocks(&self) -> usize {
        self.in_dim / BLOCK
    }

    /// Returns the number of parts of a block that have scales of their own.
    pub(crate) fn parts_of_a_block(&self) -> usize {
        if matches!(self.scales, Scales::Half { .. }) { 2 } else { 1 }
    }

    /// Returns the number of tiles.
    pub(crate) fn count(&self) -> usize {
        self.out_dim.div_ceil(LANES)
    }

    /// Returns a tile.
    pub(crate) fn tile(&self, at: usize) -> Tile<'_> {
        let per_tile = self.in_dim / inputs_of_a_chunk(self.levels.is_some());
        let scales = match &self.scales {
            Scales::Single(scaled, all) => {
                let count = if *scaled == Scaled::Block { self.blocks() } else { 1 };
                TileScales::Single(&all[at * count..(at + 1) * count])
            }
            Scales::Half { scales, mins } => {
                let range = at * self.blocks() * 2..(at + 1) * self.blocks() * 2;
                let mins = if mins.is_empty() { &[] } else { &mins[range.clone()] };
                TileScales::Half { scales: &scales[range], mins }
            }
        };
        Tile { codes: &self.codes[at * per_tile..(at + 1) * per_tile], scales }
    }

    /// Writes the weights of one output to `row: [in]`.
    pub(crate) fn unpack_output(&self, output: usize, row: &mut [f32]) {
        let (tile, lane) = (self.tile(output / LANES), output % LANES);
        let inputs = BLOCK / self.parts_of_a_block();
        for (part, numbers) in row[..self.in_dim].chunks_mut(inputs).enumerate() {
            let (scales, mins) = tile.scales.of(part);
            for (input, number) in (part * inputs..).zip(numbers) {
                let code = match self.levels {
                    None => i16::from(tile.codes[input / 4].0[lane * 4 + input % 4].cast_signed()),
                    Some(levels) => {
                        let byte = tile.codes[input / 8].0[lane * 4 + input % 4];
                        levels[usize::from(if input % 8 < 4 { byte & 15 } else { byte >> 4 })]
                    }
                };
                *number = f32::from(code) * scales[lane];
                if let Some(mins) = mins {
                    *number += mins[lane];
                }
            }
        }
    }
}

/// Lays out the codes of a weight.
///
/// # Panics
/// As [`Tiles::new`].
fn lay_out(
    (out_dim, in_dim): (usize, usize),
    levels: Option<[i16; 16]>,
    code: impl Fn(usize, usize) -> u8 + Sync,
) -> Vec<Chunk> {
    assert!(Tiles::fits(in_dim), "{in_dim} inputs are not whole blocks");
    let per_tile = in_dim / inputs_of_a_chunk(levels.is_some());
    let mut codes = vec![Chunk([0; 64]); out_dim.div_ceil(LANES) * per_tile];
    let padding = levels.map_or(0, |levels| levels.iter().position(|&level| level == 0).unwrap_or(0) as u8);
    let code = |output: usize, input| if output < out_dim { code(output, input) } else { padding };
    parallel_for(codes.chunks_mut(per_tile).enumerate(), |(tile, chunks)| {
        for (at, Chunk(bytes)) in chunks.iter_mut().enumerate() {
            for (place, byte) in bytes.iter_mut().enumerate() {
                let (output, lane) = (tile * LANES + place / 4, place % 4);
                *byte = match levels {
                    None => code(output, at * 4 + lane),
                    Some(_) => code(output, at * 8 + lane) | code(output, at * 8 + 4 + lane) << 4,
                };
            }
        }
    });
    codes
}

/// Returns the numbers of all outputs, by tile, with `per_tile` for each output; those of padding are 0.
fn by_tile<T: Default>(out_dim: usize, per_tile: usize, of: impl Fn(usize, usize) -> T) -> Vec<[T; LANES]> {
    let of_output = |output, part| if output < out_dim { of(output, part) } else { T::default() };
    (0..out_dim.div_ceil(LANES) * per_tile)
        .map(|at| std::array::from_fn(|lane| of_output(at / per_tile * LANES + lane, at % per_tile)))
        .collect()
}

/// Returns the number of inputs of which a chunk has the codes.
fn inputs_of_a_chunk(half_bytes: bool) -> usize {
    if half_bytes { 8 } else { 4 }
}

impl<'a> Piece<'a> {
    /// Returns the piece that begins with tile `first` and has these columns of each row.
    pub(crate) fn new(tiles: &'a Tiles, first: usize, rows: &'a Rows, out: Vec<&'a mut [f32]>) -> Self {
        Self { tiles, first, rows, out }
    }

    /// Writes the numbers of tile `at` of the piece for the rows from `first` on, without those of padding.
    #[inline(always)]
    pub(crate) fn put(&mut self, at: usize, first: usize, made: &[[f32; LANES]]) {
        for (row, made) in self.out[first..].iter_mut().zip(made) {
            let row = &mut row[at * LANES..];
            match row.first_chunk_mut::<LANES>() {
                Some(place) => *place = *made,
                None => row.copy_from_slice(&made[..row.len()]),
            }
        }
    }

    /// Returns the number of tiles of the piece.
    pub(crate) fn tile_count(&self) -> usize {
        self.out.first().map_or(0, |row| row.len().div_ceil(LANES))
    }
}
