//! AdamW over the factors of an adapter, with moments in `f32` (equal to `torch.optim.AdamW`) or in 8 bits (see
//! `moments/`). A checkpoint saves and restores its state, so a run that resumes gives the same result as one that
//! never stopped.
//!
//! A step is computed twice: first to check that every factor stays finite, then to apply it. So a step that would
//! produce a NaN or an infinity changes nothing.
//!
//! Sources: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2; the order of operations from `_single_tensor_adamw`
//! in PyTorch's `optim/adam.py`; LoRA+ (Hayou et al., arXiv:2402.12354) with the parameter groups of
//! `create_loraplus_optimizer` in PEFT.

use std::{collections::HashMap, path::Path};

use tch::Tensor;

use crate::{
    adapter::LoraAdapter,
    error::ModelError,
    io::tensor_file::{TensorFile, write_stored},
    optim::{
        gradients::Gradients,
        moments::{Moments, Update},
        options::AdamWOptions,
    },
};

/// The AdamW optimizer and its state.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    steps: u64,
    /// The moments, in the order of [`LoraAdapter::parameters`].
    moments: Vec<Moments>,
}

impl AdamW {
    /// Creates an optimizer for `adapter` with zero moments.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn new(adapter: &LoraAdapter, options: AdamWOptions) -> Result<Self, ModelError> {
        let moments = adapter.parameters().into_iter().map(|(_, factor)| Moments::new(factor, options.eight_bit));
        Ok(Self { options, steps: 0, moments: moments.collect::<Result<_, _>>()? })
    }

    /// Returns an optimizer of no factor, which holds the place of another one without its memory.
    #[must_use]
    pub fn empty() -> Self {
        Self { options: AdamWOptions::default(), steps: 0, moments: Vec::new() }
    }

    /// Returns the number of steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates the factors of `adapter` with `gradients` at the learning rate `rate`.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`]: a factor or its moments would not be finite; nothing was changed.
    /// [`ModelError::Input`]: the gradients or this optimizer belong to another adapter. [`ModelError::Torch`].
    pub fn step(&mut self, adapter: &mut LoraAdapter, gradients: &Gradients, rate: f64) -> Result<(), ModelError> {
        let gradients = gradients.named();
        let names_differ = |((a, _), (b, _)): (&(String, &Tensor), &(String, &Tensor))| a != b;
        let parameters = adapter.parameters();
        let counts = [parameters.len(), gradients.len(), self.moments.len()];
        if counts[0] != counts[1] || counts[0] != counts[2] || parameters.iter().zip(&gradients).any(names_differ) {
            return Err(ModelError::Input("the gradients or the optimizer belong to another adapter".into()));
        }
        let update = Update::new(&self.options, self.steps + 1, rate);
        let faster = update.times(self.options.loraplus_lr_ratio);
        let of = |name: &str| if name.ends_with("lora_A.weight") { &update } else { &faster };
        for (((name, factor), (_, gradient)), moments) in parameters.iter().zip(&gradients).zip(&self.moments) {
            if !moments.stays_finite(of(name), factor, gradient)? {
                return Err(ModelError::NotFinite(name.clone()));
            }
        }
        for (((name, factor), (_, gradient)), moments) in
            adapter.parameters_mut().into_iter().zip(&gradients).zip(&mut self.moments)
        {
            moments.apply(of(&name), factor, gradient)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Returns the size of the state in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moments.iter().map(Moments::bytes).sum()
    }

    /// Writes the state to a `.safetensors` file.
    ///
    /// # Errors
    /// [`ModelError::File`], [`ModelError::Torch`].
    pub fn save(&self, adapter: &LoraAdapter, path: &Path) -> Result<(), ModelError> {
        let mut all = Vec::new();
        for ((name, _), moments) in adapter.parameters().into_iter().zip(&self.moments) {
            all.extend(moments.parts()?.into_iter().map(|(suffix, stored)| (format!("{name}.{suffix}"), stored)));
        }
        write_stored(path, all, HashMap::from([("steps".into(), self.steps.to_string())]))
    }

    /// Reads the state that [`AdamW::save`] wrote for the same adapter and the same options.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::File`], [`ModelError::Missing`], [`ModelError::Unexpected`],
    /// [`ModelError::Shape`], [`ModelError::NotFinite`]: the file is not the state of this adapter;
    /// [`ModelError::Torch`].
    pub fn load(adapter: &LoraAdapter, options: AdamWOptions, path: &Path) -> Result<Self, ModelError> {
        let file = TensorFile::open(path)?;
        let mut made = Self::new(adapter, options)?;
        let steps = file.metadata().get("steps").and_then(|steps| steps.parse().ok());
        made.steps = steps.ok_or_else(|| ModelError::file(path, "its metadata has no number of steps"))?;
        let mut known = Vec::new();
        for ((name, _), moments) in adapter.parameters().into_iter().zip(&mut made.moments) {
            let mut read = Vec::new();
            for (suffix, place) in moments.parts()? {
                let name = format!("{name}.{suffix}");
                let missing = || ModelError::Missing { name: name.clone(), place: path.into() };
                let (want, got) = (place.size(), file.shape(&name).ok_or_else(missing)?);
                if want != got {
                    return Err(ModelError::Shape { name, want, got });
                }
                read.push(if place.is_codes() { file.read(&name)? } else { file.read_floats(&name)? });
                known.push(name);
            }
            moments.set(&read)?;
        }
        known.sort();
        match file.names().into_iter().find(|name| known.binary_search(name).is_err()) {
            Some(name) => Err(ModelError::Unexpected { name, place: path.into() }),
            None => Ok(made),
        }
    }
}
