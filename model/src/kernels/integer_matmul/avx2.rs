//! The product with AVX2: one instruction multiplies 16 pairs of 16-bit numbers and adds the products of each pair.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_blendv_epi8,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16,
    _mm256_srai_epi16, _mm256_srli_epi16,
};

use pulp::cast;

use super::{
    rows::Row,
    tiles::{Chunk, LANES, Piece, Tile, TileScales},
};

/// Returns whether the processor has the instructions.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Computes the columns of a piece.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn multiply(piece: Piece<'_>) {
    match piece.tiles.parts_of_a_block() {
        1 => columns::<1>(piece),
        _ => columns::<2>(piece),
    }
}

/// Computes the columns of a piece whose blocks have scales for `P` parts.
#[target_feature(enable = "avx2,f16c")]
fn columns<const P: usize>(mut piece: Piece<'_>) {
    let levels = piece.tiles.levels().map(|levels| table(levels));
    let rows = piece.rows;
    for at in 0..piece.tile_count() {
        let tile = piece.tiles.tile(piece.first + at);
        for (row, size) in rows.groups(4) {
            match size {
                4 => piece.put(at, row, &group::<4, P>(&tile, levels, rows.group(row))),
                2 => piece.put(at, row, &group::<2, P>(&tile, levels, rows.group(row))),
                _ => piece.put(at, row, &group::<1, P>(&tile, levels, rows.group(row))),
            }
        }
    }
}

/// The low and the high bytes of the levels, in both halves of a register.
type Table = [__m256i; 2];

/// Returns the table of the levels.
#[target_feature(enable = "avx2,f16c")]
fn table(levels: [i16; 16]) -> Table {
    let bytes = |which: usize| -> [u8; 32] { std::array::from_fn(|at| levels[at % 16].to_le_bytes()[which]) };
    [cast(bytes(0)), cast(bytes(1))]
}

/// Looks up 32 codes: the numbers of the codes at even places, and of those at odd places.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn look_up([low, high]: Table, codes: __m256i) -> [__m256i; 2] {
    let odd = _mm256_set1_epi16(-256);
    let (low, high) = (_mm256_shuffle_epi8(low, codes), _mm256_shuffle_epi8(high, codes));
    let even = _mm256_blendv_epi8(low, _mm256_slli_epi16::<8>(high), odd);
    [even, _mm256_blendv_epi8(_mm256_srli_epi16::<8>(low), high, odd)]
}

/// Widens 32 8-bit numbers: those at even places, and those at odd places.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(numbers: __m256i) -> [__m256i; 2] {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(numbers)), _mm256_srai_epi16::<8>(numbers)]
}

/// Multiplies one tile by some rows: the first eight outputs, then the others, as the registers are few.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn group<const R: usize, const P: usize>(
    tile: &Tile<'_>,
    levels: Option<Table>,
    rows: [Row<'_>; R],
) -> [[f32; LANES]; R] {
    let halves = [half::<R, P>(tile, levels, rows, 0), half::<R, P>(tile, levels, rows, 1)];
    std::array::from_fn(|row| cast([halves[0][row], halves[1][row]]))
}

/// Multiplies eight outputs of a tile by some rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half<const R: usize, const P: usize>(
    tile: &Tile<'_>,
    levels: Option<Table>,
    rows: [Row<'_>; R],
    which: usize,
) -> [__m256; R] {
    let mut sums = [_mm256_setzero_ps(); R];
    let per_block = tile.codes.len() / rows[0].scales.len();
    let nibble = _mm256_set1_epi8(15);
    for (block, codes) in tile.codes.chunks_exact(per_block).enumerate() {
        let words = rows.map(|row| &row.words[block]);
        for (part, codes) in codes.chunks_exact(per_block / P).enumerate() {
            let mut dots = [_mm256_setzero_si256(); R];
            for (at, &Chunk(bytes)) in (part * per_block / P..).zip(codes) {
                let bytes = cast::<_, [__m256i; 2]>(bytes)[which];
                match levels {
                    Some(levels) => {
                        let [first, third] = look_up(levels, _mm256_and_si256(bytes, nibble));
                        let [second, fourth] = look_up(levels, _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble));
                        for (dots, words) in dots.iter_mut().zip(words) {
                            *dots = add_products(*dots, first, words[4 * at]);
                            *dots = add_products(*dots, third, words[4 * at + 1]);
                            *dots = add_products(*dots, second, words[4 * at + 2]);
                            *dots = add_products(*dots, fourth, words[4 * at + 3]);
                        }
                    }
                    None => {
                        let [even, odd] = widen(bytes);
                        for (dots, words) in dots.iter_mut().zip(words) {
                            *dots = add_products(*dots, even, words[2 * at]);
                            *dots = add_products(*dots, odd, words[2 * at + 1]);
                        }
                    }
                }
            }
            let (scales, mins) = scales_of(tile, block * P + part, which);
            for ((sum, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                let of_row = _mm256_set1_ps(row.scales[block]);
                *sum = _mm256_add_ps(*sum, _mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(scales, of_row)));
                if let Some(mins) = mins {
                    let total = _mm256_set1_ps(row.sums[block][part]);
                    *sum = _mm256_add_ps(*sum, _mm256_mul_ps(total, _mm256_mul_ps(mins, of_row)));
                }
            }
        }
    }
    sums
}

/// Returns the scales of a part of a block for eight outputs, and its minima.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scales_of(tile: &Tile<'_>, part: usize, which: usize) -> (__m256, Option<__m256>) {
    let wide = |numbers: [u16; LANES]| _mm256_cvtph_ps(cast::<_, [__m128i; 2]>(numbers)[which]);
    match tile.scales {
        TileScales::Single(scales) => (cast::<_, [__m256; 2]>(*scales.get(part).unwrap_or(&scales[0]))[which], None),
        TileScales::Half { scales, mins } => (wide(scales[part]), mins.get(part).map(|mins| wide(*mins))),
    }
}

/// Adds the products of a pair of inputs for each of eight outputs.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_products(dots: __m256i, weights: __m256i, pair: i32) -> __m256i {
    _mm256_add_epi32(dots, _mm256_madd_epi16(weights, _mm256_set1_epi32(pair)))
}
