//! Activations in 14 bits, with a scale per row and block: the numbers of a row depend on that row alone.
//!
//! Shapes: `t` rows, `in` width.

/// The number of inputs that share a scale of the activations, and at most of the weights.
pub(crate) const BLOCK: usize = 64;

/// The largest number of an activation. The sum of a block of products by [`LARGEST_LEVEL`] fits into 32 bits.
const LARGEST: f32 = 8191.0;

/// The largest number of a weight.
pub(crate) const LARGEST_LEVEL: i16 = 4095;

const _: () = assert!(BLOCK as i64 * LARGEST as i64 * LARGEST_LEVEL as i64 <= i32::MAX as i64);

/// The 32-bit words of a block, of two numbers each. Of four inputs, the first word has the first and the third.
pub(crate) const WORDS: usize = BLOCK / 2;

/// Rows `[t, in]` of integers.
#[derive(Debug)]
pub(crate) struct Rows {
    blocks: usize,
    /// The numbers of each block, the first of a word in its low half.
    words: Vec<[i32; WORDS]>,
    /// The number that a code of 1 represents, for each block. NaN, if a number of the block is not finite: so are the
    /// products.
    scales: Vec<f32>,
    /// The sums of the numbers of both halves of each block, for weights with minima. They are exact in `f32`.
    sums: Vec<[f32; 2]>,
}

const _: () = assert!(BLOCK as i64 / 2 * LARGEST as i64 <= 1 << 24);

/// One row.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) words: &'a [[i32; WORDS]],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [[f32; 2]],
}

/// The memory of some rows.
pub(crate) struct RowsMut<'a> {
    words: &'a mut [[i32; WORDS]],
    scales: &'a mut [f32],
    sums: &'a mut [[f32; 2]],
}

impl Rows {
    /// Makes memory for `count` rows of `in_dim` numbers.
    pub(crate) fn new(count: usize, in_dim: usize) -> Self {
        let blocks = in_dim / BLOCK;
        let all = count * blocks;
        Self { blocks, words: vec![[0; WORDS]; all], scales: vec![0.0; all], sums: vec![[0.0; 2]; all] }
    }

    /// Splits the memory into parts of `rows` rows.
    pub(crate) fn parts(&mut self, rows: usize) -> impl Iterator<Item = RowsMut<'_>> {
        let size = (rows * self.blocks).max(1);
        let parts = self.words.chunks_mut(size).zip(self.scales.chunks_mut(size)).zip(self.sums.chunks_mut(size));
        parts.map(|((words, scales), sums)| RowsMut { words, scales, sums })
    }

    /// Returns the number of rows.
    pub(crate) fn count(&self) -> usize {
        self.scales.len() / self.blocks
    }

    /// Returns one row.
    #[inline(always)]
    pub(crate) fn row(&self, at: usize) -> Row<'_> {
        let range = at * self.blocks..(at + 1) * self.blocks;
        Row { words: &self.words[range.clone()], scales: &self.scales[range.clone()], sums: &self.sums[range] }
    }

    /// Returns `R` rows, the first of which is `first`.
    #[inline(always)]
    pub(crate) fn group<const R: usize>(&self, first: usize) -> [Row<'_>; R] {
        std::array::from_fn(|of| self.row(first + of))
    }

    /// Splits the rows into groups of `most`, a power of two, and the others into smaller powers of two. Returns the
    /// first row and the size of each group.
    pub(crate) fn groups(&self, most: usize) -> impl Iterator<Item = (usize, usize)> {
        let (count, mut next) = (self.count(), 0);
        std::iter::from_fn(move || {
            let (first, left): (usize, usize) = (next, count - next);
            let size = most.min(1 << left.checked_ilog2()?);
            next += size;
            Some((first, size))
        })
    }
}

/// Quantizes whole blocks of `numbers`: the largest absolute value of a block becomes [`LARGEST`].
#[inline(always)]
pub(crate) fn quantize(numbers: &[f32], RowsMut { words, scales, sums }: RowsMut<'_>) {
    let blocks = numbers.as_chunks::<BLOCK>().0.iter();
    for (((numbers, words), scale), sums) in blocks.zip(words).zip(scales).zip(sums) {
        // The bits of positive numbers have the order of the numbers; infinity and NaN come last.
        let largest = numbers.iter().fold(0u32, |largest, number| largest.max(number.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            (*words, *scale, *sums) = ([0; WORDS], f32::NAN, [0.0; 2]);
            continue;
        }
        let inverse = LARGEST / largest;
        // Of zeros, and of numbers so small that their products would not matter.
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let halves = words.as_chunks_mut::<{ WORDS / 2 }>().0.iter_mut().zip(numbers.as_chunks::<{ BLOCK / 2 }>().0);
        for ((words, numbers), sum) in halves.zip(sums) {
            let mut total = 0;
            for (pair, numbers) in words.as_chunks_mut::<2>().0.iter_mut().zip(numbers.as_chunks::<4>().0) {
                let [first, second, third, fourth] = numbers.map(|number| nearest(number * inverse));
                *pair = [first & 0xffff | third << 16, second & 0xffff | fourth << 16];
                total += first + second + third + fourth;
            }
            *sum = total as f32;
        }
        *scale = largest / LARGEST;
    }
}

/// Returns the nearest integer of a number from -8191 to 8191; of two equally near ones the even one.
#[inline(always)]
fn nearest(number: f32) -> i32 {
    // Adding 1.5 · 2²³ rounds to an integer, in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    (number + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_as_large_as_the_rows_that_are_left_allow() {
        let groups = |count| Rows::new(count, BLOCK).groups(4).collect::<Vec<_>>();
        assert!(groups(0).is_empty());
        assert_eq!(groups(1), [(0, 1)]);
        assert_eq!(groups(7), [(0, 4), (4, 2), (6, 1)]);
        assert_eq!(groups(9), [(0, 4), (4, 4), (8, 1)]);
    }
}
