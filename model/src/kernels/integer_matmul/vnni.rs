//! The product with AVX-512 VNNI: one instruction multiplies 32 pairs of 16-bit numbers and adds them to 16 sums.
//!
//! A kernel for AMX would have the same form: one file, its function in `ffi.rs`, and a variant of `Instructions`. Its
//! products are of 8-bit numbers, so it would take each activation in two parts.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_dpwssd_epi32, _mm512_mask_blend_epi8, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_slli_epi16, _mm512_srai_epi16,
    _mm512_srli_epi16,
};

use pulp::cast;

use super::{
    rows::Row,
    tiles::{Chunk, LANES, Piece, Tile, TileScales},
};

/// Returns whether the processor has the instructions.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Computes the columns of a piece.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) fn multiply(piece: Piece<'_>) {
    match piece.tiles.parts_of_a_block() {
        1 => columns::<1>(piece),
        _ => columns::<2>(piece),
    }
}

/// Computes the columns of a piece whose blocks have scales for `P` parts.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn columns<const P: usize>(mut piece: Piece<'_>) {
    let levels = piece.tiles.levels().map(|levels| table(levels));
    let rows = piece.rows;
    for at in 0..piece.tile_count() {
        let tile = piece.tiles.tile(piece.first + at);
        for (row, size) in rows.groups(8) {
            match size {
                8 => piece.put(at, row, &group::<8, 1, P>(&tile, levels, rows.group(row))),
                4 => piece.put(at, row, &group::<4, 2, P>(&tile, levels, rows.group(row))),
                2 => piece.put(at, row, &group::<2, 2, P>(&tile, levels, rows.group(row))),
                _ => piece.put(at, row, &group::<1, 2, P>(&tile, levels, rows.group(row))),
            }
        }
    }
}

/// The low and the high bytes of the levels, in each of the four parts of a register.
type Table = [__m512i; 2];

/// Returns the table of the levels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn table(levels: [i16; 16]) -> Table {
    let bytes = |which: usize| -> [u8; 64] { std::array::from_fn(|at| levels[at % 16].to_le_bytes()[which]) };
    [cast(bytes(0)), cast(bytes(1))]
}

/// Looks up 64 codes: the numbers of the codes at even places, and of those at odd places.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn look_up([low, high]: Table, codes: __m512i) -> [__m512i; 2] {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let (low, high) = (_mm512_shuffle_epi8(low, codes), _mm512_shuffle_epi8(high, codes));
    let even = _mm512_mask_blend_epi8(ODD, low, _mm512_slli_epi16::<8>(high));
    [even, _mm512_mask_blend_epi8(ODD, _mm512_srli_epi16::<8>(low), high)]
}

/// Widens 64 8-bit numbers: those at even places, and those at odd places.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn widen(numbers: __m512i) -> [__m512i; 2] {
    [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(numbers)), _mm512_srai_epi16::<8>(numbers)]
}

/// Multiplies one tile by some rows, with `S` sums for each, one or two: with few rows, an addition would wait for the
/// one before it; with many, two would not fit into the registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn group<const R: usize, const S: usize, const P: usize>(
    tile: &Tile<'_>,
    levels: Option<Table>,
    rows: [Row<'_>; R],
) -> [[f32; LANES]; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    let per_block = tile.codes.len() / rows[0].scales.len();
    let half = _mm512_set1_epi8(15);
    for (block, codes) in tile.codes.chunks_exact(per_block).enumerate() {
        let words = rows.map(|row| &row.words[block]);
        for (part, codes) in codes.chunks_exact(per_block / P).enumerate() {
            let mut dots = [[_mm512_setzero_si512(); S]; R];
            for (at, &Chunk(bytes)) in (part * per_block / P..).zip(codes) {
                let bytes: __m512i = cast(bytes);
                match levels {
                    Some(levels) => {
                        let [first, third] = look_up(levels, _mm512_and_si512(bytes, half));
                        let [second, fourth] = look_up(levels, _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), half));
                        for (dots, words) in dots.iter_mut().zip(words) {
                            dots[0] = _mm512_dpwssd_epi32(dots[0], first, _mm512_set1_epi32(words[4 * at]));
                            dots[S - 1] = _mm512_dpwssd_epi32(dots[S - 1], third, _mm512_set1_epi32(words[4 * at + 1]));
                            dots[0] = _mm512_dpwssd_epi32(dots[0], second, _mm512_set1_epi32(words[4 * at + 2]));
                            dots[S - 1] =
                                _mm512_dpwssd_epi32(dots[S - 1], fourth, _mm512_set1_epi32(words[4 * at + 3]));
                        }
                    }
                    None => {
                        let [even, odd] = widen(bytes);
                        for (dots, words) in dots.iter_mut().zip(words) {
                            dots[0] = _mm512_dpwssd_epi32(dots[0], even, _mm512_set1_epi32(words[2 * at]));
                            dots[S - 1] = _mm512_dpwssd_epi32(dots[S - 1], odd, _mm512_set1_epi32(words[2 * at + 1]));
                        }
                    }
                }
            }
            let (scales, mins) = scales_of(tile, block * P + part);
            for ((sum, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                let dot = if S == 1 { dots[0] } else { _mm512_add_epi32(dots[0], dots[S - 1]) };
                let of_row = _mm512_set1_ps(row.scales[block]);
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scales, of_row)));
                if let Some(mins) = mins {
                    let total = _mm512_set1_ps(row.sums[block][part]);
                    *sum = _mm512_add_ps(*sum, _mm512_mul_ps(total, _mm512_mul_ps(mins, of_row)));
                }
            }
        }
    }
    sums.map(cast)
}

/// Returns the scales of a part of a block, and its minima.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn scales_of(tile: &Tile<'_>, part: usize) -> (__m512, Option<__m512>) {
    match tile.scales {
        TileScales::Single(scales) => (cast(*scales.get(part).unwrap_or(&scales[0])), None),
        TileScales::Half { scales, mins } => {
            let mins = mins.get(part).map(|mins| _mm512_cvtph_ps(cast(*mins)));
            (_mm512_cvtph_ps(cast(scales[part])), mins)
        }
    }
}
