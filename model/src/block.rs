//! One decoder block: attention and feed-forward, each behind a norm and beside a residual. Forward for training (with
//! what the backward needs), forward over caches, and the backward by hand.
//!
//! Shapes: `t` rows of a flat batch, `c` hidden width, `h` query heads, `n` key heads, `d` head width, `f` inner width.
//! q, k and v lie side by side in one tensor `[t, h+2n, d]`.
//!
//! Only what cannot be had again cheaply is saved: norms and SwiGLU are worked out anew on the way back.

use attune_domain::{
    architecture::{Architecture, PROJECTIONS},
    spec::Quantization,
};
use tch::{Kind, Tensor};

use crate::{
    adapter::LayerPairs,
    attention::{Attention, Sequence, SequenceGradient},
    error::ModelError,
    kv_cache::KvCache,
    linear::{Correction, FrozenLinear, Learning, RowGroup},
    mlp::{swiglu, swiglu_backward},
    rms_norm::RmsNorm,
    rope::Angles,
    weights::Weights,
};

/// The frozen weights of a block.
#[derive(Debug)]
pub(crate) struct Block {
    attention: Attention,
    input_norm: RmsNorm,
    qkv: FrozenLinear,
    /// On q and k, per head (Qwen3).
    head_norms: Option<(RmsNorm, RmsNorm)>,
    o: FrozenLinear,
    post_norm: RmsNorm,
    gate_up: FrozenLinear,
    down: FrozenLinear,
}

/// How the rows of a flat batch are cut into sequences.
pub(crate) struct Layout<'a> {
    pub(crate) lengths: &'a [i64],
    pub(crate) angles: Angles,
}

/// What the backward of a block needs of its forward.
pub(crate) struct Saved {
    x: Tensor,
    /// Before the norms and the rotation; only where q and k are normed.
    qkv: Option<Tensor>,
    /// q and k rotated, v: `[t, h+2n, d]`.
    heads: Tensor,
    /// `[t, h·d]`.
    attended: Tensor,
    /// One per sequence.
    logsumexp: Vec<Tensor>,
    /// After attention and residual: `[t, c]`.
    middle: Tensor,
    /// `[t, 2f]`.
    gate_up: Tensor,
    low: Lows,
}

/// `s·x·Aᵀ` of the four linears.
#[derive(Default)]
struct Lows {
    qkv: Option<Tensor>,
    o: Option<Tensor>,
    gate_up: Option<Tensor>,
    down: Option<Tensor>,
}

/// A sequence of a batch over its cache.
pub(crate) struct CachedRows<'a> {
    pub(crate) rows: i64,
    pub(crate) cache: &'a KvCache,
}

impl Block {
    /// Reads block `layer`; its projections are quantised as asked.
    pub(crate) fn read(
        weights: &Weights,
        architecture: &Architecture,
        layer: usize,
        quantization: Quantization,
    ) -> Result<Self, ModelError> {
        let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let epsilon = architecture.rms_norm_eps;
        let norm = |name: &str| -> Result<RmsNorm, ModelError> {
            let weight = weights.read(&format!("model.layers.{layer}.{name}.weight"))?;
            Ok(RmsNorm { weight, epsilon })
        };
        let linear = |names: &[&str], biased| FrozenLinear::read(weights, layer, names, biased, quantization);
        Ok(Self {
            attention: Attention {
                heads: int(architecture.num_attention_heads),
                key_heads: int(architecture.num_key_value_heads),
                head_dim: int(architecture.head_dim),
                window: architecture.sliding_window.map(int),
            },
            input_norm: norm("input_layernorm")?,
            qkv: linear(&["q_proj", "k_proj", "v_proj"], architecture.qkv_bias)?,
            head_norms: if architecture.qk_norm {
                Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?))
            } else {
                None
            },
            o: linear(&["o_proj"], architecture.o_bias)?,
            post_norm: norm("post_attention_layernorm")?,
            gate_up: linear(&["gate_proj", "up_proj"], false)?,
            down: linear(&["down_proj"], false)?,
        })
    }

    /// The same block, computed in another kind.
    pub(crate) fn to_kind(&self, kind: Kind) -> Result<Self, ModelError> {
        let norm = |norm: &RmsNorm| -> Result<RmsNorm, ModelError> {
            Ok(RmsNorm { weight: norm.weight.f_to_kind(kind)?, epsilon: norm.epsilon })
        };
        Ok(Self {
            attention: self.attention,
            input_norm: norm(&self.input_norm)?,
            qkv: self.qkv.to_kind(kind)?,
            head_norms: match &self.head_norms {
                Some((q, k)) => Some((norm(q)?, norm(k)?)),
                None => None,
            },
            o: self.o.to_kind(kind)?,
            post_norm: norm(&self.post_norm)?,
            gate_up: self.gate_up.to_kind(kind)?,
            down: self.down.to_kind(kind)?,
        })
    }

    /// The weight and bias of the projection at this place of [`PROJECTIONS`], for the reference.
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

    /// The weights of the norms before attention, before the feed-forward, on q and on k, for the reference.
    #[cfg(test)]
    pub(crate) fn norms(&self) -> [Option<&Tensor>; 4] {
        let heads = self.head_norms.as_ref();
        let (q, k) = (heads.map(|(q, _)| &q.weight), heads.map(|(_, k)| &k.weight));
        [Some(&self.input_norm.weight), Some(&self.post_norm.weight), q, k]
    }

    /// Norms and rotates q and k, and puts v beside them: `[t, (h+2n)·d] -> [t, h+2n, d]`.
    fn heads(&self, qkv: &Tensor, angles: &Angles) -> Result<Tensor, ModelError> {
        let Attention { heads, key_heads, head_dim, .. } = self.attention;
        let qkv = qkv.f_view_([-1, heads + 2 * key_heads, head_dim])?;
        let out = qkv.f_empty_like()?; // [t, h+2n, d]
        match &self.head_norms {
            None => {
                angles.rotate_into(&qkv.f_narrow(1, 0, heads + key_heads)?, &out.f_narrow(1, 0, heads + key_heads)?)?
            }
            Some((q_norm, k_norm)) => {
                let query = q_norm.forward(&qkv.f_narrow(1, 0, heads)?)?; // [t, h, d]
                angles.rotate_into(&query, &out.f_narrow(1, 0, heads)?)?;
                let key = k_norm.forward(&qkv.f_narrow(1, heads, key_heads)?)?; // [t, n, d]
                angles.rotate_into(&key, &out.f_narrow(1, heads, key_heads)?)?;
            }
        }
        let value = qkv.f_narrow(1, heads + key_heads, key_heads)?;
        out.f_narrow(1, heads + key_heads, key_heads)?.f_copy_(&value)?;
        Ok(out)
    }

    /// q, k and v of some rows: views `[s, h, d]`, `[s, n, d]`, `[s, n, d]` of `[t, h+2n, d]`.
    fn cut(&self, heads: &Tensor, start: i64, rows: i64) -> Result<[Tensor; 3], ModelError> {
        let Attention { heads: h, key_heads: n, .. } = self.attention;
        let rows = heads.f_narrow(0, start, rows)?;
        Ok([rows.f_narrow(1, 0, h)?, rows.f_narrow(1, h, n)?, rows.f_narrow(1, h + n, n)?])
    }

    /// `x: [t, c] -> [t, c]`, each sequence of `layout` by itself.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        layout: &Layout<'_>,
        correction: Correction<'_>,
    ) -> Result<(Tensor, Saved), ModelError> {
        let (qkv, low_qkv) = self.qkv.forward(&self.input_norm.forward(x)?, correction)?; // [t, (h+2n)·d]
        let heads = self.heads(&qkv, &layout.angles)?; // [t, h+2n, d]
        let qkv = self.head_norms.is_some().then_some(qkv);
        let mut parts = Vec::with_capacity(layout.lengths.len());
        let mut logsumexp = Vec::with_capacity(layout.lengths.len());
        let mut start = 0;
        for &length in layout.lengths {
            let [query, key, value] = self.cut(&heads, start, length)?;
            let (out, sum) = self.attention.forward(&Sequence { query: &query, key: &key, value: &value })?;
            parts.push(out);
            logsumexp.push(sum);
            start += length;
        }
        let attended = self.join(parts)?; // [t, h·d]
        let (mut middle, low_o) = self.o.forward(&attended, correction)?; // [t, c]
        let middle = middle.f_add_(x)?;
        let (gate_up, low_gate_up) = self.gate_up.forward(&self.post_norm.forward(&middle)?, correction)?; // [t, 2f]
        let (mut out, low_down) = self.down.forward(&swiglu(&gate_up)?, correction)?; // [t, c]
        let out = out.f_add_(&middle)?;
        let low = Lows { qkv: low_qkv, o: low_o, gate_up: low_gate_up, down: low_down };
        let x = x.shallow_clone();
        Ok((out, Saved { x, qkv, heads, attended, logsumexp, middle, gate_up, low }))
    }

    /// Sequences one below the other: `[s, h, d]` each, to `[t, h·d]`.
    fn join(&self, mut parts: Vec<Tensor>) -> Result<Tensor, ModelError> {
        let joined = if parts.len() == 1 { parts.remove(0) } else { Tensor::f_cat(&parts, 0)? };
        Ok(joined.f_reshape([-1, self.attention.heads * self.attention.head_dim])?)
    }

    /// From `dy: [t, c]` to `dx: [t, c]` (if wanted), adding the factors' gradients to those of `learning`.
    pub(crate) fn backward(
        &self,
        dy: &Tensor,
        saved: &Saved,
        layout: &Layout<'_>,
        learning: &mut Learning<'_>,
    ) -> Result<Option<Tensor>, ModelError> {
        let Saved { x, middle, gate_up, low, .. } = saved;
        let needed = || ModelError::Input("a gradient that was asked for was not made".into());
        let inner = swiglu(gate_up)?; // [t, f]
        let d_inner = self.down.backward(dy, (&inner, low.down.as_ref()), learning, true)?.ok_or_else(needed)?;
        drop(inner);
        let d_gate_up = swiglu_backward(&d_inner, gate_up)?; // [t, 2f]
        drop(d_inner);
        let normed = self.post_norm.forward(middle)?; // [t, c]
        let saved_gate_up = (&normed, low.gate_up.as_ref());
        let d_normed = self.gate_up.backward(&d_gate_up, saved_gate_up, learning, true)?.ok_or_else(needed)?;
        let d_middle = self.post_norm.backward(&d_normed, middle)?.f_add_(dy)?; // [t, c]
        let attended = (&saved.attended, low.o.as_ref());
        let d_attended = self.o.backward(&d_middle, attended, learning, true)?.ok_or_else(needed)?; // [t, h·d]
        let d_qkv = self.attention_backward(&d_attended, saved, layout)?; // [t, (h+2n)·d]
        let normed = self.input_norm.forward(x)?; // [t, c]
        let want_dx = learning.want_dx;
        let d_normed = self.qkv.backward(&d_qkv, (&normed, low.qkv.as_ref()), learning, want_dx)?;
        Ok(match d_normed {
            Some(d_normed) => Some(self.input_norm.backward(&d_normed, x)?.f_add_(&d_middle)?),
            None => None,
        })
    }

    /// From `d_attended: [t, h·d]` through attention, rotation and head norms to `[t, (h+2n)·d]`.
    fn attention_backward(
        &self,
        d_attended: &Tensor,
        saved: &Saved,
        layout: &Layout<'_>,
    ) -> Result<Tensor, ModelError> {
        let Attention { heads: h, key_heads: n, head_dim: d, .. } = self.attention;
        let d_attended = d_attended.f_view_([-1, h, d])?; // [t, h, d]
        let attended = saved.attended.f_view_([-1, h, d])?;
        let rotated = saved.heads.f_empty_like()?; // [t, h+2n, d]; its last n are not used
        let out = saved.heads.f_empty_like()?; // [t, h+2n, d]
        let mut start = 0;
        for (&length, logsumexp) in layout.lengths.iter().zip(&saved.logsumexp) {
            let [query, key, value] = self.cut(&saved.heads, start, length)?;
            let [mut d_query, mut d_key, _] = self.cut(&rotated, start, length)?;
            let [_, _, mut d_value] = self.cut(&out, start, length)?;
            self.attention.backward(
                &d_attended.f_narrow(0, start, length)?,
                &Sequence { query: &query, key: &key, value: &value },
                (&attended.f_narrow(0, start, length)?, logsumexp),
                SequenceGradient { query: &mut d_query, key: &mut d_key, value: &mut d_value },
            )?;
            start += length;
        }
        let turned = out.f_narrow(1, 0, h + n)?;
        layout.angles.rotate_back_into(&rotated.f_narrow(1, 0, h + n)?, &turned)?;
        if let (Some((q_norm, k_norm)), Some(qkv)) = (&self.head_norms, &saved.qkv) {
            let qkv = qkv.f_view_([-1, h + 2 * n, d])?;
            let d_query = q_norm.backward(&out.f_narrow(1, 0, h)?, &qkv.f_narrow(1, 0, h)?)?;
            let d_key = k_norm.backward(&out.f_narrow(1, h, n)?, &qkv.f_narrow(1, h, n)?)?;
            out.f_narrow(1, 0, h)?.f_copy_(&d_query)?;
            out.f_narrow(1, h, n)?.f_copy_(&d_key)?;
        }
        Ok(out.f_view_([-1, (h + 2 * n) * d])?)
    }

    /// `x: [t, c] -> [t, c]` over the caches of its sequences, to which the new keys and values of `layer` are written.
    pub(crate) fn forward_cached(
        &self,
        x: &Tensor,
        (layer, sequences): (usize, &[CachedRows<'_>]),
        angles: &Angles,
        groups: &[RowGroup<'_>],
    ) -> Result<Tensor, ModelError> {
        let qkv = self.qkv.forward_rows(&self.input_norm.forward(x)?, groups)?; // [t, (h+2n)·d]
        let heads = self.heads(&qkv, angles)?; // [t, h+2n, d]
        let mut parts = Vec::with_capacity(sequences.len());
        let mut start = 0;
        for sequence in sequences {
            let [query, key, value] = self.cut(&heads, start, sequence.rows)?;
            let (key, value) = sequence.cache.write(layer, &key, &value)?; // [k, n, d]
            parts.push(self.attention.forward(&Sequence { query: &query, key: &key, value: &value })?.0);
            start += sequence.rows;
        }
        let middle = self.o.forward_rows(&self.join(parts)?, groups)?.f_add_(x)?; // [t, c]
        let inner = swiglu(&self.gate_up.forward_rows(&self.post_norm.forward(&middle)?, groups)?)?; // [t, f]
        Ok(self.down.forward_rows(&inner, groups)?.f_add_(&middle)?)
    }
}

/// No factor at all: the base model.
pub(crate) fn no_correction() -> Correction<'static> {
    const NO_PAIRS: &LayerPairs = &[const { None }; PROJECTIONS.len()];
    Correction { pairs: NO_PAIRS, scale: 0.0 }
}
