//! The scan of an uploaded adapter's safetensors file while it streams: the header is kept, the values are only
//! checked. Memory: the header, of at most `HEADER_BYTES`, and eight bytes.

use attune_domain::peft::{Found, TENSORS};
use safetensors::{Dtype, tensor::Metadata};

/// The maximum length of the header, in bytes; an adapter of 100 layers needs a third of it.
const HEADER_BYTES: u64 = 1 << 20;

/// An incremental scan of a safetensors file.
#[derive(Debug, Default)]
pub struct TensorScan {
    head: Vec<u8>,
    layout: Option<Layout>,
    broken: Option<String>,
    /// The number of bytes of tensor data so far.
    at: u64,
    /// The index of the tensor that the next byte belongs to.
    current: usize,
    /// The first bytes of a value that is split between two chunks.
    carry: Vec<u8>,
}

#[derive(Debug)]
struct Layout {
    /// The tensors in the order of the file.
    tensors: Vec<Placed>,
    bytes: u64,
}

#[derive(Debug)]
struct Placed {
    found: Found,
    dtype: Dtype,
    end: u64,
    not_finite: u64,
}

/// The result of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// All tensors, in the order of the file; empty if the header cannot be read.
    pub tensors: Vec<Found>,
    /// The defects of the file that do not depend on the adapter's config, as clauses without a final period.
    pub reasons: Vec<String>,
}

impl TensorScan {
    /// Scans the next chunk.
    pub fn push(&mut self, piece: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        if self.layout.is_some() {
            return self.numbers(piece);
        }
        self.head.extend_from_slice(piece);
        let Some(length) = self.head.first_chunk::<8>().map(|first| u64::from_le_bytes(*first)) else { return };
        if length > HEADER_BYTES {
            self.head = Vec::new();
            self.broken = Some(format!("its header has {length} bytes, and the maximum is {HEADER_BYTES}"));
            return;
        }
        let end = 8 + usize::try_from(length).unwrap_or(0);
        let Some(text) = self.head.get(8..end) else { return };
        match layout(text) {
            Ok(layout) => self.layout = Some(layout),
            Err(why) => self.broken = Some(why),
        }
        let rest = self.head.split_off(end);
        self.head = Vec::new();
        self.push(&rest);
    }

    fn numbers(&mut self, mut piece: &[u8]) {
        let Some(layout) = &mut self.layout else { return };
        while !piece.is_empty() {
            let Some(tensor) = layout.tensors.get_mut(self.current) else {
                self.at += piece.len() as u64; // excess bytes, which `finish` reports
                return;
            };
            let left = usize::try_from(tensor.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(piece.len().min(left));
            tensor.not_finite += not_finite(tensor.dtype, &mut self.carry, now);
            self.at += now.len() as u64;
            piece = later;
            while layout.tensors.get(self.current).is_some_and(|tensor| tensor.end <= self.at) {
                self.current += 1;
                self.carry.clear();
            }
        }
    }

    /// Ends the scan and returns its result.
    pub fn finish(self) -> Scanned {
        let mut reasons = Vec::new();
        let broken = self.broken.or_else(|| {
            let lost = self.layout.is_none();
            lost.then(|| format!("it ends within its header, after {} bytes", self.head.len()))
        });
        if let Some(why) = broken {
            reasons.push(format!("{TENSORS} is not a whole safetensors file: {why}"));
        }
        let mut tensors = Vec::new();
        if let Some(layout) = self.layout {
            if layout.bytes != self.at {
                let (said, came) = (layout.bytes, self.at);
                reasons.push(format!(
                    "{TENSORS} is not a whole safetensors file: its header declares {said} bytes of data, but \
                     {came} arrived"
                ));
            }
            for tensor in layout.tensors {
                let (name, count) = (&tensor.found.name, tensor.not_finite);
                if count > 0 {
                    reasons.push(format!("{TENSORS}: '{name}' contains {count} NaN or infinite values"));
                }
                tensors.push(tensor.found);
            }
        }
        Scanned { tensors, reasons }
    }
}

/// Parses the header. This also checks that the tensors' data is contiguous and that each tensor has the number of
/// bytes that its shape requires.
fn layout(text: &[u8]) -> Result<Layout, String> {
    let header: Metadata = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let mut tensors = Vec::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let shape = info.shape.iter().map(|&side| side as u64).collect();
        let (dtype, end) = (info.dtype, info.data_offsets.1 as u64);
        tensors.push(Placed { found: Found { name, shape, dtype: dtype.to_string() }, dtype, end, not_finite: 0 });
    }
    Ok(Layout { tensors, bytes: header.data_len() as u64 })
}

/// Returns the number of complete values in `piece`, including the one that begins in `carry`, that are NaN or
/// infinite; 0 for a dtype that is refused anyway.
fn not_finite(dtype: Dtype, carry: &mut Vec<u8>, mut piece: &[u8]) -> u64 {
    // The exponent bits are all set in NaN and infinite values, and in no others.
    let bad: (usize, fn(&[u8]) -> bool) = match dtype {
        Dtype::F32 => (4, |b| b.first_chunk().is_some_and(|b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000)),
        Dtype::F16 => (2, |b| b.first_chunk().is_some_and(|b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00)),
        Dtype::BF16 => (2, |b| b.first_chunk().is_some_and(|b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80)),
        _ => return 0,
    };
    let (width, is_bad) = bad;
    let mut count = 0;
    if !carry.is_empty() {
        let (head, rest) = piece.split_at(piece.len().min(width - carry.len()));
        carry.extend_from_slice(head);
        piece = rest;
        if carry.len() < width {
            return 0;
        }
        count += u64::from(is_bad(carry));
        carry.clear();
    }
    let numbers = piece.chunks_exact(width);
    carry.extend_from_slice(numbers.remainder());
    count + numbers.filter(|number| is_bad(number)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file with two tensors: `a` of two F32 values and `b` of three BF16 values.
    fn file(a: [f32; 2], b: [u16; 3]) -> Vec<u8> {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(a.iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(b.iter().flat_map(|n| n.to_le_bytes()));
        bytes
    }

    fn scan(bytes: &[u8], step: usize) -> Scanned {
        let mut scan = TensorScan::default();
        bytes.chunks(step).for_each(|piece| scan.push(piece));
        scan.finish()
    }

    fn reason(bytes: &[u8]) -> String {
        let all = scan(bytes, 7).reasons;
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().unwrap()
    }

    #[test]
    fn pieces_of_any_length_show_the_same() {
        let good = file([1.0, -2.0], [0x3f80, 0, 0x7f7f]);
        let bad = file([f32::NAN, 2.0], [0x3f80, 0xff80, 0x7fc0]);
        for step in [1, 2, 3, 5, 8, 1000] {
            let found = scan(&good, step);
            assert_eq!((found.reasons.len(), found.tensors.len()), (0, 2), "{step}: {found:?}");
            assert_eq!(found.tensors[1], Found { name: "b".into(), shape: vec![1, 3], dtype: "BF16".into() });
            let found = scan(&bad, step).reasons;
            assert!(found[0].contains("'a' contains 1 NaN") && found[1].contains("'b' contains 2 NaN"), "{found:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_whole_says_how() {
        let good = file([1.0, 2.0], [0, 0, 0]);
        assert!(reason(&good[..good.len() - 1]).contains("declares 14 bytes of data, but 13 arrived"));
        assert!(reason(&[&good[..], b"x"].concat()).contains("but 15 arrived"));
        assert!(reason(&good[..20]).contains("it ends within its header, after 20 bytes"));
        assert!(reason(b"").contains("after 0 bytes"));
        assert!(reason(&u64::MAX.to_le_bytes()).contains("its header has"));
        assert!(reason(b"\x02\0\0\0\0\0\0\0{]").contains("line 1"));
        let text = String::from_utf8_lossy(&good).replace("[8,14]", "[7,13]");
        assert!(scan(text.as_bytes(), 100).reasons[0].contains("not a whole safetensors file"));
    }

    #[test]
    fn limit_a_long_header_is_refused_before_it_is_held() {
        let mut scan = TensorScan::default();
        scan.push(&(HEADER_BYTES + 1).to_le_bytes());
        for _ in 0..100 {
            scan.push(&[b' '; 100_000]);
        }
        assert!(scan.head.is_empty());
        let reasons = scan.finish().reasons;
        assert!(reasons[0].contains("1048577 bytes, and the maximum is 1048576"), "{reasons:?}");
    }
}
