//! The backward of a block. Shapes as in `block.rs`.

use tch::Tensor;

use super::{Block, Layout, Saved, picked, rows_of, spread};
use crate::{
    error::ModelError,
    nn::{
        attention::{Attention, Sequence},
        linear::Learning,
        mlp::swiglu_backward,
        rope::Angles,
    },
};

impl Block {
    /// Computes `dx: [t, c]` from `dy: [m, c]` (if requested), and adds the factors' gradients to those of `learning`.
    pub(crate) fn backward(
        &self,
        dy: Tensor,
        saved: Saved,
        layout: &Layout<'_>,
        learning: &mut Learning<'_>,
    ) -> Result<Option<Tensor>, ModelError> {
        let Saved { x, wanted, qkv, heads, attended, logsumexp, middle, gate_up } = saved;
        let (correction, wanted) = (learning.correction, wanted.as_ref());
        let d_inner = self.down.input_gradient(&dy, correction)?; // [m, f]
        let (inner, d_gate_up) = swiglu_backward(d_inner, gate_up)?; // [m, f], [m, 2f]
        self.down.accumulate_grad(&dy, &inner, learning)?;
        drop(inner);
        self.gate_up.accumulate_grad(&d_gate_up, &self.post_norm.forward(&middle)?, learning)?;
        let d_normed = self.gate_up.input_gradient(&d_gate_up, correction)?; // [m, c]
        drop(d_gate_up);
        let d_middle = self.post_norm.backward_around(d_normed, &middle, &dy)?; // [m, c]
        drop((dy, middle));
        self.o.accumulate_grad(&d_middle, &picked(&attended, wanted)?, learning)?;
        let d_attended = spread(self.o.input_gradient(&d_middle, correction)?, wanted, &x)?; // [t, h·d]
        let d_heads = self.attention_backward(&d_attended, (&heads, &attended, &logsumexp), layout)?; // [t, h+2n, d]
        drop((d_attended, heads, attended, logsumexp));
        let d_qkv = self.heads_backward(d_heads, qkv.as_ref(), &layout.angles)?; // [t, (h+2n)·d]
        self.qkv.accumulate_grad(&d_qkv, &self.input_norm.forward(&x)?, learning)?;
        if !learning.want_dx {
            return Ok(None);
        }
        let d_normed = self.qkv.input_gradient(&d_qkv, correction)?; // [t, c]
        Ok(Some(self.input_norm.backward_around(d_normed, &x, &spread(d_middle, wanted, &x)?)?))
    }

    /// Computes the gradient of the rotated `[t, h+2n, d]` from `d_attended: [t, h·d]`.
    fn attention_backward(
        &self,
        d_attended: &Tensor,
        (heads, attended, logsumexp): (&Tensor, &Tensor, &[Tensor]),
        layout: &Layout<'_>,
    ) -> Result<Tensor, ModelError> {
        if let ([logsumexp], Some(number)) = (logsumexp, layout.tiles) {
            let forward = (heads, attended, logsumexp);
            return self.attention.backward_batch(number, d_attended, forward, layout.segments);
        }
        let Attention { heads: h, key_heads: n, head_dim: d, .. } = self.attention;
        let d_attended = d_attended.f_view_([-1, h, d])?; // [t, h, d]
        let attended = attended.f_view_([-1, h, d])?;
        let shared = layout.is_shared();
        let out = if shared { heads.f_zeros_like()? } else { heads.f_empty_like()? }; // [t, h+2n, d]
        for ((segment, masks), logsumexp) in layout.segments.iter().zip(&layout.masks).zip(logsumexp) {
            let [query, key, value] = self.cut(heads, segment)?;
            let sequence = Sequence { query: &query, key: &key, value: &value, mask: masks.of(&self.attention) };
            let forward = (&rows_of(&attended, &segment.rows)?, logsumexp);
            let gradient = self.attention.backward(&rows_of(&d_attended, &segment.rows)?, &sequence, forward)?;
            rows_of(&out, &segment.rows)?.f_narrow(1, 0, h)?.f_copy_(&gradient.query)?;
            let mut start = 0;
            for rows in segment.chain() {
                let count = rows.len() as i64;
                for (at, gradient) in [(h, &gradient.key), (h + n, &gradient.value)] {
                    let mut place = rows_of(&out, rows)?.f_narrow(1, at, n)?; // [rows, n, d]
                    let part = gradient.f_narrow(0, start, count)?;
                    if shared {
                        let _ = place.f_add_(&part)?;
                    } else {
                        place.f_copy_(&part)?;
                    }
                }
                start += count;
            }
        }
        Ok(out)
    }

    /// Computes the gradient `[t, (h+2n)·d]` of the projections from that of the rotated `[t, h+2n, d]`, in the same
    /// memory.
    fn heads_backward(
        &self,
        mut gradient: Tensor,
        qkv: Option<&Tensor>,
        angles: &Angles,
    ) -> Result<Tensor, ModelError> {
        let Attention { heads: h, key_heads: n, head_dim: d, .. } = self.attention;
        angles.rotate_back(&mut gradient, h + n)?;
        if let (Some((q_norm, k_norm)), Some(qkv)) = (&self.head_norms, qkv) {
            let qkv = qkv.f_view_([-1, h + 2 * n, d])?;
            let d_query = q_norm.backward(&gradient.f_narrow(1, 0, h)?, &qkv.f_narrow(1, 0, h)?)?;
            let d_key = k_norm.backward(&gradient.f_narrow(1, h, n)?, &qkv.f_narrow(1, h, n)?)?;
            gradient.f_narrow(1, 0, h)?.f_copy_(&d_query)?;
            gradient.f_narrow(1, h, n)?.f_copy_(&d_key)?;
        }
        Ok(gradient.f_view_([-1, (h + 2 * n) * d])?)
    }
}
