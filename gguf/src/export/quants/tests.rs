//! Blocks, read again by another implementation, and the errors of their weights.

use candle_core::quantized::GgmlDType;

use super::encode::{Encoding, encode};
use crate::export::kind::Kind;
use crate::source::dequantise;

const KINDS: [(Kind, GgmlDType); 4] = [
    (Kind::Q5Zero, GgmlDType::Q5_0),
    (Kind::Q8Zero, GgmlDType::Q8_0),
    (Kind::Q4K, GgmlDType::Q4K),
    (Kind::Q6K, GgmlDType::Q6K),
];

/// Returns numbers as a model's weights are: sums of uniform ones, some of them large.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 7_u64;
    let mut uniform = || {
        // Knuth's linear congruential generator, from "The Art of Computer Programming", volume 2, 3.3.4.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    let normal = |uniform: &mut dyn FnMut() -> f32| (0..6).map(|_| uniform()).sum::<f32>() * 0.03;
    (0..count).map(|i| normal(&mut uniform) * if i % 97 == 0 { 4.0 } else { 1.0 }).collect()
}

fn encoded(kind: Kind, numbers: &[f32], columns: usize, importance: Option<&[f32]>) -> Vec<u8> {
    encode(numbers, Encoding { kind, columns, importance, threads: 1 }).unwrap()
}

fn decoded((kind, dtype): (Kind, GgmlDType), numbers: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    dequantise(dtype, &encoded(kind, numbers, 512, importance), numbers.len()).unwrap()
}

/// Returns the root mean square of the errors, relative to that of the numbers.
fn error(numbers: &[f32], found: &[f32]) -> f64 {
    let square = |pairs: &mut dyn Iterator<Item = f32>| pairs.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let apart = square(&mut numbers.iter().zip(found).map(|(one, other)| one - other));
    (apart / square(&mut numbers.iter().copied())).sqrt()
}

#[test]
fn blocks_read_again_are_as_near_as_their_bits_allow() {
    let numbers = weights(512 * 64);
    // Figures of these numbers; a bit less doubles the error.
    let bounds = [0.055, 0.008, 0.085, 0.022];
    let mut errors = Vec::new();
    for (of, bound) in KINDS.into_iter().zip(bounds) {
        let found = error(&numbers, &decoded(of, &numbers, None));
        assert!(found < bound && found > 0.0, "{:?}: {found}", of.0);
        errors.push(found);
    }
    let [five, eight, four, six] = errors[..] else { panic!("an error per kind was expected") };
    assert!(eight < six && six < five && five < four, "{errors:?}");
    let halves = encoded(Kind::F16, &numbers, 512, None);
    let halves: Vec<f32> =
        halves.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect();
    assert!(error(&numbers, &halves) * 10.0 < eight);
}

#[test]
fn numbers_of_a_block_read_again_are_the_same() {
    for of in KINDS {
        let once = decoded(of, &weights(512 * 4), None);
        let twice = decoded(of, &once, None);
        assert!(error(&once, &twice) < 0.02, "{:?}: {}", of.0, error(&once, &twice));
        let zeros = [0.0; 512];
        assert_eq!(decoded(of, &zeros, None), zeros, "{:?}", of.0);
        let constants = [0.0, -1.5].map(|number| vec![number; 512]).concat();
        assert!(error(&constants, &decoded(of, &constants, None)) < 0.01, "{:?}", of.0);
    }
}

#[test]
fn important_columns_are_more_exact() {
    let numbers = weights(512 * 64);
    // A few columns in a hundred have inputs ten times as large, as in models.
    let importance: Vec<f32> = (0..512).map(|column| if column % 37 == 5 { 100.0 } else { 1.0 }).collect();
    let weighted = |found: &[f32]| -> f64 {
        let errors = numbers.iter().zip(found).zip(importance.iter().cycle());
        errors.map(|((one, other), weight)| f64::from(weight * (one - other) * (one - other))).sum()
    };
    for of in KINDS {
        let (plain, with) = (decoded(of, &numbers, None), decoded(of, &numbers, Some(&importance)));
        let (plain, with) = (weighted(&plain), weighted(&with));
        if of.0 == Kind::Q8Zero {
            assert_eq!(plain, with, "a scale of 8 bits is set by the largest number");
        } else {
            assert!(with < 0.9 * plain, "{:?}: {with} and {plain}", of.0);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let numbers = weights(512 * 200);
    let importance = vec![1.0; 512];
    for (kind, _) in KINDS {
        let with = |threads| {
            let encoding = Encoding { kind, columns: 512, importance: Some(&importance), threads };
            encode(&numbers, encoding).unwrap()
        };
        let one = with(1);
        assert_eq!(one.len() as u64, kind.bytes_of(numbers.len() as u64));
        assert!([2, 3, 7].into_iter().all(|threads| with(threads) == one), "{kind:?}");
    }
}

#[test]
fn a_block_of_eight_bits_has_its_largest_number_at_127() {
    let mut block = vec![0.0; 32];
    (block[0], block[1], block[2]) = (-2.0, 1.0, 0.5);
    let bytes = encoded(Kind::Q8Zero, &block, 32, None);
    assert_eq!(bytes.len(), 34);
    assert_eq!(half::f16::from_le_bytes([bytes[0], bytes[1]]), half::f16::from_f32(2.0 / 127.0));
    let codes: Vec<i8> = bytes[2..5].iter().map(|byte| byte.cast_signed()).collect();
    assert_eq!(codes, [-127, 64, 32]); // 63.5 and 31.75 are rounded away from zero
    assert_eq!(encoded(Kind::Q8Zero, &[0.0; 32], 32, None), [0; 34]);
}

#[test]
fn a_scale_that_16_bits_cannot_hold_is_refused() {
    for (kind, _) in KINDS {
        let encoding = Encoding { kind, columns: 512, importance: None, threads: 1 };
        assert!(encode(&[3e8; 512], encoding).is_none(), "{kind:?}");
    }
}
