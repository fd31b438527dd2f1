//! Loss and gradients of an adapter, with a hand-written backward: libtorch's autograd would keep every unpacked weight
//! until the backward, which cancels the memory savings of NF4. The tests compare with plain autograd in
//! `reference.rs`.
//!
//! The head needs only the rows that predict a trained token, so the last block computes only those after its
//! attention.
//!
//! Memory: each block keeps what its backward needs (see `block.rs`). Under checkpointing it keeps only its input, and
//! the backward runs the block again, except for its last matmul. Sequences with a common prefix share its rows (see
//! `segments.rs`).
//!
//! Shapes: `t` rows of a batch, `m` predicted tokens, `c` hidden width.
//!
//! Source: checkpointing after Chen et al., arXiv:1604.06174.

use attune_domain::peft::Refusal;
use tch::Tensor;

use crate::{
    adapter::LoraAdapter,
    batch::{LossSum, PackedBatch},
    decoder::Decoder,
    error::ModelError,
    nn::{
        block::Saved,
        head::rows_of,
        linear::{Correction, Learning},
    },
    noise::{Dropout, Noise, neftune},
    optim::gradients::Gradients,
};

/// The options of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainOptions {
    /// Gradient checkpointing: keep only each block's input, and recompute the block in the backward.
    pub checkpointing: bool,
    /// The number of trained tokens in the whole effective batch. The gradient is that of the summed loss divided by
    /// it.
    pub normaliser: u64,
    /// Flag to compute the common prefix of sequences once. The result is exact, so it is only turned off to measure
    /// the gain.
    ///
    /// With dropout or embedding noise, each sequence has its own noise, and nothing is shared.
    pub share_prefixes: bool,
    /// The random source of dropout and NEFTune; `None`: neither.
    pub noise: Option<Noise>,
}

impl TrainOptions {
    /// Returns the default options: no checkpointing, shared prefixes, no noise.
    #[must_use]
    pub const fn new(normaliser: u64) -> Self {
        Self { checkpointing: false, normaliser, share_prefixes: true, noise: None }
    }

    /// Returns the dropout of this micro-batch.
    ///
    /// # Errors
    /// [`ModelError::AdapterConfig`]: DoRA's backward does not support dropout. Such an adapter can be served, but not
    /// trained.
    fn dropout(&self, adapter: &LoraAdapter) -> Result<Option<Dropout>, ModelError> {
        let share = adapter.spec().lora_dropout;
        let dropout = self.noise.filter(|_| share > 0.0).map(|noise| Dropout { share, seed: noise.seed });
        if dropout.is_some() && adapter.spec().use_dora {
            return Err(Refusal::new("lora_dropout", share, "0 with use_dora while training").into());
        }
        Ok(dropout)
    }

    fn embedding_noise(&self) -> Option<Noise> {
        self.noise.filter(|noise| noise.neftune_noise_alpha > 0.0)
    }
}

/// The part of a block's forward that is kept for its backward.
enum Kept {
    All(Box<Saved>),
    Input(Tensor),
}

/// Runs the forward and backward of a micro-batch, adds the gradients of `sum of weighted losses / normaliser` to
/// `gradients`, and returns the loss.
///
/// # Errors
/// [`ModelError::Input`]: no trained token, a normaliser of 0, an ID outside the vocabulary, an adapter or gradients of
/// another model. [`ModelError::AdapterConfig`]: DoRA with dropout. [`ModelError::Torch`]: usually out of memory;
/// `gradients` are then invalid.
pub fn loss_and_gradients(
    decoder: &Decoder,
    adapter: &LoraAdapter,
    batch: &PackedBatch,
    options: TrainOptions,
    gradients: &mut Gradients,
) -> Result<LossSum, ModelError> {
    if gradients.layers.len() != decoder.blocks.len() || options.normaliser == 0 {
        return Err(ModelError::Input("gradients of another model, or a normaliser of 0".into()));
    }
    let (dropout, embedding_noise) = (options.dropout(adapter)?, options.embedding_noise());
    let share_prefixes = options.share_prefixes && dropout.is_none() && embedding_noise.is_none();
    let (rows, targets) = batch.laid_out(share_prefixes);
    let layout = decoder.layout(&rows.segments)?;
    let correction = |layer| {
        let dropout = dropout.map(|dropout: Dropout| dropout.at(layer));
        Ok::<_, ModelError>(Correction { dropout, ..Correction::of(Some(adapter), layer)? })
    };
    decoder.reserve(targets.len(), correction(0)?)?;
    let mut x = decoder.embed(&rows.ids)?; // [t, c]
    if let Some(noise) = embedding_noise {
        let lengths: Vec<usize> =
            rows.segments.iter().flat_map(|segment| segment.rows.clone().map(|_| segment.rows.len())).collect();
        let _ = x.f_add_(&neftune(&x, noise, &lengths)?)?;
    }
    let predicting = rows_of(&targets, x.device())?; // [m]
    let inputs = if options.checkpointing { Some(input_buffer(&x, decoder.blocks.len())?) } else { None };
    let mut kept = Vec::with_capacity(decoder.blocks.len());
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let is_last = layer + 1 == decoder.blocks.len();
        let (y, saved) = block.forward(&x, is_last.then_some(&predicting), &layout, correction(layer)?)?; // [t, c]
        // The last block's backward follows immediately.
        kept.push(match &inputs {
            Some(inputs) if !is_last => {
                let mut input = inputs.f_select(0, layer as i64)?; // [t, c]
                input.f_copy_(&x)?;
                Kept::Input(input)
            }
            _ => Kept::All(Box::new(saved)),
        });
        x = y; // [m, c] after the last
    }
    let (loss, mut dy) = decoder.head.loss(&x, &targets, Some(options.normaliser))?; // [m, c]
    drop(x);
    for (layer, block) in decoder.blocks.iter().enumerate().rev() {
        let (Some(kept), Some(d_out)) = (kept.pop(), dy.take()) else { break };
        let correction = correction(layer)?;
        let saved = match kept {
            Kept::All(saved) => *saved,
            Kept::Input(x) => block.saved(&x, None, &layout, correction)?,
        };
        // The embedding is frozen, so the first block's input needs no gradient.
        let mut learning = Learning { correction, gradients: &mut gradients.layers[layer], want_dx: layer > 0 };
        dy = block.backward(d_out, saved, &layout, &mut learning)?; // [t, c]
    }
    Ok(loss)
}

/// Returns memory for the inputs of all blocks but the last, `[blocks - 1, t, c]`. As separate tensors they would leave
/// holes among those that a block frees, in which the tensors of the next block do not fit.
fn input_buffer(x: &Tensor, blocks: usize) -> Result<Tensor, ModelError> {
    let (rows, width) = x.size2()?;
    Ok(Tensor::f_empty([blocks.saturating_sub(1) as i64, rows, width], (x.f_kind()?, x.device()))?)
}

/// Computes the loss only, for held-out rows. `adapter`: `None` is the base model.
///
/// # Errors
/// As [`loss_and_gradients`].
pub fn loss(decoder: &Decoder, adapter: Option<&LoraAdapter>, batch: &PackedBatch) -> Result<LossSum, ModelError> {
    let (rows, targets) = batch.laid_out(true);
    let layout = decoder.layout(&rows.segments)?;
    let mut x = decoder.embed(&rows.ids)?; // [t, c]
    let predicting = rows_of(&targets, x.device())?; // [m]
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let wanted = (layer + 1 == decoder.blocks.len()).then_some(&predicting);
        x = block.forward(&x, wanted, &layout, Correction::of(adapter, layer)?)?.0; // [t, c], then [m, c]
    }
    Ok(decoder.head.loss(&x, &targets, None)?.0)
}
