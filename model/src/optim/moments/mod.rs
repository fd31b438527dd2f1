//! The first and second moments of AdamW for one factor, in `f32` or in 8 bits (`codes.rs`): `m ← β₁·m + (1-β₁)·g`,
//! `v ← β₂·v + (1-β₂)·g²`, and the factor's update from both. All tensors have the shape of the factor.
//!
//! Small factors keep `f32`, as in bitsandbytes: 8 bits would save almost nothing.
//!
//! Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2; with 8 bits, the order of operations is that of
//! bitsandbytes 0.50.2 on a CPU (`_optimizer_update_8bit_blockwise_cpu`).

mod codes;
mod cpu;
mod plain;

use attune_domain::memory::SMALLEST_IN_8_BITS;
use tch::Tensor;

use self::codes::Codes;
use crate::{
    error::ModelError,
    io::tensor_file::Stored,
    kernels::pick::{Kernel, Number, pick},
    optim::options::AdamWOptions,
};

/// The smallest factor, in numbers, whose moments are kept in 8 bits. Smaller ones use `f32`.
const SMALLEST: usize = SMALLEST_IN_8_BITS as usize;

/// The scalars of one optimizer step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    beta1: f32,
    beta2: f32,
    /// `1 - beta1` and `1 - beta2`, subtracted in `f64`: in `f32` the second would lose four digits.
    complements: (f32, f32),
    epsilon: f32,
    weight_decay: f64,
    rate: f64,
    /// The bias corrections, `1 - beta1^step` and `√(1 - beta2^step)`.
    corrections: (f64, f64),
}

/// The new weight, first moment and second moment.
type Next = (f32, f32, f32);

/// Returns whether all three are finite.
#[inline(always)]
fn is_finite((weight, mean, square): Next) -> bool {
    weight.is_finite() && mean.is_finite() && square.is_finite()
}

impl Update {
    pub(crate) fn new(options: &AdamWOptions, step: u64, rate: f64) -> Self {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let corrections = (1.0 - options.beta1.powi(exponent), (1.0 - options.beta2.powi(exponent)).sqrt());
        let (beta1, beta2, epsilon) = (options.beta1 as f32, options.beta2 as f32, options.epsilon as f32);
        let complements = ((1.0 - options.beta1) as f32, (1.0 - options.beta2) as f32);
        Self { beta1, beta2, complements, epsilon, weight_decay: options.weight_decay, rate, corrections }
    }

    /// Returns the same scalars with the learning rate multiplied by `ratio`.
    pub(crate) fn times(&self, ratio: f64) -> Self {
        Self { rate: self.rate * ratio, ..*self }
    }

    fn keep(&self) -> f32 {
        (1.0 - self.rate * self.weight_decay) as f32
    }

    fn step(&self) -> f32 {
        (self.rate / self.corrections.0) as f32
    }

    fn root(&self) -> f32 {
        self.corrections.1 as f32
    }

    /// Computes an update in PyTorch's order of operations.
    #[inline(always)]
    fn full(
        &self,
        (keep, step, root): (f32, f32, f32),
        weight: f32,
        gradient: f32,
        (mean, square): (f32, f32),
    ) -> Next {
        let mean = mean + self.complements.0 * (gradient - mean);
        let square = square * self.beta2 + self.complements.1 * gradient * gradient;
        let divisor = square.sqrt() / root + self.epsilon;
        (weight * keep - step * mean / divisor, mean, square)
    }

    /// Computes an update in bitsandbytes' order of operations: the first moment is the sum of two products.
    fn packed(&self, weight: f32, gradient: f32, (mean, square): (f32, f32)) -> Next {
        let mean = mean * self.beta1 + gradient * self.complements.0;
        let square = square * self.beta2 + gradient * gradient * self.complements.1;
        let divisor = square.sqrt() / self.root() + self.epsilon;
        (weight * self.keep() + -self.step() * mean / divisor, mean, square)
    }
}

/// The moments of one factor.
#[derive(Debug)]
pub(crate) enum Moments {
    /// Tensors in the shape of the factor.
    Full { mean: Tensor, square: Tensor },
    /// 8-bit codes, flattened.
    Packed { mean: Codes, square: Codes },
}

impl Moments {
    /// Returns zero moments for `factor`.
    pub(crate) fn new(factor: &Tensor, eight_bit: bool) -> Result<Self, ModelError> {
        let count = factor.numel();
        if eight_bit && count >= SMALLEST {
            let (mean, square) = (Codes::zeros(count), Codes::zeros(count));
            return Ok(Self::Packed { mean, square });
        }
        Ok(Self::Full { mean: factor.f_zeros_like()?, square: factor.f_zeros_like()? })
    }

    /// Returns the size in memory, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Full { mean, .. } => mean.numel() * 8,
            Self::Packed { mean, .. } => 2 * mean.bytes(),
        };
        bytes as u64
    }

    /// Returns whether the factor and its moments would be finite after [`Moments::apply`].
    pub(crate) fn stays_finite(&self, update: &Update, factor: &Tensor, gradient: &Tensor) -> Result<bool, ModelError> {
        match self {
            Self::Full { mean, square } => match pick(factor, &[])? {
                Kernel::Cpu(Number::F32) => cpu::stays_finite(update, factor, gradient, (mean, square)),
                _ => plain::stays_finite(update, factor, gradient, (mean, square)),
            },
            Self::Packed { mean, square } => cpu::packed_stays_finite(update, factor, gradient, (mean, square)),
        }
    }

    /// Updates a factor and its moments.
    pub(crate) fn apply(&mut self, update: &Update, factor: &mut Tensor, gradient: &Tensor) -> Result<(), ModelError> {
        match self {
            Self::Full { mean, square } => match pick(factor, &[])? {
                Kernel::Cpu(Number::F32) => cpu::apply(update, factor, gradient, (mean, square)),
                _ => plain::apply(update, factor, gradient, (mean, square)),
            },
            Self::Packed { mean, square } => cpu::apply_packed(update, factor, gradient, (mean, square)),
        }
    }

    /// Returns the parts with the suffixes of their names, for a checkpoint file.
    pub(crate) fn parts(&self) -> Result<Vec<(&'static str, Stored<'_>)>, ModelError> {
        Ok(match self {
            Self::Full { mean, square } => {
                vec![("exp_avg", Stored::of(mean)?), ("exp_avg_sq", Stored::of(square)?)]
            }
            Self::Packed { mean, square } => vec![
                ("state1", Stored::codes(&mean.codes)),
                ("absmax1", Stored::floats(&mean.largest)),
                ("state2", Stored::codes(&square.codes)),
                ("absmax2", Stored::floats(&square.largest)),
            ],
        })
    }

    /// Restores the tensors of the parts that [`Moments::parts`] returned, in the same order and shapes.
    pub(crate) fn set(&mut self, tensors: &[Tensor]) -> Result<(), ModelError> {
        match (self, tensors) {
            (Self::Full { mean, square }, [first, second]) => {
                mean.f_copy_(first)?;
                square.f_copy_(second)?;
            }
            (Self::Packed { mean, square }, [codes1, largest1, codes2, largest2]) => {
                *mean = Codes { codes: Vec::try_from(codes1)?, largest: Vec::try_from(largest1)? };
                *square = Codes { codes: Vec::try_from(codes2)?, largest: Vec::try_from(largest2)? };
            }
            _ => return Err(ModelError::Input("the moments are of another kind".into())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        io::tensor_file::TensorFile,
        optim::moments::codes::{SIGNED, UNSIGNED},
    };
    use tch::{Device, Kind};

    #[test]
    fn the_codes_are_those_of_bitsandbytes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/adamw8bit.tensors");
        let file = TensorFile::open(path.as_ref()).unwrap();
        for (name, code) in [("signed_map", &SIGNED), ("unsigned_map", &*UNSIGNED)] {
            let theirs = Vec::<f32>::try_from(file.read(name).unwrap()).unwrap();
            for (ours, theirs) in code.values.iter().zip(theirs) {
                // bitsandbytes computes them in f32.
                assert!((ours - theirs).abs() <= 3e-7 * theirs.abs(), "{name}: {ours} {theirs}");
            }
        }
    }

    /// Ten steps of `AdamW8bit`. A moment midway between two codes may round to either, depending on its last bit, and
    /// then stays one code off: only a few may differ, and the weights stay close.
    #[test]
    fn ten_steps_are_those_of_bitsandbytes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/adamw8bit.tensors");
        let file = TensorFile::open(path.as_ref()).unwrap();
        let rates = Vec::<f64>::try_from(file.read("rates").unwrap()).unwrap();
        let options = AdamWOptions { weight_decay: 0.1, eight_bit: true, ..AdamWOptions::default() };
        for name in ["whole", "short", "small"] {
            let mut factor = file.read(&format!("start.{name}")).unwrap();
            let mut moments = Moments::new(&factor, true).unwrap();
            for (step, rate) in (1..).zip(&rates) {
                let gradient = file.read_floats(&format!("{step}.gradient.{name}")).unwrap();
                moments.apply(&Update::new(&options, step, *rate), &mut factor, &gradient).unwrap();
                let Ok(want) = file.read(&format!("after.{step}.{name}.weight")) else { continue };
                let off = (&factor - want).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{name}, step {step}: {off}");
                if let Moments::Packed { mean, square } = &moments {
                    for (what, codes) in [("mean", mean), ("square", square)] {
                        let read = |end: &str| file.read(&format!("after.{step}.{name}.{what}{end}")).unwrap();
                        let theirs = Vec::<u8>::try_from(read("").flatten(0, -1)).unwrap();
                        let differ = codes.codes.iter().zip(&theirs).filter(|(a, b)| a != b).count();
                        assert!(differ * 500 <= theirs.len(), "{name}, step {step}: {differ} codes of the {what}");
                        let largest = Tensor::from_slice(&codes.largest);
                        assert!(largest.allclose(&read("_scales"), 1e-5, 0.0, false), "{name}, step {step}: scales");
                    }
                }
            }
        }
    }

    #[test]
    fn plain_tensor_operations_move_a_factor_the_same_way() {
        tch::manual_seed(8);
        let random = || Tensor::randn([40, 9], (Kind::Float, Device::Cpu));
        let options = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
        let (mut factor, gradient) = (random(), random());
        let mut moments = Moments::new(&factor, false).unwrap();
        let mut plain = (factor.copy(), factor.zeros_like(), factor.zeros_like());
        for step in 1..5 {
            let update = Update::new(&options, step, 1e-2);
            plain = plain::next(&update, &plain.0, &gradient, (&plain.1, &plain.2)).unwrap();
            moments.apply(&update, &mut factor, &gradient).unwrap();
            assert!(factor.allclose(&plain.0, 1e-6, 1e-7, false), "step {step}");
        }
    }
}
