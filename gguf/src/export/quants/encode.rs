//! The encoding of a tensor's rows, in parallel: each thread has rows of its own, so their number changes no byte.

use std::panic::resume_unwind;
use std::thread;

use half::f16;

use super::{q4_k, q5_zero, q6_k, q8_zero};
use crate::export::kind::Kind;

/// The number of weights below which a tensor is encoded by one thread.
const FEW: usize = 1 << 16;

/// The settings of the encoding of one tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoding<'a> {
    pub(crate) kind: Kind,
    /// The length of a row.
    pub(crate) columns: usize,
    /// The importance of the columns, if it is known.
    pub(crate) importance: Option<&'a [f32]>,
    /// The number of threads.
    pub(crate) threads: usize,
}

/// Returns the encoded rows; `None`: a number or a scale is too large for 16 bits.
pub(crate) fn encode(numbers: &[f32], encoding: Encoding<'_>) -> Option<Vec<u8>> {
    let columns = encoding.columns.max(1);
    let threads = if numbers.len() < FEW { 1 } else { encoding.threads.max(1) };
    let rows = (numbers.len() / columns).div_ceil(threads).max(1);
    let parts: Vec<Option<Vec<u8>>> = thread::scope(|scope| {
        let started: Vec<_> =
            numbers.chunks(rows * columns).map(|part| scope.spawn(move || encode_rows(part, encoding))).collect();
        started.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let mut parts = parts.into_iter();
    let mut bytes = parts.next().unwrap_or_else(|| Some(Vec::new()))?;
    for part in parts {
        bytes.extend(part?);
    }
    Some(bytes)
}

fn encode_rows(numbers: &[f32], encoding: Encoding<'_>) -> Option<Vec<u8>> {
    let Encoding { kind, columns, importance, .. } = encoding;
    let length = usize::try_from(kind.bytes_of(numbers.len() as u64)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(length);
    match kind {
        Kind::F32 => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
        Kind::F16 => {
            for number in numbers {
                bytes.extend(Some(f16::from_f32(*number)).filter(|half| half.is_finite())?.to_le_bytes());
            }
        }
        Kind::Q8Zero => {
            numbers.chunks_exact(q8_zero::BLOCK).try_for_each(|block| q8_zero::encode(block, &mut bytes))?
        }
        Kind::Q5Zero => weighted((numbers, columns, importance), q5_zero::BLOCK, q5_zero::encode, &mut bytes)?,
        Kind::Q4K => weighted((numbers, columns, importance), q4_k::BLOCK, q4_k::encode, &mut bytes)?,
        Kind::Q6K => weighted((numbers, columns, importance), q6_k::BLOCK, q6_k::encode, &mut bytes)?,
    }
    Some(bytes)
}

/// A function that appends a block of numbers with the weights of their errors.
type EncodeBlock = fn(&[f32], &[f32], &mut Vec<u8>) -> Option<()>;

/// The weights of the errors in the largest block, if no importance is known.
static EQUAL: [f32; q4_k::BLOCK] = [1.0; q4_k::BLOCK];

/// Encodes blocks with the importance of each block's columns as weights.
fn weighted(
    (numbers, columns, importance): (&[f32], usize, Option<&[f32]>),
    block: usize,
    encode: EncodeBlock,
    bytes: &mut Vec<u8>,
) -> Option<()> {
    for row in numbers.chunks_exact(columns.max(1)) {
        for (place, numbers) in row.chunks_exact(block).enumerate() {
            let weights = importance.map_or(&EQUAL[..block], |all| &all[place * block..(place + 1) * block]);
            encode(numbers, weights, bytes)?;
        }
    }
    Some(())
}
