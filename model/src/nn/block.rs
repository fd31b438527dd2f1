//! One decoder block: attention and feed-forward, each with a pre-norm and a residual connection. Forward for training
//! (saving what the backward needs), forward over KV caches (`cached.rs`), and a hand-written backward (`backward.rs`).
//!
//! Shapes: `t` rows of a flat batch, `c` hidden width, `h` query heads, `n` key heads, `d` head width, `f` inner width.
//! q, k and v are concatenated in one tensor `[t, h+2n, d]`.
//!
//! Only tensors that are expensive to recompute are saved: the backward recomputes norms, SwiGLU and the low-rank
//! products.

use std::ops::Range;

use attune_domain::architecture::{Architecture, PROJECTIONS};
use tch::{Device, Kind, Tensor};

use crate::{
    error::ModelError,
    kernels::pick::Number,
    nn::{
        attention::{Attention, Masks, Sequence},
        linear::{Correction, FrozenLinear},
        mlp::swiglu,
        rms_norm::RmsNorm,
        rope::Angles,
    },
    quant::packed::Source,
    segments::Segment,
};

mod backward;
pub(crate) mod cached; // over KV caches

/// The frozen weights of a block.
#[derive(Debug)]
pub(crate) struct Block {
    attention: Attention,
    input_norm: RmsNorm,
    qkv: FrozenLinear,
    /// The norms of q and of k, per head (Qwen3).
    head_norms: Option<(RmsNorm, RmsNorm)>,
    o: FrozenLinear,
    post_norm: RmsNorm,
    gate_up: FrozenLinear,
    down: FrozenLinear,
}

/// The segments of a flat batch's rows, with their masks and rotary angles.
pub(crate) struct Layout<'a> {
    pub(crate) segments: &'a [Segment],
    /// The number type of tiled attention, which needs no mask; `None`: one sequence after the other.
    pub(crate) tiles: Option<Number>,
    /// The masks of each segment; empty for tiled attention.
    pub(crate) masks: Vec<Masks>,
    pub(crate) angles: Angles,
}

impl Layout<'_> {
    /// Returns whether any segment attends to the rows of an earlier one.
    fn is_shared(&self) -> bool {
        self.segments.iter().any(|segment| !segment.past.is_empty())
    }
}

/// The forward's tensors that the backward of a block needs.
pub(crate) struct Saved {
    x: Tensor,
    /// The indices of the `m` requested rows; everything after attention is computed for them only. `None`: all `t`.
    wanted: Option<Tensor>,
    /// The projections before norms and rotation; only where q and k have norms.
    qkv: Option<Tensor>,
    /// Rotated q and k, and v: `[t, h+2n, d]`.
    heads: Tensor,
    /// The output of attention, `[t, h·d]`.
    attended: Tensor,
    /// The logsumexp of each segment, or one tensor for tiled attention.
    logsumexp: Vec<Tensor>,
    /// The hidden state after attention and its residual: `[m, c]`.
    middle: Tensor,
    /// The output of gate and up, `[m, 2f]`.
    gate_up: Tensor,
}

impl Block {
    /// Reads the weights of block `layer`.
    pub(crate) fn read(source: &mut Source<'_>, architecture: &Architecture, layer: usize) -> Result<Self, ModelError> {
        let weights = source.weights;
        let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let layers = &architecture.layers;
        let epsilon = architecture.rms_norm_eps;
        let norm = |name: &str| -> Result<RmsNorm, ModelError> {
            let weight = weights.read(&format!("model.layers.{layer}.{name}.weight"))?;
            Ok(RmsNorm { weight, epsilon })
        };
        let mut linear = |names: &[&str], biased| FrozenLinear::read(source, layer, names, biased);
        Ok(Self {
            attention: Attention {
                heads: int(architecture.num_attention_heads),
                key_heads: int(architecture.num_key_value_heads),
                head_dim: int(architecture.head_dim),
                window: layers.window(layer as u64).map(int),
            },
            input_norm: norm("input_layernorm")?,
            qkv: linear(&["q_proj", "k_proj", "v_proj"], layers.qkv_bias)?,
            head_norms: if layers.qk_norm {
                Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?))
            } else {
                None
            },
            o: linear(&["o_proj"], layers.o_bias)?,
            post_norm: norm("post_attention_layernorm")?,
            gate_up: linear(&["gate_proj", "up_proj"], layers.mlp_bias)?,
            down: linear(&["down_proj"], layers.mlp_bias)?,
        })
    }

    /// Returns the block in another kind, on another device.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let norm = |norm: &RmsNorm| norm.to(kind, device);
        Ok(Self {
            attention: self.attention,
            input_norm: norm(&self.input_norm)?,
            qkv: self.qkv.to(kind, device)?,
            head_norms: match &self.head_norms {
                Some((q, k)) => Some((norm(q)?, norm(k)?)),
                None => None,
            },
            o: self.o.to(kind, device)?,
            post_norm: norm(&self.post_norm)?,
            gate_up: self.gate_up.to(kind, device)?,
            down: self.down.to(kind, device)?,
        })
    }

    /// Keeps the weights unpacked from now on; the numbers do not change.
    pub(crate) fn unpack(&mut self) -> Result<(), ModelError> {
        for linear in [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down] {
            linear.unpack()?;
        }
        Ok(())
    }

    /// Returns whether a weight is kept as codes.
    pub(crate) fn has_codes(&self) -> bool {
        [&self.qkv, &self.o, &self.gate_up, &self.down].into_iter().any(FrozenLinear::has_codes)
    }

    /// Computes from the codes of quantized weights from now on: see [`FrozenLinear::tile`].
    pub(crate) fn tile(&mut self) -> Result<(), ModelError> {
        for linear in [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down] {
            linear.tile()?;
        }
        Ok(())
    }

    /// Returns the size of the projections in memory, in bytes.
    pub(crate) fn bytes(&self) -> Result<usize, ModelError> {
        [&self.qkv, &self.o, &self.gate_up, &self.down].into_iter().map(FrozenLinear::bytes).sum()
    }

    /// Returns the row norms `[out]` of the weight of a projection, given by its index in [`PROJECTIONS`].
    pub(crate) fn row_norms(&self, projection: usize) -> Result<Tensor, ModelError> {
        for linear in [&self.qkv, &self.o, &self.gate_up, &self.down] {
            if let Some(lengths) = linear.row_norms(projection)? {
                return Ok(lengths);
            }
        }
        Err(ModelError::Input(format!("projection {projection} does not exist; there are {}", PROJECTIONS.len())))
    }

    /// Returns the weight and bias of the projection with this index in [`PROJECTIONS`], for the reference.
    #[cfg(test)]
    pub(crate) fn projection(&self, at: usize) -> (Tensor, Option<Tensor>) {
        let linear = match at {
            0..3 => &self.qkv,
            3 => &self.o,
            4 | 5 => &self.gate_up,
            _ => &self.down,
        };
        linear.part(at)
    }

    /// Returns the weights of the norms before attention, before the feed-forward, on q and on k, for the reference.
    #[cfg(test)]
    pub(crate) fn norms(&self) -> [Option<&Tensor>; 4] {
        let heads = self.head_norms.as_ref();
        let (q, k) = (heads.map(|(q, _)| &q.weight), heads.map(|(_, k)| &k.weight));
        [Some(&self.input_norm.weight), Some(&self.post_norm.weight), q, k]
    }

    /// Reserves memory for the largest weight that a step with this correction uses.
    pub(crate) fn reserve(&self, correction: Correction<'_>) -> Result<(), ModelError> {
        for linear in [&self.gate_up, &self.qkv, &self.o, &self.down] {
            linear.reserve(correction)?;
        }
        Ok(())
    }

    /// Returns the attention dimensions; blocks differ only in the window.
    pub(crate) fn attention(&self) -> Attention {
        self.attention
    }

    /// Applies the head norms and the rotation to q and k: `[t, (h+2n)·d] -> [t, h+2n, d]`. Without head norms it works
    /// in place.
    fn heads(&self, qkv: &Tensor, angles: &Angles) -> Result<Tensor, ModelError> {
        let Attention { heads: h, key_heads: n, head_dim: d, .. } = self.attention;
        let qkv = qkv.f_view_([-1, h + 2 * n, d])?;
        let mut heads = match &self.head_norms {
            None => qkv,
            Some((q_norm, k_norm)) => {
                let query = q_norm.forward(&qkv.f_narrow(1, 0, h)?)?; // [t, h, d]
                let key = k_norm.forward(&qkv.f_narrow(1, h, n)?)?; // [t, n, d]
                Tensor::f_cat(&[query, key, qkv.f_narrow(1, h + n, n)?], 1)?
            }
        };
        angles.rotate(&mut heads, h + n)?;
        Ok(heads)
    }

    /// Returns q of a segment, and k and v of the segment and its past: `[s, h, d]`, `[k, n, d]`, `[k, n, d]`.
    fn cut(&self, heads: &Tensor, segment: &Segment) -> Result<[Tensor; 3], ModelError> {
        let Attention { heads: h, key_heads: n, .. } = self.attention;
        let pairs = heads.f_narrow(1, h, 2 * n)?; // [t, 2n, d]
        let query = rows_of(heads, &segment.rows)?.f_narrow(1, 0, h)?;
        let pairs = if segment.past.is_empty() {
            rows_of(&pairs, &segment.rows)?
        } else {
            let parts = segment.chain().map(|rows| rows_of(&pairs, rows)).collect::<Result<Vec<_>, _>>()?;
            Tensor::f_cat(&parts, 0)? // [k, 2n, d]
        };
        Ok([query, pairs.f_narrow(1, 0, n)?, pairs.f_narrow(1, n, n)?])
    }

    /// Computes the `wanted` rows `[m, c]` of the output from `x: [t, c]`, where each segment attends to its past.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        wanted: Option<&Tensor>,
        layout: &Layout<'_>,
        correction: Correction<'_>,
    ) -> Result<(Tensor, Saved), ModelError> {
        let saved = self.saved(x, wanted, layout, correction)?;
        let mut out = self.down.forward(&swiglu(&saved.gate_up)?, correction)?; // [m, c]
        Ok((out.f_add_(&saved.middle)?, saved))
    }

    /// Computes the output `[t, c]`, and the inputs of q, k and v, of o, of gate and up, and of down.
    pub(crate) fn forward_with_inputs(
        &self,
        x: &Tensor,
        layout: &Layout<'_>,
        correction: Correction<'_>,
    ) -> Result<(Tensor, [Tensor; 4]), ModelError> {
        let saved = self.saved(x, None, layout, correction)?;
        let inner = swiglu(&saved.gate_up)?; // [t, f]
        let mut out = self.down.forward(&inner, correction)?; // [t, c]
        let inputs = [self.input_norm.forward(x)?, saved.attended, self.post_norm.forward(&saved.middle)?, inner];
        Ok((out.f_add_(&saved.middle)?, inputs))
    }

    /// Runs the forward up to the tensors that the backward needs.
    pub(crate) fn saved(
        &self,
        x: &Tensor,
        wanted: Option<&Tensor>,
        layout: &Layout<'_>,
        correction: Correction<'_>,
    ) -> Result<Saved, ModelError> {
        let qkv = self.qkv.forward(&self.input_norm.forward(x)?, correction)?; // [t, (h+2n)·d]
        let heads = self.heads(&qkv, &layout.angles)?; // [t, h+2n, d]
        let qkv = self.head_norms.is_some().then_some(qkv);
        let (attended, logsumexp) = self.attend(&heads, layout)?; // [t, h·d]
        let mut middle = self.o.forward(&picked(&attended, wanted)?, correction)?; // [m, c]
        let normed = self.post_norm.add_forward(&mut middle, &picked(x, wanted)?)?; // [m, c]
        let gate_up = self.gate_up.forward(&normed, correction)?; // [m, 2f]
        let (x, wanted) = (x.shallow_clone(), wanted.map(Tensor::shallow_clone));
        Ok(Saved { x, wanted, qkv, heads, attended, logsumexp, middle, gate_up })
    }

    /// Computes attention from the rotated `heads: [t, h+2n, d]` to `[t, h·d]`, with the logsumexp that the backward
    /// needs.
    fn attend(&self, heads: &Tensor, layout: &Layout<'_>) -> Result<(Tensor, Vec<Tensor>), ModelError> {
        if let Some(number) = layout.tiles {
            let (attended, logsumexp) = self.attention.forward_batch(number, heads, layout.segments)?;
            return Ok((attended, vec![logsumexp]));
        }
        let mut parts = Vec::with_capacity(layout.segments.len());
        let mut logsumexp = Vec::with_capacity(layout.segments.len());
        for (segment, masks) in layout.segments.iter().zip(&layout.masks) {
            let [query, key, value] = self.cut(heads, segment)?;
            let sequence = Sequence { query: &query, key: &key, value: &value, mask: masks.of(&self.attention) };
            let (out, sum) = self.attention.forward(&sequence)?;
            parts.push(out);
            logsumexp.push(sum);
        }
        Ok((self.join(parts)?, logsumexp))
    }

    /// Concatenates the rows of sequences, `[s, h, d]` each, to `[t, h·d]`.
    fn join(&self, mut parts: Vec<Tensor>) -> Result<Tensor, ModelError> {
        let joined = if parts.len() == 1 { parts.remove(0) } else { Tensor::f_cat(&parts, 0)? };
        Ok(joined.f_reshape([-1, self.attention.heads * self.attention.head_dim])?)
    }
}

/// Returns a view of some rows of a tensor.
fn rows_of(tensor: &Tensor, rows: &Range<usize>) -> Result<Tensor, ModelError> {
    Ok(tensor.f_narrow(0, rows.start as i64, rows.len() as i64)?)
}

/// Selects the wanted rows of a tensor: `[t, …]` to `[m, …]`.
fn picked(tensor: &Tensor, wanted: Option<&Tensor>) -> Result<Tensor, ModelError> {
    Ok(match wanted {
        Some(rows) => tensor.f_index_select(0, rows)?,
        None => tensor.shallow_clone(),
    })
}

/// Scatters gradients back, the inverse of [`picked`]: `[m, …]` to `[t, …]`, zeros elsewhere, with as many rows as
/// `like`. Gradients of a row that occurs twice are summed.
fn spread(tensor: Tensor, wanted: Option<&Tensor>, like: &Tensor) -> Result<Tensor, ModelError> {
    let Some(rows) = wanted else { return Ok(tensor) };
    let mut all = Tensor::f_zeros([like.size2()?.0, tensor.size2()?.1], (tensor.f_kind()?, tensor.device()))?;
    Ok(all.f_index_add_(0, rows, &tensor)?)
}
