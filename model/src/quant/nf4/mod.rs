//! NF4: a weight in 4 bits per number and one scale per block of 64; with double quantization, the scales are in 8
//! bits. Codes, scales and unpacked numbers equal those of bitsandbytes 0.50.2 on a CPU bit for bit; the tests compare
//! them.
//!
//! On the CPU, packing and unpacking are loops over the tensor's memory (`cpu.rs`); on other devices a weight is
//! unpacked by plain tensor operations (`plain.rs`).
//!
//! Sources: Dettmers et al., arXiv:2305.14314, §3 (NF4, double quantization); the order of operations, and so the
//! rounding, from bitsandbytes' `backends/default/ops.py` (`quantize_4bit`) and `csrc/cpu_ops.cpp` (`quantize_cpu`).

mod cpu;
mod plain;

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    io::tensor_file::Stored,
    kernels::ffi::{numbers, numbers_mut},
    quant::nf4_tables::DYNAMIC,
};

/// The count of numbers that share a scale.
pub const BLOCK: usize = 64;
/// The count of scales that share a second-level scale.
pub const SCALE_BLOCK: usize = 256;

/// A frozen weight `[out, in]` in NF4.
#[derive(Debug)]
pub struct Nf4 {
    size: (i64, i64),
    /// The codes, two per byte, the first in the high half.
    codes: Arc<[u8]>,
    scales: Scales,
    device_packed: Option<DevicePacked>,
}

/// The packed weight on a device that is not the CPU.
#[derive(Debug)]
struct DevicePacked {
    /// The same bytes as [`Nf4::codes`], `Uint8`.
    codes: Tensor,
    /// The scale of each block, `Float`.
    scales: Tensor,
}

/// The scale of each block: its largest absolute value.
#[derive(Debug, Clone)]
enum Scales {
    Single(Arc<[f32]>),
    /// 8-bit scales: `DYNAMIC[code] * nested[i / 256] + offset`.
    Double {
        codes: Arc<[u8]>,
        nested: Arc<[f32]>,
        offset: f32,
    },
}

/// The midpoints between neighboring values of the dynamic code.
const DYNAMIC_MIDPOINTS: [f32; 255] = midpoints(&DYNAMIC);

/// Returns the midpoints between neighboring values of an 8-bit code.
pub(crate) const fn midpoints(code: &[f32; 256]) -> [f32; 255] {
    let mut middles = [0.0; 255];
    let mut i = 0;
    while i < 255 {
        middles[i] = (code[i] + code[i + 1]) * 0.5;
        i += 1;
    }
    middles
}

impl Nf4 {
    /// Quantizes `weight: [out, in]`, `Float`, contiguous, on the CPU.
    ///
    /// # Errors
    /// [`ModelError::Input`]: any other tensor. [`ModelError::Torch`]: it does not have two dimensions.
    pub fn quantize(weight: &Tensor, double_quant: bool) -> Result<Self, ModelError> {
        let size = weight.size2()?;
        let numbers: &[f32] = numbers(weight)?;
        let (codes, absmax) = cpu::pack(numbers);
        let scales = if double_quant { quantize_scales(&absmax)? } else { Scales::Single(absmax.into()) };
        Ok(Self { size, codes: codes.into(), scales, device_packed: None })
    }

    /// Returns `(out, in)`.
    #[must_use]
    pub fn size(&self) -> (i64, i64) {
        self.size
    }

    /// Returns the device of the weight.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device_packed.as_ref().map_or(Device::Cpu, |device_packed| device_packed.codes.device())
    }

    /// Returns the same weight on another device.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn to_device(&self, device: Device) -> Result<Self, ModelError> {
        let device_packed = match device {
            Device::Cpu => None,
            device => Some(DevicePacked {
                codes: Tensor::f_from_slice(&self.codes)?.f_to_device(device)?,
                scales: Tensor::f_from_slice(&self.all_scales())?.f_to_device(device)?,
            }),
        };
        Ok(Self { size: self.size, codes: self.codes.clone(), scales: self.scales.clone(), device_packed })
    }

    /// Returns the parts by name, for a file.
    pub(crate) fn parts(&self) -> Vec<(&'static str, Stored<'_>)> {
        let mut parts = vec![("codes", Stored::codes(&self.codes))];
        match &self.scales {
            Scales::Single(scales) => parts.push(("absmax", Stored::floats(scales))),
            Scales::Double { codes, nested, offset } => {
                parts.push(("absmax", Stored::codes(codes)));
                parts.push(("nested_absmax", Stored::floats(nested)));
                parts.push(("offset", Stored::floats(std::slice::from_ref(offset))));
            }
        }
        parts
    }

    /// Restores a weight of the shape `[out, in]` from the parts that [`Nf4::parts`] returned.
    pub(crate) fn of(shape: [i64; 2], part: impl Fn(&str) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        let (codes, absmax) = (part("codes")?, part("absmax")?);
        let scales = if absmax.f_kind()? == Kind::Uint8 {
            let offset = part("offset")?.f_double_value(&[0])? as f32;
            let nested: Vec<f32> = Vec::try_from(part("nested_absmax")?)?;
            Scales::Double { codes: Vec::<u8>::try_from(absmax)?.into(), nested: nested.into(), offset }
        } else {
            Scales::Single(Vec::<f32>::try_from(absmax)?.into())
        };
        let codes: Arc<[u8]> = Vec::<u8>::try_from(codes)?.into();
        let numbers = usize::try_from(shape[0] * shape[1]).unwrap_or(0);
        let (blocks, nested) = match &scales {
            Scales::Single(scales) => (scales.len(), None),
            Scales::Double { codes, nested, .. } => (codes.len(), Some(nested.len())),
        };
        let counts = (numbers.div_ceil(2), numbers.div_ceil(BLOCK));
        let nested_fits = nested.is_none_or(|nested| nested == counts.1.div_ceil(SCALE_BLOCK));
        if (codes.len(), blocks) != counts || !nested_fits {
            return Err(ModelError::Input(format!(
                "{} codes in {blocks} blocks are no weight of {shape:?}",
                codes.len()
            )));
        }
        Ok(Self { size: (shape[0], shape[1]), codes, scales, device_packed: None })
    }

    /// Returns the codes, two per byte.
    pub(crate) fn packed_codes(&self) -> &[u8] {
        &self.codes
    }

    /// Returns the scale of each block.
    pub(crate) fn all_scales(&self) -> Vec<f32> {
        (0..(self.size.0 * self.size.1) as usize).step_by(BLOCK).map(|first| self.scales.get(first / BLOCK)).collect()
    }

    /// Returns the size of codes and scales in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Single(scales) => scales.len() * 4,
            Scales::Double { codes, nested, .. } => codes.len() + nested.len() * 4 + 4,
        };
        self.codes.len() + scales
    }

    /// Unpacks to a new `Float` tensor `[out, in]`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn dequantize(&self) -> Result<Tensor, ModelError> {
        let mut out = Tensor::f_empty([self.size.0, self.size.1], (Kind::Float, self.device()))?; // [out, in]
        self.dequantize_into(&mut out)?;
        Ok(out)
    }

    /// Unpacks into `out: [out, in]`, `Float`, contiguous, on the weight's device, of which the caller has the only
    /// handle.
    ///
    /// # Errors
    /// [`ModelError::Input`]: any other tensor, or one of another size.
    pub fn dequantize_into(&self, out: &mut Tensor) -> Result<(), ModelError> {
        if out.size2()? != self.size {
            return Err(ModelError::Input(format!("a weight of {:?} does not fit in {:?}", self.size, out.size())));
        }
        match &self.device_packed {
            None => cpu::unpack(&self.codes, &self.scales, numbers_mut(out)?),
            Some(packed) => out.f_copy_(&plain::unpack(&packed.codes, &packed.scales, self.size)?)?,
        }
        Ok(())
    }
}

impl Scales {
    fn get(&self, block: usize) -> f32 {
        match self {
            Self::Single(scales) => scales[block],
            Self::Double { codes, nested, offset } => {
                DYNAMIC[usize::from(codes[block])] * nested[block / SCALE_BLOCK] + offset
            }
        }
    }
}

/// Quantizes the scales minus their mean to the dynamic 8-bit code, in blocks of 256.
fn quantize_scales(absmax: &[f32]) -> Result<Scales, ModelError> {
    // libtorch's own mean: its order of summation is part of the result.
    let offset = Tensor::f_from_slice(absmax)?.f_mean(Kind::Float)?.f_double_value(&[])? as f32;
    let mut codes = Vec::with_capacity(absmax.len());
    let mut nested = Vec::with_capacity(absmax.len().div_ceil(SCALE_BLOCK));
    for block in absmax.chunks(SCALE_BLOCK) {
        let largest = block.iter().fold(0f32, |largest, scale| largest.max((scale - offset).abs()));
        nested.push(largest);
        if largest == 0.0 {
            codes.resize(codes.len() + block.len(), 0);
            continue;
        }
        let inverse = 1.0 / largest;
        codes.extend(
            block.iter().map(|scale| nearest_code(&DYNAMIC_MIDPOINTS, ((scale - offset) * inverse).clamp(-1.0, 1.0))),
        );
    }
    Ok(Scales::Double { codes: codes.into(), nested: nested.into(), offset })
}

/// Returns the index of the nearest value of an 8-bit code, after rounding `number` to one of 65 536 steps from -1 to
/// 1.
///
/// bitsandbytes looks the step up in a table. The rounding of each operation, including the fused one, is part of the
/// result.
pub(crate) fn nearest_code(midpoints: &[f32; 255], number: f32) -> u8 {
    const STEPS: f32 = 65_535.0;
    let step = ((number + 1.0) * 0.5).mul_add(STEPS, 0.5) as u16;
    let rounded = 2.0 * f32::from(step) / STEPS - 1.0;
    let below = midpoints.partition_point(|&middle| middle < rounded);
    u8::try_from(below).unwrap_or(u8::MAX)
}

/// Returns the code of a number in bytes of two codes.
pub(crate) fn code(bytes: &[u8], at: usize) -> u8 {
    let byte = bytes[at / 2];
    if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{io::tensor_file::TensorFile, quant::nf4_tables::LEVELS};

    fn fixture() -> TensorFile {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/nf4.safetensors");
        TensorFile::open(&path).unwrap()
    }

    fn bytes(file: &TensorFile, name: &str) -> Vec<u8> {
        Vec::try_from(file.read(name).unwrap()).unwrap()
    }

    fn numbers(file: &TensorFile, name: &str) -> Vec<u32> {
        bits(&Vec::try_from(file.read(name).unwrap().flatten(0, -1)).unwrap())
    }

    /// Returns the bits of numbers, so that comparisons include every bit and the sign of zero.
    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|number| number.to_bits()).collect()
    }

    #[test]
    fn the_tables_are_those_of_bitsandbytes() {
        assert_eq!(numbers(&fixture(), "nf4_levels"), bits(&LEVELS));
        assert_eq!(numbers(&fixture(), "dynamic_map"), bits(&DYNAMIC));
    }

    #[test]
    fn codes_scales_and_numbers_are_those_of_bitsandbytes_bit_for_bit() {
        let file = fixture();
        assert_eq!(file.metadata()["bitsandbytes"], "0.50.2");
        let names: Vec<String> =
            file.names().iter().filter_map(|name| name.strip_suffix(".weight").map(str::to_owned)).collect();
        assert_eq!(names.len(), 7);
        for name in names {
            let weight = file.read(&format!("{name}.weight")).unwrap();
            for kind in ["single", "double"] {
                let prefix = format!("{name}.{kind}");
                let packed = Nf4::quantize(&weight, kind == "double").unwrap();
                assert_eq!(packed.codes[..], bytes(&file, &format!("{prefix}.codes")), "{prefix}");
                match &packed.scales {
                    Scales::Single(scales) => {
                        assert_eq!(bits(scales), numbers(&file, &format!("{prefix}.absmax")), "{prefix}")
                    }
                    Scales::Double { codes, nested, offset } => {
                        assert_eq!(bits(&[*offset]), numbers(&file, &format!("{prefix}.offset")), "{prefix}");
                        assert_eq!(bits(nested), numbers(&file, &format!("{prefix}.nested_absmax")), "{prefix}");
                        assert_eq!(codes[..], bytes(&file, &format!("{prefix}.absmax")), "{prefix}");
                    }
                }
                let unpacked = packed.dequantize().unwrap();
                assert_eq!(
                    bits(crate::kernels::ffi::numbers(&unpacked).unwrap()),
                    numbers(&file, &format!("{prefix}.dequantized")),
                    "{prefix}"
                );
            }
        }
    }

    #[test]
    fn plain_tensor_operations_unpack_the_same_numbers() {
        for size in [[64, 64], [3, 21], [1, 1], [7, 515]] {
            let weight = Tensor::randn(size, (Kind::Float, Device::Cpu));
            for double_quant in [false, true] {
                let packed = Nf4::quantize(&weight, double_quant).unwrap();
                let (codes, scales) = (Tensor::from_slice(&packed.codes), Tensor::from_slice(&packed.all_scales()));
                assert_eq!(
                    plain::unpack(&codes, &scales, packed.size).unwrap(),
                    packed.dequantize().unwrap(),
                    "{size:?}"
                );
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let weight = Tensor::randn([1024, 515], (Kind::Float, Device::Cpu));
        let before = tch::get_num_threads();
        let mut made = Vec::new();
        for threads in [1, 2, 5] {
            tch::set_num_threads(threads);
            let packed = Nf4::quantize(&weight, true).unwrap();
            made.push((packed.codes.clone(), packed.dequantize().unwrap()));
        }
        tch::set_num_threads(before);
        for (codes, unpacked) in &made {
            assert_eq!(*codes, made[0].0);
            assert_eq!(*unpacked, made[0].1);
        }
    }

    #[test]
    fn a_weight_takes_little_more_than_half_a_byte_a_number() {
        let weight = Tensor::randn([1024, 1024], (Kind::Float, Device::Cpu));
        let per_number = |double| Nf4::quantize(&weight, double).unwrap().bytes() as f64 * 8.0 / f64::from(1 << 20);
        assert_eq!(per_number(false), 4.5);
        assert!((per_number(true) - 4.127).abs() < 1e-3, "{}", per_number(true));
    }

    #[test]
    fn what_cannot_be_packed_or_unpacked_into_is_refused() {
        assert!(Nf4::quantize(&Tensor::randn([4, 64], (Kind::Double, Device::Cpu)), true).is_err());
        assert!(Nf4::quantize(&Tensor::randn([64], (Kind::Float, Device::Cpu)), true).is_err());
        let packed = Nf4::quantize(&Tensor::randn([4, 64], (Kind::Float, Device::Cpu)), true).unwrap();
        assert!(packed.dequantize_into(&mut Tensor::zeros([64, 4], (Kind::Float, Device::Cpu))).is_err());
    }
}
