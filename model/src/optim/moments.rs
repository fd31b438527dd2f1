//! The first and second moments of AdamW for one factor, in `f32` or in 8 bits.
//!
//! In 8 bits, a block of 256 numbers shares a scale, the block's largest absolute value. Each number is the nearest
//! value of a dynamic code: seven decades, with more values in the larger ones. Small factors keep `f32`, as in
//! bitsandbytes: 8 bits would save almost nothing.
//!
//! Source: Dettmers et al., arXiv:2110.02861, §2; the order of operations is that of bitsandbytes 0.50.2 on a CPU
//! (`_optimizer_update_8bit_blockwise_cpu`), the codes are those of `create_dynamic_map` in its `functional.py`.

use std::sync::{
    LazyLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tch::{Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::{
        ffi::{is_plain, numbers, numbers_mut},
        fused::{run, share},
    },
    optim::options::AdamWOptions,
    quant::{
        nf4::{midpoints, nearest_code},
        nf4_tables::DYNAMIC,
    },
};

/// The count of numbers that share a scale.
const BLOCK: usize = 256;
/// The smallest factor, in numbers, whose moments are kept in 8 bits. Smaller ones use `f32`. Source: `min_8bit_size`
/// in bitsandbytes.
const SMALLEST: usize = 4096;

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

/// Numbers quantized to 8 bits in blocks.
#[derive(Debug, Clone)]
pub(crate) struct Codes {
    codes: Vec<u8>,
    /// The scale of each block: its largest absolute value.
    largest: Vec<f32>,
}

/// An 8-bit code, and the midpoints between neighboring values.
struct Code {
    values: [f32; 256],
    midpoints: [f32; 255],
}

/// The code of the first moment, which has either sign.
static SIGNED: Code = Code { values: DYNAMIC, midpoints: midpoints(&DYNAMIC) };

/// The code of the second moment, which is never negative.
static UNSIGNED: LazyLock<Code> = LazyLock::new(|| {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7 {
        let count = 2 << decade;
        for i in 0..count {
            let middle = 0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(count);
            values.push((middle * 10f64.powi(decade - 6)) as f32);
        }
    }
    values.sort_by(f32::total_cmp);
    let values = std::array::from_fn(|at| values.get(at).copied().unwrap_or(1.0));
    Code { values, midpoints: midpoints(&values) }
});

impl Codes {
    fn zeros(count: usize) -> Self {
        Self { codes: vec![0; count], largest: vec![0.0; count.div_ceil(BLOCK)] }
    }

    fn get(&self, code: &Code, at: usize) -> f32 {
        code.values[usize::from(self.codes[at])] * self.largest[at / BLOCK]
    }

    /// Quantizes one whole block.
    fn set(&mut self, code: &Code, block: usize, numbers: &[f32]) {
        let largest = numbers.iter().fold(0f32, |largest, number| largest.max(number.abs()));
        self.largest[block] = largest;
        for (place, &number) in self.codes[block * BLOCK..].iter_mut().zip(numbers) {
            *place = if largest == 0.0 { 0 } else { nearest_code(&code.midpoints, number / largest) };
        }
    }
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
            Self::Packed { mean, .. } => 2 * (mean.codes.len() + mean.largest.len() * 4),
        };
        bytes as u64
    }

    /// Returns whether the factor and its moments would be finite after [`Moments::apply`].
    pub(crate) fn stays_finite(&self, update: &Update, factor: &Tensor, gradient: &Tensor) -> Result<bool, ModelError> {
        let finite = |(weight, mean, square): Next| weight.is_finite() && mean.is_finite() && square.is_finite();
        match self {
            Self::Full { mean, square } if is_plain(factor) => {
                let (weights, gradients) = (numbers::<f32>(factor)?, numbers::<f32>(gradient)?);
                let (means, squares) = (numbers::<f32>(mean)?, numbers::<f32>(square)?);
                let scalars = (update.keep(), update.step(), update.root());
                let share = share(weights.len(), 1);
                let pieces = weights.chunks(share).zip(gradients.chunks(share));
                let moments = means.chunks(share).zip(squares.chunks(share));
                let all = AtomicBool::new(true);
                run(pieces.zip(moments), |((weights, gradients), (means, squares))| {
                    // No early exit, so that the loop is vectorized over eight numbers.
                    let piece = weights.iter().zip(gradients).zip(means.iter().zip(squares));
                    let is_finite =
                        piece.fold(true, |all, ((&w, &g), (&m, &s))| all & finite(update.full(scalars, w, g, (m, s))));
                    all.fetch_and(is_finite, Relaxed);
                });
                Ok(all.load(Relaxed))
            }
            Self::Full { mean, square } => {
                let (weight, mean, square) = elsewhere(update, factor, gradient, (mean, square))?;
                let all = |t: &Tensor| Ok::<_, ModelError>(t.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0);
                Ok(all(&weight)? && all(&mean)? && all(&square)?)
            }
            Self::Packed { mean, square } => {
                let (weights, gradients) = (numbers::<f32>(factor)?, numbers::<f32>(gradient)?);
                Ok(weights.iter().zip(gradients).enumerate().all(|(at, (&w, &g))| {
                    finite(update.packed(w, g, (mean.get(&SIGNED, at), square.get(&UNSIGNED, at))))
                }))
            }
        }
    }

    /// Updates a factor and its moments.
    pub(crate) fn apply(&mut self, update: &Update, factor: &mut Tensor, gradient: &Tensor) -> Result<(), ModelError> {
        match self {
            Self::Full { mean, square } if is_plain(factor) => {
                let (weights, gradients) = (numbers_mut::<f32>(factor)?, numbers::<f32>(gradient)?);
                let (means, squares) = (numbers_mut::<f32>(mean)?, numbers_mut::<f32>(square)?);
                let scalars = (update.keep(), update.step(), update.root());
                let share = share(weights.len(), 1);
                let pieces = weights.chunks_mut(share).zip(gradients.chunks(share));
                let moments = means.chunks_mut(share).zip(squares.chunks_mut(share));
                run(pieces.zip(moments), |((weights, gradients), (means, squares))| {
                    for ((w, &g), (m, s)) in weights.iter_mut().zip(gradients).zip(means.iter_mut().zip(squares)) {
                        (*w, *m, *s) = update.full(scalars, *w, g, (*m, *s));
                    }
                });
            }
            Self::Full { mean, square } => {
                let (next, next_mean, next_square) = elsewhere(update, factor, gradient, (mean, square))?;
                factor.f_copy_(&next)?;
                (*mean, *square) = (next_mean, next_square);
            }
            Self::Packed { mean, square } => {
                let (weights, gradients) = (numbers_mut::<f32>(factor)?, numbers::<f32>(gradient)?);
                for (block, (weights, gradients)) in weights.chunks_mut(BLOCK).zip(gradients.chunks(BLOCK)).enumerate()
                {
                    let (mut means, mut squares) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
                    for (i, (w, &g)) in weights.iter_mut().zip(gradients).enumerate() {
                        let at = block * BLOCK + i;
                        let (next, m, s) = update.packed(*w, g, (mean.get(&SIGNED, at), square.get(&UNSIGNED, at)));
                        *w = next;
                        means.push(m);
                        squares.push(s);
                    }
                    mean.set(&SIGNED, block, &means);
                    square.set(&UNSIGNED, block, &squares);
                }
            }
        }
        Ok(())
    }

    /// Returns the tensors with the suffixes of their names, for a checkpoint file.
    pub(crate) fn tensors(&self) -> Result<Vec<(&'static str, Tensor)>, ModelError> {
        Ok(match self {
            Self::Full { mean, square } => {
                vec![("exp_avg", mean.shallow_clone()), ("exp_avg_sq", square.shallow_clone())]
            }
            Self::Packed { mean, square } => vec![
                ("state1", Tensor::f_from_slice(&mean.codes)?),
                ("absmax1", Tensor::f_from_slice(&mean.largest)?),
                ("state2", Tensor::f_from_slice(&square.codes)?),
                ("absmax2", Tensor::f_from_slice(&square.largest)?),
            ],
        })
    }

    /// Restores the tensors that [`Moments::tensors`] returned, in the same order and shapes.
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

/// Computes an update in PyTorch's order with plain tensor operations, for devices other than the CPU.
fn elsewhere(
    update: &Update,
    factor: &Tensor,
    gradient: &Tensor,
    (mean, square): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor, Tensor), ModelError> {
    let complements = (f64::from(update.complements.0), f64::from(update.complements.1));
    let mean = mean.f_lerp(gradient, complements.0)?;
    let scaled = gradient.f_mul_scalar(complements.1)?;
    let square = square.f_mul_scalar(f64::from(update.beta2))?.f_addcmul_(&scaled, gradient)?;
    let divisor = square.f_sqrt()?.f_div_scalar_(f64::from(update.root()))?.f_add_scalar_(f64::from(update.epsilon))?;
    let step = mean.f_mul_scalar(-f64::from(update.step()))?.f_div_(&divisor)?;
    Ok((factor.f_mul_scalar(f64::from(update.keep()))?.f_add_(&step)?, mean, square.f_to_kind(Kind::Float)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tensor_file::TensorFile;
    use tch::Device;

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
            plain = elsewhere(&update, &plain.0, &gradient, (&plain.1, &plain.2)).unwrap();
            moments.apply(&update, &mut factor, &gradient).unwrap();
            assert!(factor.allclose(&plain.0, 1e-6, 1e-7, false), "step {step}");
        }
    }
}
