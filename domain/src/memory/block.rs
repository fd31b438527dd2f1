//! The numbers that a block of the decoder has in memory, per token and per weight.
//!
//! Symbols: `c` hidden width, `h` query heads, `q` and `k` the widths of all query heads and of all key heads, `f`
//! inner width.

use crate::{
    architecture::Architecture,
    memory::device::Device,
    spec::{Quantization, TrainSpec},
};

/// The widths of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) c: u64,
    pub(crate) f: u64,
    q: u64,
    k: u64,
    h: u64,
    qk_norm: bool,
}

/// One or more projections of the same input, computed as one: q, k and v; gate and up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    /// The outputs of all projections.
    outs: u64,
    ins: u64,
    /// The number of projections with factors.
    adapted: u64,
    /// The outputs of the largest of the projections.
    largest: u64,
}

impl Block {
    pub(crate) fn of(model: &Architecture) -> Self {
        let (h, n, d) = (model.num_attention_heads, model.num_key_value_heads, model.head_dim);
        let (c, f, qk_norm) = (model.hidden_size, model.intermediate_size, model.layers.qk_norm);
        Self { c, f, q: h * d, k: n * d, h, qk_norm }
    }

    /// Returns the numbers per token that the attention of a block keeps for its backward pass: the input, q, k and v
    /// (twice, if q and k are normalized), the output, and a sum per head in `f32`. No device keeps scores.
    fn kept_by_attention(&self, device: Device) -> u64 {
        let heads = self.q + 2 * self.k;
        self.c + heads + if self.qk_norm { heads } else { 0 } + self.q + device.singles(self.h)
    }

    /// Returns the numbers per token that a block keeps: those of the attention, the middle residual, gate and up.
    pub(crate) fn kept(&self, device: Device) -> u64 {
        self.kept_by_attention(device) + self.c + 2 * self.f
    }

    /// Returns the widths of the tensors that a block keeps, without the sums per head: with checkpointing only its
    /// input.
    pub(crate) fn kept_tensors(&self, checkpointing: bool) -> Vec<u64> {
        let Self { c, f, q, k, .. } = *self;
        if checkpointing {
            return vec![c];
        }
        let mut widths = vec![c, q, k, k, q, c, f, f];
        if self.qk_norm {
            widths.extend([q, k, k]);
        }
        widths
    }

    /// Returns the numbers per token while the backward pass is in the attention: what the attention keeps, the
    /// gradients of the residual, of the output, of q, k and v, and the buffers of the device.
    pub(crate) fn in_attention(&self, device: Device) -> u64 {
        self.kept_by_attention(device) + self.c + self.q + (self.q + 2 * self.k) + self.attention_buffers(device)
    }

    /// Returns the numbers per token of the attention's own buffers: on the CPU the gradients of k and v in both halves
    /// of the tiles; on CUDA the gradient of q and a sum per head in `f32` and, if query heads share key heads, the
    /// gradients of k and v for each query head.
    ///
    /// Source for CUDA: `dq_accum`, `softmax_d`, `dk_expanded` and `dv_expanded` of `mha_varlen_bwd` in FlashAttention
    /// 2's `flash_api.cpp`. In its deterministic mode `dq_accum` is several times as large; that is not included.
    fn attention_buffers(&self, device: Device) -> u64 {
        match device {
            Device::Cpu(_) => 4 * self.k,
            Device::Cuda => device.singles(self.q + self.h) + if self.k < self.q { 2 * self.q } else { 0 },
        }
    }

    /// Returns gate and up, as one.
    pub(crate) fn gate_up(&self, train: &TrainSpec) -> Linear {
        let adapted = adapted(train, &["gate_proj", "up_proj"]);
        Linear { outs: 2 * self.f, ins: self.c, adapted, largest: self.f }
    }

    /// Returns the projection after them.
    pub(crate) fn down(&self, train: &TrainSpec) -> Linear {
        Linear { outs: self.c, ins: self.f, adapted: adapted(train, &["down_proj"]), largest: self.c }
    }

    /// Returns the weights of the largest projection.
    pub(crate) fn largest_projection(&self) -> u64 {
        self.c * self.f.max(self.q)
    }

    /// Returns the floats of the largest weight that a step has in use: unpacked, or copied to add the factors.
    pub(crate) fn largest_in_use(&self, train: &TrainSpec) -> u64 {
        let qkv = adapted(train, &["q_proj", "k_proj", "v_proj"]);
        let qkv = Linear { outs: self.q + 2 * self.k, ins: self.c, adapted: qkv, largest: self.q };
        let o = Linear { outs: self.c, ins: self.q, adapted: adapted(train, &["o_proj"]), largest: self.c };
        let all = [qkv, o, self.gate_up(train), self.down(train)];
        all.iter().map(|linear| linear.in_use(train)).max().unwrap_or(0)
    }
}

/// Returns how many of these projections have factors.
fn adapted(train: &TrainSpec, names: &[&str]) -> u64 {
    names.iter().filter(|name| train.adapter.target_modules.iter().any(|target| target == **name)).count() as u64
}

impl Linear {
    /// Returns the floats of the weight in use: unpacked, or copied to add the factors. With dropout they are not
    /// added.
    fn in_use(&self, train: &TrainSpec) -> u64 {
        let is_copied = self.adapted > 0 && train.adapter.lora_dropout == 0.0;
        if train.quantization == Quantization::None && !is_copied { 0 } else { self.outs * self.ins }
    }

    /// Returns the numbers of the copy that the product with the weight makes of some of its rows.
    pub(crate) fn packed(&self, device: Device) -> u64 {
        self.outs.min(device.packed_rows()) * self.ins
    }

    /// Returns the numbers of a second weight, of the largest projection and in `f32`, while DoRA's row norms are
    /// computed.
    pub(crate) fn norms(&self, train: &TrainSpec, device: Device) -> u64 {
        if train.adapter.use_dora && self.adapted > 0 { device.singles(self.largest * self.ins) } else { 0 }
    }

    /// Returns the floats while the factors' gradients are computed from `tokens`: three thin products; with dropout
    /// the dropped-out input; with DoRA three of the size of the largest projection.
    pub(crate) fn gradients(&self, train: &TrainSpec, tokens: u64) -> u64 {
        let rank = u64::from(train.adapter.rank);
        if self.adapted == 0 {
            0
        } else if train.adapter.use_dora {
            3 * self.largest * self.ins
        } else if train.adapter.lora_dropout > 0.0 {
            tokens.saturating_mul(self.ins + 2 * rank)
        } else {
            tokens.saturating_mul(3 * self.adapted * rank) + self.adapted * rank * self.ins
        }
    }
}
