//! The importance of the columns of the projections' weights: the mean square of the input that each column is
//! multiplied with, over many tokens. A quantization of the weights uses it to weight their errors.
//!
//! Shapes: `t` rows of a flat batch, `i` inputs of a projection.
//!
//! Source: llama.cpp's `tools/imatrix`.

use std::collections::BTreeMap;

use attune_domain::architecture::PROJECTIONS;
use tch::{Kind, Tensor};

use crate::{
    adapter::LoraAdapter, decoder::Decoder, error::ModelError, io::weights::projection_path, nn::linear::Correction,
    segments::Segments,
};

/// The ranges in [`PROJECTIONS`] of the projections with the same input: q, k and v; o; gate and up; down.
const GROUPS: [std::ops::Range<usize>; 4] = [0..3, 3..4, 4..6, 6..7];

/// The sums of the squares of the projections' inputs.
#[derive(Debug, Default)]
pub struct InputSquares {
    /// The sums `[i]` of each layer's groups, in 64 bits.
    sums: Vec<[Tensor; 4]>,
    tokens: usize,
}

impl InputSquares {
    /// Adds the inputs at every token of `sequences`, as the decoder computes them with the adapter.
    ///
    /// # Errors
    /// [`ModelError::Input`]: no token, an ID outside the vocabulary, an adapter of another base, or another decoder
    /// than before. [`ModelError::Torch`].
    pub fn add(
        &mut self,
        decoder: &Decoder,
        sequences: &[&[u32]],
        adapter: Option<&LoraAdapter>,
    ) -> Result<(), ModelError> {
        let rows = Segments::apart(sequences);
        let mut x = decoder.embed(&rows.ids)?; // [t, c]
        let layout = decoder.layout(&rows.segments)?;
        let mut sums = Vec::with_capacity(decoder.blocks.len());
        for (layer, block) in decoder.blocks.iter().enumerate() {
            let (out, inputs) = block.forward_with_inputs(&x, &layout, Correction::of(adapter, layer)?)?;
            sums.push([squares(&inputs[0])?, squares(&inputs[1])?, squares(&inputs[2])?, squares(&inputs[3])?]);
            x = out;
        }
        if self.sums.is_empty() {
            self.sums = sums;
        } else if self.sums.len() == sums.len() {
            for (all, one) in self.sums.iter_mut().flatten().zip(sums.iter().flatten()) {
                *all = all.f_add(one)?;
            }
        } else {
            return Err(ModelError::Input("the inputs of two models cannot be added".into()));
        }
        self.tokens += rows.ids.len();
        Ok(())
    }

    /// Returns the mean squares of each projection's inputs, by the name of its weight.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`]: an input is infinite or not a number. [`ModelError::Torch`].
    pub fn means(&self) -> Result<BTreeMap<String, Vec<f32>>, ModelError> {
        let mut means = BTreeMap::new();
        for (layer, groups) in self.sums.iter().enumerate() {
            for (sums, group) in groups.iter().zip(GROUPS) {
                let mean = sums.f_div_scalar(self.tokens.max(1) as f64)?.f_to_kind(Kind::Float)?; // [i]
                let mean = Vec::<f32>::try_from(&mean)?;
                for projection in &PROJECTIONS[group] {
                    let name = format!("{}.weight", projection_path(layer, projection));
                    if !mean.iter().all(|square| square.is_finite()) {
                        return Err(ModelError::NotFinite(name));
                    }
                    means.insert(name, mean.clone());
                }
            }
        }
        Ok(means)
    }
}

/// Returns the sums `[i]` of the squares of the columns of `[t, i]`, in 64 bits.
fn squares(input: &Tensor) -> Result<Tensor, ModelError> {
    Ok(input.f_square()?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use attune_domain::{placement::Placement, spec::Quantization};

    use super::*;

    fn tiny() -> Decoder {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny/llama");
        Decoder::load(&folder, Quantization::None, Placement::default()).unwrap()
    }

    #[test]
    fn the_first_layers_inputs_are_the_normed_embeddings() {
        let decoder = tiny();
        let ids = [1_u32, 5, 9, 5];
        let mut found = InputSquares::default();
        found.add(&decoder, &[&ids], None).unwrap();
        let means = found.means().unwrap();
        let x = decoder.embed(&ids).unwrap(); // [t, c]
        let lengths = x.square().mean_dim([1i64].as_slice(), true, Kind::Float) + decoder.architecture().rms_norm_eps;
        let norm = decoder.blocks[0].norms()[0].unwrap();
        let wanted = (x / lengths.sqrt() * norm).square().mean_dim([0i64].as_slice(), false, Kind::Float);
        let wanted = Vec::<f32>::try_from(wanted).unwrap();
        let of = |name: &str| &means[&format!("model.layers.0.{name}.weight")];
        assert!(
            of("self_attn.q_proj").iter().zip(&wanted).all(|(one, other)| (one - other).abs() < 1e-4 * other.max(1.0))
        );
        assert_eq!(of("self_attn.q_proj"), of("self_attn.v_proj"));
        assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
        let layers = decoder.blocks.len();
        assert_eq!(means.len(), 7 * layers);
        let inner = usize::try_from(decoder.architecture().intermediate_size).unwrap();
        assert_eq!(of("mlp.down_proj").len(), inner);
    }

    #[test]
    fn sequences_do_not_see_each_other_and_parts_add_up() {
        let decoder = tiny();
        let (one, other) = ([1_u32, 5, 9, 5], [7_u32, 2, 3]);
        let of = |parts: &[&[&[u32]]]| {
            let mut squares = InputSquares::default();
            parts.iter().for_each(|part| squares.add(&decoder, part, None).unwrap());
            squares.means().unwrap()
        };
        let (together, apart) = (of(&[&[&one, &other]]), of(&[&[&one], &[&other]]));
        for (name, wanted) in &apart {
            let found = &together[name];
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= 1e-4 * b.max(1e-3)), "{name}");
        }
        let last = "model.layers.1.mlp.down_proj.weight";
        assert_ne!(together[last], of(&[&[&one]])[last]);
        assert!(InputSquares::default().add(&decoder, &[], None).is_err());
    }
}
