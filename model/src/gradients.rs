//! The gradients of an adapter: where they add up over micro-batches, their norm, and clipping.

use attune_domain::architecture::PROJECTIONS;
use tch::Tensor;

use crate::{
    adapter::{LoraAdapter, LoraPair, factor_name},
    error::ModelError,
    linear::LayerGradients,
};

/// The gradients of an adapter's factors, in its order.
#[derive(Debug)]
pub struct Gradients {
    pub(crate) layers: Vec<LayerGradients>,
}

impl Gradients {
    /// Zeros for every factor.
    ///
    /// # Errors
    /// [`ModelError::Torch`]: no memory.
    pub fn zeros(adapter: &LoraAdapter) -> Result<Self, ModelError> {
        let mut layers = Vec::with_capacity(adapter.layers().len());
        for pairs in adapter.layers() {
            let mut made = LayerGradients::default();
            for (place, pair) in made.0.iter_mut().zip(pairs) {
                if let Some(pair) = pair {
                    *place = Some(LoraPair { a: pair.a.f_zeros_like()?, b: pair.b.f_zeros_like()? });
                }
            }
            layers.push(made);
        }
        Ok(Self { layers })
    }

    /// Sets all to zero, for the next effective batch.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn clear(&mut self) -> Result<(), ModelError> {
        for pair in self.layers.iter_mut().flat_map(|layer| layer.0.iter_mut().flatten()) {
            let (_, _) = (pair.a.f_zero_()?, pair.b.f_zero_()?);
        }
        Ok(())
    }

    /// Every gradient with its factor's PEFT name, in the order of [`LoraAdapter::parameters`].
    #[must_use]
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        let mut all = Vec::new();
        for (layer, gradients) in self.layers.iter().enumerate() {
            for (projection, pair) in PROJECTIONS.iter().zip(&gradients.0) {
                let Some(pair) = pair else { continue };
                all.push((factor_name(layer, projection, 'A'), &pair.a));
                all.push((factor_name(layer, projection, 'B'), &pair.b));
            }
        }
        all
    }

    /// The length of all gradients as one vector.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn norm(&self) -> Result<f64, ModelError> {
        let mut squares = 0.0;
        for pair in self.layers.iter().flat_map(|layer| layer.0.iter().flatten()) {
            for gradient in [&pair.a, &pair.b] {
                squares += gradient.f_norm()?.f_double_value(&[])?.powi(2);
            }
        }
        Ok(squares.sqrt())
    }

    /// Scales all gradients down so that their norm is at most `max`; returns the norm before. With a norm that is not
    /// finite nothing is scaled: the caller must not step.
    ///
    /// Source: `torch.nn.utils.clip_grad_norm_`.
    ///
    /// # Errors
    /// [`ModelError::Torch`].
    pub fn clip(&mut self, max: f64) -> Result<f64, ModelError> {
        let norm = self.norm()?;
        let factor = max / (norm + 1e-6);
        if factor < 1.0 {
            for pair in self.layers.iter_mut().flat_map(|layer| layer.0.iter_mut().flatten()) {
                let (_, _) = (pair.a.f_mul_scalar_(factor)?, pair.b.f_mul_scalar_(factor)?);
            }
        }
        Ok(norm)
    }
}
