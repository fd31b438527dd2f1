//! Loss and gradients of an adapter, by hand: libtorch's autograd would keep every unpacked weight until the backward, and
//! that undoes what NF4 saves. The test twin in `reference.rs` is plain autograd.
//!
//! Memory: each block keeps what its backward needs (see `block.rs`), or only its input under checkpointing and then runs
//! twice. Logits exist for [`LOSS_ROWS`] trained positions at a time.
//!
//! Shapes: `t` rows of a flat batch, `m` trained rows, `c` hidden width, `v` vocabulary.
//!
//! Sources: the loss is the cross-entropy of the next token over trained positions, as transformers' `ForCausalLMLoss`
//! has it with `num_items_in_batch`; checkpointing after Chen et al., arXiv:1604.06174.

use tch::{Kind, Tensor};

use crate::{
    adapter::LoraAdapter,
    batch::{LossSum, PackedBatch},
    block::{Saved, no_correction},
    decoder::{Decoder, checked_lengths},
    error::ModelError,
    gradients::Gradients,
    linear::{Correction, Learning},
};

/// Trained positions whose logits exist at the same time.
pub const LOSS_ROWS: i64 = 256;

/// How to run a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainOptions {
    /// Keep only each block's input and run the block again on the way back.
    pub checkpointing: bool,
    /// Trained tokens of the whole effective batch; the gradient is that of the summed loss divided by it.
    pub normaliser: u64,
}

/// What is left of a block's forward until its backward.
enum Kept {
    All(Box<Saved>),
    Input(Tensor),
}

/// Runs a micro-batch forward and back, adds the gradients of `sum of losses / normaliser` to `gradients`, and returns the
/// loss.
///
/// # Errors
/// [`ModelError::Input`]: no trained token, a normaliser of 0, an id outside the vocabulary, an adapter or gradients of
/// another model. [`ModelError::Torch`]: above all, no memory; `gradients` are then spoilt.
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
    let lengths = checked_lengths(batch.ids.len(), &batch.lengths)?;
    let layout = decoder.layout(&lengths)?;
    let mut x = decoder.embed(&batch.ids)?; // [t, c]
    let mut kept = Vec::with_capacity(decoder.blocks.len());
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let (y, saved) = block.forward(&x, &layout, correction(Some(adapter), layer)?)?; // [t, c]
        kept.push(if options.checkpointing { Kept::Input(x) } else { Kept::All(Box::new(saved)) });
        x = y;
    }
    let (loss, dx) = head_loss(decoder, &x, batch, Some(options.normaliser))?; // [t, c]
    drop(x);
    let mut dy = dx;
    for (layer, block) in decoder.blocks.iter().enumerate().rev() {
        let (Some(kept), Some(d_out)) = (kept.pop(), dy.take()) else { break };
        let correction = correction(Some(adapter), layer)?;
        let saved = match kept {
            Kept::All(saved) => saved,
            Kept::Input(x) => Box::new(block.forward(&x, &layout, correction)?.1),
        };
        // The embedding is frozen, so the first block's input needs no gradient.
        let mut learning = Learning { correction, gradients: &mut gradients.layers[layer], want_dx: layer > 0 };
        dy = block.backward(&d_out, &saved, &layout, &mut learning)?; // [t, c]
    }
    Ok(loss)
}

/// The loss alone, for held-out rows; `None` for the adapter: the base model's.
///
/// # Errors
/// As [`loss_and_gradients`].
pub fn loss(decoder: &Decoder, adapter: Option<&LoraAdapter>, batch: &PackedBatch) -> Result<LossSum, ModelError> {
    let lengths = checked_lengths(batch.ids.len(), &batch.lengths)?;
    let layout = decoder.layout(&lengths)?;
    let mut x = decoder.embed(&batch.ids)?; // [t, c]
    for (layer, block) in decoder.blocks.iter().enumerate() {
        x = block.forward(&x, &layout, correction(adapter, layer)?)?.0; // [t, c]
    }
    Ok(head_loss(decoder, &x, batch, None)?.0)
}

pub(crate) fn correction(adapter: Option<&LoraAdapter>, layer: usize) -> Result<Correction<'_>, ModelError> {
    Ok(match adapter {
        Some(adapter) => Correction { pairs: adapter.layer(layer)?, scale: adapter.scale() },
        None => no_correction(),
    })
}

/// The last norm, the head and the loss on the trained rows of `x: [t, c]`; with a normaliser the gradient `[t, c]` too.
fn head_loss(
    decoder: &Decoder,
    x: &Tensor,
    batch: &PackedBatch,
    normaliser: Option<u64>,
) -> Result<(LossSum, Option<Tensor>), ModelError> {
    let (rows, targets) = batch.targets();
    if rows.is_empty() {
        return Err(ModelError::Input("a batch without a trained token".into()));
    }
    let tokens = rows.len() as u64;
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(x.device())?; // [m]
    let targets = Tensor::f_from_slice(&targets)?.f_to_device(x.device())?; // [m]
    let picked = x.f_index_select(0, &rows)?; // [m, c]
    let normed = decoder.norm.forward(&picked)?; // [m, c]
    let d_normed = normed.f_empty_like()?; // [m, c]
    let mut all = LossSum { tokens, ..LossSum::default() };
    // One buffer for all chunks: memory of this size would go back to the system, and be cleared again, each time.
    let most = LOSS_ROWS.min(normed.size2()?.0);
    let buffer = Tensor::f_empty([most, decoder.lm_head.size2()?.0], (x.f_kind()?, x.device()))?; // [most, v]
    let mut start = 0;
    while start < normed.size2()?.0 {
        let count = LOSS_ROWS.min(normed.size2()?.0 - start);
        let hidden = normed.f_narrow(0, start, count)?;
        let out = normaliser.map(|by| Ok::<_, ModelError>((d_normed.f_narrow(0, start, count)?, by))).transpose()?;
        let logits = hidden.f_mm_out(&buffer.f_narrow(0, 0, count)?, &decoder.lm_head.f_tr()?)?; // [count, v]
        let (sum, correct) = chunk_loss(&decoder.lm_head, logits, &targets.f_narrow(0, start, count)?, out)?;
        all.sum += sum;
        all.correct += correct;
        start += count;
    }
    let dx = match normaliser {
        None => None,
        Some(_) => {
            let d_picked = decoder.norm.backward(&d_normed, &picked)?; // [m, c]
            Some(x.f_zeros_like()?.f_index_copy_(0, &rows, &d_picked)?) // [t, c]
        }
    };
    Ok((all, dx))
}

/// Sum of the cross-entropies of `logits: [m, v]` against `targets: [m]`, and how many targets were the most likely (a tie
/// counts); if asked, the gradient of the head's input too, divided, into a view `[m, c]`. The logits turn into their own
/// gradient in place: `(softmax - one-hot) / normaliser`.
fn chunk_loss(
    lm_head: &Tensor,
    mut logits: Tensor,
    targets: &Tensor,
    out: Option<(Tensor, u64)>,
) -> Result<(f64, u64), ModelError> {
    let targets = targets.f_unsqueeze(1)?; // [m, 1]
    let largest = logits.f_amax([1i64].as_slice(), true)?; // [m, 1]
    let wanted = logits.f_gather(1, &targets, false)?.f_sub_(&largest)?; // [m, 1]
    let correct = wanted.f_eq(0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let mut powers = logits.f_sub_(&largest)?.f_exp_()?; // [m, v]
    let mut divisor = powers.f_sum_dim_intlist([1i64].as_slice(), true, None)?; // [m, 1]
    let loss = divisor.f_log()?.f_sub_(&wanted)?.f_sum(Kind::Double)?.f_double_value(&[])?;
    if let Some((out, normaliser)) = out {
        let normaliser = normaliser as f64;
        let _ = powers.f_mul_(&divisor.f_mul_scalar_(normaliser)?.f_reciprocal_()?)?;
        let one = divisor.f_full_like(-1.0 / normaliser)?; // [m, 1]
        let _ = powers.f_scatter_add_(1, &targets, &one)?;
        let _ = powers.f_mm_out(&out, lm_head)?; // [m, c]
    }
    Ok((loss, u64::try_from(correct).unwrap_or(0)))
}
