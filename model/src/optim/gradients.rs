//! The accumulated gradients of an adapter, their norm, and gradient clipping.

use tch::Tensor;

use crate::{
    adapter::{LayerPairs, LoraAdapter, map, named},
    error::ModelError,
};

/// The gradients of an adapter's factors, in the order of the factors.
#[derive(Debug)]
pub struct Gradients {
    pub(crate) layers: Vec<LayerPairs>,
}

impl Gradients {
    /// Returns a zero gradient for every factor.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: out of memory.
    pub fn zeros(adapter: &LoraAdapter) -> Result<Self, ModelError> {
        Ok(Self { layers: map(adapter.layers(), Tensor::f_zeros_like)? })
    }

    /// Returns the gradients of no factor, which hold the place of others without their memory.
    #[must_use]
    pub fn empty() -> Self {
        Self { layers: Vec::new() }
    }

    /// Sets all gradients to zero, for the next effective batch.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn clear(&mut self) -> Result<(), ModelError> {
        self.all_mut().try_for_each(|gradient| Ok(gradient.f_zero_().map(drop)?))
    }

    /// Returns every gradient with its factor's PEFT name, in the order of [`LoraAdapter::parameters`].
    #[must_use]
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        named(&self.layers)
    }

    /// Returns every gradient, mutably.
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let pairs = self.layers.iter_mut().flat_map(|layer| layer.iter_mut().flatten());
        pairs.flat_map(|pair| pair.named_mut().map(|(_, gradient)| gradient))
    }

    /// Returns the L2 norm of all gradients as one vector.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn norm(&self) -> Result<f64, ModelError> {
        let mut squares = 0.0;
        for (_, gradient) in self.named() {
            squares += gradient.f_norm()?.f_double_value(&[])?.powi(2);
        }
        Ok(squares.sqrt())
    }

    /// Scales all gradients down so that their norm is at most `max`, and returns the norm before scaling. A norm that
    /// is NaN scales nothing; if the norm is not finite, the caller must not take a step.
    ///
    /// Source: `torch.nn.utils.clip_grad_norm_`.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn clip(&mut self, max: f64) -> Result<f64, ModelError> {
        let norm = self.norm()?;
        let factor = max / (norm + 1e-6);
        if factor < 1.0 {
            self.all_mut().try_for_each(|gradient| gradient.f_mul_scalar_(factor).map(drop))?;
        }
        Ok(norm)
    }
}
