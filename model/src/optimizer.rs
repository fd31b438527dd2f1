//! AdamW over the factors of an adapter, equal to `torch.optim.AdamW`. Its state is saved and loaded with a checkpoint, so
//! that a run goes on as if it had never stopped.
//!
//! Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2; the order of operations from `_single_tensor_adamw` in
//! PyTorch's `optim/adam.py`.

use std::{collections::HashMap, path::Path};

use tch::Tensor;

use crate::{
    adapter::LoraAdapter,
    error::ModelError,
    gradients::Gradients,
    tensor_file::{TensorFile, write_tensors},
};

/// What does not change over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Keeps the division finite.
    pub epsilon: f64,
    /// Decoupled decay of the weights.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    /// PyTorch's, but for `weight_decay`, which is 0 as in transformers' `TrainingArguments`.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser and its state.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    steps: u64,
    /// Running means of the gradients and of their squares, in the adapter's order.
    means: Gradients,
    squares: Gradients,
}

impl AdamW {
    /// A fresh optimiser for `adapter`.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: no memory.
    pub fn new(adapter: &LoraAdapter, options: AdamWOptions) -> Result<Self, ModelError> {
        Ok(Self { options, steps: 0, means: Gradients::zeros(adapter)?, squares: Gradients::zeros(adapter)? })
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves the factors of `adapter` against `gradients`.
    ///
    /// # Errors
    /// [`ModelError::Input`]: the gradients are of another adapter. [`ModelError::Torch`].
    pub fn step(&mut self, adapter: &mut LoraAdapter, gradients: &Gradients, rate: f64) -> Result<(), ModelError> {
        if adapter.layers().len() != gradients.layers.len() || adapter.layers().len() != self.means.layers.len() {
            return Err(ModelError::Input("gradients or an optimiser of another adapter".into()));
        }
        self.steps += 1;
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let update = Update {
            beta1,
            beta2,
            epsilon,
            keep: 1.0 - rate * weight_decay,
            step: rate / (1.0 - beta1.powi(exponent)),
            root: (1.0 - beta2.powi(exponent)).sqrt(),
        };
        let states = self.means.layers.iter_mut().zip(&mut self.squares.layers);
        let layers = adapter.layers_mut().iter_mut().zip(&gradients.layers).zip(states);
        for ((pairs, gradients), (means, squares)) in layers {
            let states = means.0.iter_mut().zip(&mut squares.0);
            for ((pair, gradient), (mean, square)) in pairs.iter_mut().zip(&gradients.0).zip(states) {
                let (Some(pair), Some(gradient), Some(mean), Some(square)) = (pair, gradient, mean, square) else {
                    continue;
                };
                update.apply(&mut pair.a, &gradient.a, &mut mean.a, &mut square.a)?;
                update.apply(&mut pair.b, &gradient.b, &mut mean.b, &mut square.b)?;
            }
        }
        Ok(())
    }

    /// Writes the state to a `.safetensors` file.
    ///
    /// # Errors
    /// [`ModelError::File`], [`ModelError::Torch`].
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        let suffixed = |state: &Gradients, suffix: &str| -> Vec<(String, Tensor)> {
            state.named().into_iter().map(|(name, t)| (format!("{name}.{suffix}"), t.shallow_clone())).collect()
        };
        let mut all = suffixed(&self.means, "exp_avg");
        all.extend(suffixed(&self.squares, "exp_avg_sq"));
        let tensors: Vec<(String, &Tensor)> = all.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        write_tensors(path, &tensors, HashMap::from([("steps".into(), self.steps.to_string())]))
    }

    /// Reads the state that [`AdamW::save`] wrote for the same adapter.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::File`], [`ModelError::Missing`], [`ModelError::Unexpected`],
    /// [`ModelError::Shape`], [`ModelError::NotFinite`]: it is not the state of this adapter; [`ModelError::Torch`].
    pub fn load(adapter: &LoraAdapter, options: AdamWOptions, path: &Path) -> Result<Self, ModelError> {
        let file = TensorFile::open(path)?;
        let mut made = Self::new(adapter, options)?;
        let steps = file.metadata().get("steps").and_then(|steps| steps.parse().ok());
        made.steps = steps.ok_or_else(|| ModelError::file(path, "it does not say its number of steps"))?;
        let mut known = Vec::new();
        for (state, suffix) in [(&made.means, "exp_avg"), (&made.squares, "exp_avg_sq")] {
            for (name, place) in state.named() {
                let name = format!("{name}.{suffix}");
                let missing = || ModelError::Missing { name: name.clone(), place: path.into() };
                let (want, got) = (place.size(), file.shape(&name).ok_or_else(missing)?);
                if want != got {
                    return Err(ModelError::Shape { name, want, got });
                }
                place.shallow_clone().f_copy_(&file.read_floats(&name)?)?;
                known.push(name);
            }
        }
        known.sort();
        match file.names().into_iter().find(|name| known.binary_search(name).is_err()) {
            Some(name) => Err(ModelError::Unexpected { name, place: path.into() }),
            None => Ok(made),
        }
    }
}

/// One step's numbers.
struct Update {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    keep: f64,
    step: f64,
    root: f64,
}

impl Update {
    fn apply(
        &self,
        weight: &mut Tensor,
        gradient: &Tensor,
        mean: &mut Tensor,
        square: &mut Tensor,
    ) -> Result<(), ModelError> {
        let mut weight = weight.f_mul_scalar_(self.keep)?;
        let mean = mean.f_lerp_(gradient, 1.0 - self.beta1)?;
        let scaled = gradient.f_mul_scalar(1.0 - self.beta2)?;
        let square = square.f_mul_scalar_(self.beta2)?.f_addcmul_(&scaled, gradient)?;
        let divisor = square.f_sqrt()?.f_div_scalar_(self.root)?.f_add_scalar_(self.epsilon)?;
        let _ = weight.f_addcdiv_(&mean.f_mul_scalar(-self.step)?, &divisor)?;
        Ok(())
    }
}
