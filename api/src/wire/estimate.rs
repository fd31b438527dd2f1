//! An estimate: what a job would take, before it is made.

use std::collections::BTreeMap;

use attune_domain::{
    memory::MemoryEstimate,
    offer::{Offer, Refusal},
    pace::{Band, Pace, Source},
    run::Plan,
};
use attune_store::jobs::job::FileFacts;
use serde::Serialize;
use utoipa::ToSchema;

use super::job_view::{AdapterSpecView, HyperparametersView, MethodView, QuantizationView, TrainerView};

/// What a job would take. Nothing was made.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EstimateView {
    /// Always `fine_tuning.estimate`.
    pub object: &'static str,
    /// The base model's name.
    pub model: String,
    /// How it would train.
    pub method: MethodView,
    /// The numbers that would be in force.
    pub hyperparameters: HyperparametersView,
    /// The adapter's shape.
    pub adapter: AdapterSpecView,
    /// How the base would be held.
    pub quantization: QuantizationView,
    /// How it would learn.
    pub trainer: TrainerView,
    /// Seeds the adapter's first weights and the order of rows.
    pub seed: u64,
    /// One pass over the training file, after the job's policy for long rows has done its work.
    pub training: FactsView,
    /// One pass over the validation file.
    pub validation: Option<FactsView>,
    /// What the policy would do to rows, in words.
    pub notes: Vec<String>,
    /// Optimiser steps of the whole job.
    pub total_steps: u64,
    /// Tokens over all steps.
    pub tokens: u64,
    /// Tokens with a loss over all steps: the job's `trained_tokens`.
    pub trained_tokens: u64,
    /// `false`: the last epoch is not whole (`trainer.max_steps`), so the two sums before are its share of the mean; or
    /// early stopping may end it before.
    pub is_exact: bool,
    /// The peak of memory; of the smallest way to train, if no machine has that.
    pub memory: MemoryView,
    /// How the batch would be cut; `null`: no machine is large enough.
    pub plan: Option<PlanView>,
    /// The offer that it would get; `null`: no machine is large enough.
    pub offer: Option<OfferView>,
    /// Why it would not get each of the others, or why it would have to wait.
    pub refusals: Vec<RefusalView>,
    /// It would have to wait at the moment.
    pub waits: bool,
    /// How fast it would be.
    pub pace: Option<PaceView>,
    /// From the launch to the end.
    pub duration_seconds: Option<BandView>,
    /// What that would cost, by the configured prices.
    pub price_usd: Option<BandView>,
}

/// One pass over a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct FactsView {
    /// Rows that are trained on.
    pub rows: u64,
    /// All their tokens.
    pub tokens: u64,
    /// Tokens with a loss.
    pub trained_tokens: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
}

impl From<FileFacts> for FactsView {
    fn from(facts: FileFacts) -> Self {
        let FileFacts { rows, tokens, trained_tokens, longest_row } = facts;
        Self { rows, tokens, trained_tokens, longest_row }
    }
}

/// A peak of memory, by its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MemoryView {
    /// The sum.
    pub peak_bytes: u64,
    /// What each part takes: `base`, `activations`, `optimizer` and so on.
    pub parts: BTreeMap<String, u64>,
}

impl From<&MemoryEstimate> for MemoryView {
    fn from(estimate: &MemoryEstimate) -> Self {
        let parts = estimate.terms.iter().map(|(name, bytes)| (name.clone(), bytes.0)).collect();
        Self { peak_bytes: estimate.peak.0, parts }
    }
}

/// How the batch would be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlanView {
    /// Rows that go through the model at once.
    pub micro_batch_size: u32,
    /// Activations are computed twice.
    pub gradient_checkpointing: bool,
    /// Processor threads.
    pub threads: u32,
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        Self {
            micro_batch_size: plan.micro_batch_size,
            gradient_checkpointing: plan.checkpointing,
            threads: plan.threads,
        }
    }
}

/// A machine that can be had.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OfferView {
    /// Whose: `local`.
    pub provider: String,
    /// What the provider calls it.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// What is free at the moment.
    pub free_memory_bytes: u64,
    /// Its price; 0: one's own machine.
    pub usd_per_hour: f64,
}

impl OfferView {
    /// An offer of `provider`'s.
    pub fn new(provider: &str, offer: &Offer) -> Self {
        Self {
            provider: provider.to_owned(),
            name: offer.name.clone(),
            memory_bytes: offer.memory.0,
            free_memory_bytes: offer.free().0,
            usd_per_hour: offer.micro_usd_per_hour as f64 / 1e6,
        }
    }
}

/// Why an offer is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefusalView {
    /// What the provider calls it.
    pub offer: String,
    /// `too_small`, `crowded`, `no_slot` or `not_cheaper`.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

impl RefusalView {
    /// The offer would hold it, but another one is taken.
    pub fn not_cheaper(offer: &str, taken: &str) -> Self {
        let message = format!("{offer} would do; {taken} costs less, or as much and is smaller");
        Self { offer: offer.to_owned(), code: "not_cheaper", message }
    }
}

impl From<&Refusal> for RefusalView {
    fn from(refusal: &Refusal) -> Self {
        let (offer, code) = match refusal {
            Refusal::TooSmall { offer, .. } => (offer, "too_small"),
            Refusal::Crowded { offer, .. } => (offer, "crowded"),
            Refusal::NoSlot { offer } => (offer, "no_slot"),
        };
        Self { offer: offer.clone(), code, message: refusal.to_string() }
    }
}

/// How fast it would be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct PaceView {
    /// All tokens of a step count.
    pub tokens_per_second: f64,
    /// `measured`: in runs of this base on this offer. `assumed`: there was none yet; from the model's size, the threads,
    /// and a bench on another machine.
    pub source: &'static str,
    /// In how many runs it was measured.
    pub runs: i64,
}

impl PaceView {
    /// A pace that was seen in so many runs.
    pub const fn new(pace: Pace, runs: i64) -> Self {
        let source = match pace.source {
            Source::Measured => "measured",
            Source::Assumed => "assumed",
        };
        Self { tokens_per_second: pace.tokens_per_second, source, runs }
    }
}

/// A number with what is around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct BandView {
    /// Seldom less.
    pub low: f64,
    /// Most likely.
    pub likely: f64,
    /// Seldom more.
    pub high: f64,
}

impl From<Band> for BandView {
    fn from(band: Band) -> Self {
        let Band { low, likely, high } = band;
        Self { low, likely, high }
    }
}
