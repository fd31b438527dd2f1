//! Tests of the pool, of sharing, and of both ways of writing.

use super::*;
use crate::kernels::ffi::numbers;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 48, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
    "max_position_embeddings": 4096, "tie_word_embeddings": true}"#;

fn pool(blocks: u64) -> KvPool {
    pool_of(blocks, KvCacheDtype::Auto)
}

fn pool_of(blocks: u64, dtype: KvCacheDtype) -> KvPool {
    let architecture = Architecture::from_config_json(CONFIG.as_bytes()).unwrap();
    let block = dtype.bytes_per_token(&architecture).0 * BLOCK_TOKENS as u64;
    KvPool::new(&architecture, Bytes(blocks * block + block / 2), CPU, dtype)
}

/// Returns the numbers of rows of 8.
fn unpacked(rows: Rows<'_>) -> Vec<f32> {
    match rows {
        Rows::Dense(rows) => rows.to_vec(),
        Rows::Int8 { codes, scales } => {
            let rows = codes.chunks_exact(8).zip(scales);
            rows.flat_map(|(codes, scale)| codes.iter().map(move |code| f32::from(*code) * scale)).collect()
        }
    }
}

fn used(pool: &KvPool) -> usize {
    let bytes = pool.0.block_bytes;
    assert!(pool.used().0.is_multiple_of(bytes));
    usize::try_from(pool.used().0 / bytes).unwrap()
}

/// Returns the keys of layer 1, after writing rows that are all `number`.
fn written(cache: &mut KvCache, rows: i64, number: f64) -> Vec<f32> {
    assert!(cache.grow_to(cache.len() + usize::try_from(rows).unwrap()).unwrap());
    let new = Tensor::full([rows, 2, 8], number, CPU);
    let (keys, values) = cache.write(1, &new, &(&new + 100.0)).unwrap();
    cache.advance(usize::try_from(rows).unwrap());
    assert!((&keys + 100.0).allclose(&values, 1e-6, 0.0, false));
    Vec::try_from(keys.select(2, 0).select(1, 1).contiguous()).unwrap()
}

#[test]
fn a_pool_has_as_many_blocks_as_its_memory_and_gets_them_back() {
    let pool = pool(5);
    assert_eq!((pool.tokens(), used(&pool)), (80, 0));
    let (mut one, mut other) = (pool.new_cache(), pool.new_cache());
    assert!(one.grow_to(33).unwrap());
    assert_eq!((one.capacity(), used(&pool)), (48, 3));
    assert!(!other.grow_to(33).unwrap());
    assert_eq!((other.capacity(), used(&pool)), (0, 3));
    assert!(other.grow_to(32).unwrap() && other.grow_to(1).unwrap());
    assert_eq!((other.capacity(), used(&pool)), (32, 5));
    drop(one);
    other.advance(20);
    other.truncate(3);
    assert_eq!((other.len(), other.capacity(), used(&pool)), (3, 32, 2));
    drop(other);
    assert_eq!(used(&pool), 0);
}

#[test]
fn a_shared_block_is_copied_before_it_is_written_and_freed_with_its_last_cache() {
    let pool = pool(6);
    let mut first = pool.new_cache();
    written(&mut first, 40, 1.0);
    let mut second = first.share_prefix(20);
    let mut third = first.share_prefix(16);
    assert_eq!((second.len(), second.capacity(), used(&pool)), (20, 32, 3));
    let rows = |ones, twos| [vec![1.0; ones], vec![2.0; twos]].concat();
    assert_eq!(written(&mut second, 5, 2.0), rows(20, 5));
    assert_eq!(used(&pool), 4); // the second block of `second`
    assert_eq!(written(&mut first, 3, 2.0), rows(40, 3));
    assert_eq!(used(&pool), 4);
    drop(first);
    assert_eq!(used(&pool), 2);
    drop(second);
    assert_eq!((third.len(), used(&pool)), (16, 1));
    let fourth = third.share_prefix(100);
    third.truncate(0);
    assert_eq!((third.capacity(), fourth.len(), used(&pool)), (0, 16, 1));
    drop(fourth);
    assert_eq!(used(&pool), 0);
}

#[test]
fn a_copy_needs_a_block_of_its_own() {
    let pool = pool(1);
    let mut first = pool.new_cache();
    written(&mut first, 4, 1.0);
    let mut second = first.share_prefix(4);
    assert!(!second.grow_to(5).unwrap());
    let row: &[f32] = &[0.0; 16];
    assert!(second.write_rows(0, &[(row, row)]).is_err(), "a shared block");
    drop(first);
    assert!(second.grow_to(5).unwrap());
    assert!(second.write_rows(0, &[(row, row)]).is_ok());
    assert!(second.write_rows(2, &[(row, row)]).is_err(), "there are two layers");
    assert!(second.write_rows(0, &[(&row[1..], row)]).is_err());
}

/// Both ways of writing fill the same memory, across the borders of blocks.
#[test]
fn rows_are_the_same_however_they_are_written() {
    for dtype in [KvCacheDtype::Auto, KvCacheDtype::Int8] {
        tch::manual_seed(47);
        let pool = pool_of(8, dtype);
        let [key, value] = [Tensor::randn([35, 2, 8], CPU), Tensor::randn([35, 2, 8], CPU)];
        let _ = key.select(0, 33).fill_(0.0);
        let (mut whole, mut single) = (pool.new_cache(), pool.new_cache());
        assert!(whole.grow_to(35).unwrap() && single.grow_to(35).unwrap());
        let (keys, values) = whole.write(1, &key, &value).unwrap();
        if dtype == KvCacheDtype::Auto {
            assert!(keys.equal(&key) && values.equal(&value));
        }
        let rows_of = |all: &Tensor| Vec::<f32>::try_from(all.contiguous().view([-1])).unwrap();
        let [key, value] = [&key, &value].map(|all| numbers::<f32>(all).unwrap());
        let rows: Vec<(&[f32], &[f32])> = key.chunks_exact(16).zip(value.chunks_exact(16)).collect();
        for row in &rows[..30] {
            single.write_rows(1, &[*row]).unwrap();
            single.advance(1);
        }
        let layer = single.write_rows(1, &rows[30..]).unwrap();
        assert_eq!(layer.len, 30);
        let (key, value) = (rows_of(&keys), rows_of(&values));
        for head in 0..2 {
            for range in [0..35, 3..4, 14..18, 16..32, 31..35] {
                let (keys, values): (Vec<_>, Vec<_>) = layer.rows(head, &range).into_iter().unzip();
                let got = |parts: Vec<Rows<'_>>| parts.into_iter().flat_map(unpacked).collect::<Vec<f32>>();
                let want = |all: &[f32]| -> Vec<f32> {
                    range.clone().flat_map(|row| all[(row * 2 + head) * 8..][..8].to_vec()).collect()
                };
                assert_eq!((got(keys), got(values)), (want(&key), want(&value)), "{head} {range:?} {dtype:?}");
            }
        }
    }
}

/// A number is at most half a step from its own, and a step is the 127th part of the row's largest number. A row of
/// zeros stays zero.
#[test]
fn numbers_in_8_bits_are_within_half_a_step() {
    tch::manual_seed(53);
    let pool = pool_of(4, KvCacheDtype::Int8);
    let mut cache = pool.new_cache();
    assert!(cache.grow_to(20).unwrap());
    let scale = Tensor::from_slice(&[1e-20f32, 1e-3, 1.0, 1e4]).repeat([5]).view([20, 1, 1]);
    let key = Tensor::randn([20, 2, 8], CPU) * &scale;
    let _ = key.select(0, 7).fill_(0.0);
    let (keys, _) = cache.write(0, &key, &key).unwrap();
    let largest = key.abs().amax([-1i64].as_slice(), true);
    let apart = (&keys - &key).abs();
    assert!(bool::try_from(apart.le_tensor(&(&largest * (0.5001 / 127.0))).all()).unwrap());
    assert!(apart.sum(Kind::Float).double_value(&[]) > 0.0);
    assert!(keys.select(0, 7).equal(&Tensor::zeros([2, 8], CPU)));
}

/// A row with a number that is not finite must not become a plausible one, however it is written.
#[test]
fn a_row_that_is_not_finite_stays_so_in_8_bits() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let pool = pool_of(2, KvCacheDtype::Int8);
        let mut row = [0.5f32; 16];
        row[3] = bad;
        let row = row.as_slice();
        let mut cache = pool.new_cache();
        assert!(cache.grow_to(1).unwrap());
        let layer = cache.write_rows(0, &[(row, row)]).unwrap();
        let of_head = |head| unpacked(layer.rows(head, &(0..1))[0].0);
        assert!(of_head(0).iter().all(|number| !number.is_finite()), "{bad}: {:?}", of_head(0));
        assert!(of_head(1).iter().all(|number| number.is_finite()), "{bad}: {:?}", of_head(1));
        let new = Tensor::from_slice(row).view([1, 2, 8]);
        let (keys, _) = cache.write(0, &new, &new).unwrap();
        assert!(!bool::try_from(keys.narrow(1, 0, 1).isfinite().any()).unwrap(), "{bad}");
    }
}

/// A block of codes has a quarter of the memory of numbers, and its scales; one that is shared is copied with them.
#[test]
fn blocks_of_codes_are_small_and_copied_with_their_scales() {
    let (plain, small) = (pool_of(4, KvCacheDtype::Auto), pool_of(4, KvCacheDtype::Int8));
    assert_eq!(plain.0.block_bytes, 2 * 2 * 2 * 8 * 4 * 16);
    assert_eq!(small.0.block_bytes, 2 * 2 * 2 * (8 + 4) * 16);
    let mut first = small.new_cache();
    let ones = written(&mut first, 4, 1.0);
    let mut second = first.share_prefix(4);
    let both = written(&mut second, 1, 127.0);
    assert_eq!(both[..4], ones[..]);
    assert!((both[4] - 127.0).abs() < 1e-4);
    assert_eq!(used(&small), 2);
}
