//! The training jobs that the memory model is graded on: sampled from all options, with a fixed seed.

use attune_domain::spec::{
    Auto, Requested,
    request::{AdapterFields, Hyperparameters, QuantizationFields, TrainerFields},
};
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

/// The families whose cases the model was adjusted to. The cases of the other families only grade it.
const FITTED: [&str; 2] = ["llama", "mistral"];
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
const LAYERS: [u64; 6] = [2, 4, 8, 12, 20, 30];
/// The hidden width, and the numbers of query and key heads.
const WIDTHS: [(u64, u64, u64); 7] =
    [(64, 4, 2), (128, 4, 4), (256, 8, 2), (512, 8, 4), (768, 12, 4), (1024, 16, 8), (2048, 32, 8)];
const LENGTHS: [u64; 6] = [64, 128, 256, 512, 1024, 2048];
/// The most FLOP of a case, about 30 s on two cores.
const MOST_FLOP: f64 = 3e12;
/// The most weights of a case's base.
const MOST_WEIGHTS: u64 = 220_000_000;
/// The steps of a case. The peak is reached in the first.
pub(crate) const STEPS: u64 = 2;

/// The shape of a base. Its weights are random.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) family: &'static str,
    pub(crate) layers: u64,
    pub(crate) hidden: u64,
    pub(crate) inner: u64,
    pub(crate) heads: u64,
    pub(crate) key_heads: u64,
    pub(crate) vocabulary: u64,
    pub(crate) tied: bool,
}

impl Shape {
    pub(crate) fn config(&self) -> Value {
        json!({
            "model_type": self.family, "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads, "vocab_size": self.vocabulary, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": self.tied, "hidden_act": "silu", "rope_theta": 10000.0,
            "eos_token_id": 1, "head_dim": self.hidden / self.heads,
        })
    }

    /// Returns the columns of the reports' tables, from the family to the tied embeddings.
    pub(crate) fn columns(&self) -> String {
        let Self { family, layers, hidden, inner, heads, key_heads, vocabulary, tied } = self;
        format!("{family},{layers},{hidden},{inner},{heads},{key_heads},{vocabulary},{tied}")
    }

    fn weights(&self) -> u64 {
        let block = 2 * self.hidden * self.hidden + 3 * self.hidden * self.inner;
        self.layers * block + (2 - u64::from(self.tied)) * self.vocabulary * self.hidden
    }
}

/// A training job over a shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) shape: Shape,
    /// The number of tokens of every row.
    pub(crate) length: u64,
    pub(crate) micro: i64,
    pub(crate) rank: i64,
    pub(crate) quantization: &'static str,
    pub(crate) optimizer: &'static str,
    pub(crate) dora: bool,
    pub(crate) dropout: f64,
    pub(crate) checkpointing: bool,
}

impl Case {
    /// Returns whether the memory model was not adjusted to this case.
    pub(crate) fn is_held_out(&self) -> bool {
        !FITTED.contains(&self.shape.family)
    }

    pub(crate) fn requested(&self) -> Requested {
        Requested {
            hyperparameters: Hyperparameters {
                n_epochs: Auto(Some(1)),
                batch_size: Auto(Some(self.micro)),
                ..Hyperparameters::default()
            },
            adapter: AdapterFields {
                rank: Some(self.rank),
                use_dora: Some(self.dora),
                lora_dropout: Some(self.dropout),
                ..AdapterFields::default()
            },
            quantization: QuantizationFields { r#type: Some(self.quantization.into()), double_quant: None },
            trainer: TrainerFields {
                max_length: Some(4096),
                micro_batch_size: Some(Auto(Some(self.micro))),
                gradient_checkpointing: Some(Auto(Some(self.checkpointing))),
                optimizer: Some(self.optimizer.into()),
                ..TrainerFields::default()
            },
            ..Requested::default()
        }
    }

    fn flop(&self) -> f64 {
        let tokens = self.micro as f64 * self.length as f64 * (STEPS + 1) as f64;
        6.0 * self.shape.weights() as f64 * tokens
    }
}

/// Samples `count` cases.
pub(crate) fn cases(count: usize) -> Vec<Case> {
    let mut random = Pcg64::seed_from_u64(26);
    let mut cases = Vec::new();
    while cases.len() < count {
        let case = sample(&mut random);
        if case.flop() <= MOST_FLOP && case.shape.weights() <= MOST_WEIGHTS {
            cases.push(case);
        }
    }
    cases
}

fn sample(random: &mut Pcg64) -> Case {
    let of = |random: &mut Pcg64, choices: &[u64]| *choices.choose(random).unwrap();
    let (hidden, heads, key_heads) = *WIDTHS.choose(random).unwrap();
    let dora = random.random_range(0..4) == 0;
    let shape = Shape {
        family: FAMILIES.choose(random).unwrap(),
        layers: of(random, &LAYERS),
        hidden,
        inner: hidden * of(random, &[2, 3, 4]),
        heads,
        key_heads,
        vocabulary: of(random, &[1024, 16384, 49152]),
        tied: random.random_bool(0.5),
    };
    Case {
        shape,
        length: of(random, &LENGTHS),
        micro: of(random, &[1, 2, 4, 8]) as i64,
        rank: of(random, &[4, 16, 64, 128]) as i64,
        quantization: ["nf4", "nf4", "int8", "none"].choose(random).unwrap(),
        optimizer: ["adamw", "adamw_8bit"].choose(random).unwrap(),
        dora,
        dropout: if !dora && random.random_range(0..4) == 0 { 0.1 } else { 0.0 },
        checkpointing: random.random_bool(0.5),
    }
}
