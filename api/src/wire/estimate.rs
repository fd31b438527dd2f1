//! Estimates: the resources, time and cost of a job before it is created.

use std::collections::BTreeMap;

use attune_domain::{
    dataset::file_facts::FileFacts,
    memory::{Margin, MemoryEstimate},
    offer::{Offer, Refusal},
    run::Plan,
    spec::{AdapterSpec, HyperparametersSpec},
    throughput::{Band, DurationSource, Rate, TokenCost},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    advice::AdviceView, job_view::QuantizationView, method::MethodView, project_queue::QuotasView, trainer::TrainerView,
};

/// An estimate of a job's resources, time and cost. No job is created.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EstimateView {
    /// The object type, always `fine_tuning.estimate`.
    pub object: &'static str,
    /// The base model's name.
    pub model: String,
    /// The training method.
    pub method: MethodView,
    /// The hyperparameters that would be used.
    pub hyperparameters: HyperparametersSpec,
    /// The adapter's LoRA configuration.
    pub adapter: AdapterSpec,
    /// The quantization of the base model while training.
    pub quantization: QuantizationView,
    /// The trainer's settings.
    pub trainer: TrainerView,
    /// The seed of the adapter's initial weights and of the order of rows.
    pub seed: u64,
    /// The counts of one epoch over the training file, after the policy for rows that are too long is applied.
    pub training: FactsView,
    /// The counts of one pass over the validation file.
    pub validation: Option<FactsView>,
    /// Human-readable notes on the rows that the policy would change.
    pub notes: Vec<String>,
    /// The number of optimizer steps of the whole job.
    pub total_steps: u64,
    /// The number of tokens over all steps.
    pub tokens: u64,
    /// The number of tokens with a loss over all steps: the job's `trained_tokens`.
    pub trained_tokens: u64,
    /// `false` if the last epoch would be incomplete (`trainer.max_steps`), so that `tokens` and `trained_tokens` are a
    /// proportional share of the mean, or if early stopping may end the job sooner.
    pub is_exact: bool,
    /// The estimated peak memory; of the smallest configuration if no offer has enough memory.
    pub memory: MemoryView,
    /// The execution plan; `null` if no offer has enough memory.
    pub plan: Option<PlanView>,
    /// The offer that the job would run on; `null` if none has enough memory.
    pub offer: Option<OfferView>,
    /// The reasons why the job would not run on each of the other offers, or would have to wait.
    pub refusals: Vec<RefusalView>,
    /// The GPUs of the catalogue that would hold the job, by an unverified estimate; `null` if an offer can be used.
    pub gpu_advice: Option<AdviceView>,
    /// `true` if the job would have to wait at the moment.
    pub waits: bool,
    /// The human-readable quota of the project for which the job would wait; `null` if it would wait for none.
    pub waiting_reason: Option<String>,
    /// The project's quotas, and their use.
    pub quotas: QuotasView,
    /// The estimated throughput.
    pub pace: Option<PaceView>,
    /// The estimated duration, from launch to end.
    pub duration_seconds: Option<BandView>,
    /// The source of the duration: `measured` in runs of this base model on this kind of processor; `similar_base`,
    /// computed from runs of another base model there; or `other_processor`, computed from runs or a benchmark on
    /// another processor. `null` if no offer has enough memory.
    pub duration_source: Option<&'static str>,
    /// The source of the duration, in words.
    pub duration_note: Option<String>,
    /// The estimated cost of that duration, at the configured prices, in USD.
    pub price_usd: Option<BandView>,
}

/// The counts of one pass over a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct FactsView {
    /// The number of rows that are trained on.
    pub rows: u64,
    /// The number of tokens in those rows.
    pub tokens: u64,
    /// The number of tokens with a loss.
    pub trained_tokens: u64,
    /// The number of tokens in the longest row.
    pub longest_row: u64,
}

impl From<FileFacts> for FactsView {
    fn from(facts: FileFacts) -> Self {
        let FileFacts { rows, tokens, trained_tokens, longest_row } = facts;
        Self { rows, tokens, trained_tokens, longest_row }
    }
}

/// A peak of memory, by component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MemoryView {
    /// The peak, the sum of all parts.
    pub peak_bytes: u64,
    /// The peak with the margin of the estimate: a machine must have this much.
    pub needed_bytes: u64,
    /// The margin, in percent of the peak.
    pub margin_percent: u64,
    /// The source of the margin: `measured`, from the predicted and measured peaks of earlier runs on this kind of
    /// processor; or `default`, with fewer than 20 of them, or if no offer has enough memory.
    pub margin_source: &'static str,
    /// The bytes of each part: `base`, `activations`, `optimizer` and so on.
    pub parts: BTreeMap<String, u64>,
}

impl MemoryView {
    /// Creates the view of an estimate on an offer with this margin.
    pub fn new(estimate: &MemoryEstimate, margin: Margin) -> Self {
        Self {
            peak_bytes: estimate.peak.0,
            needed_bytes: margin.apply(estimate.needed()).0,
            margin_percent: margin.percent,
            margin_source: margin.source.into(),
            parts: estimate.terms.iter().map(|(name, bytes)| (name.clone(), bytes.0)).collect(),
        }
    }
}

/// The execution plan of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlanView {
    /// The number of rows per forward pass.
    pub micro_batch_size: u32,
    /// `true` if activations are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
    /// The number of CPU threads.
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

/// An offer: a machine that can be used.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OfferView {
    /// The provider, such as `local`.
    pub provider: String,
    /// The provider's name for the machine.
    pub name: String,
    /// The total memory.
    pub memory_bytes: u64,
    /// The memory that is free at the moment.
    pub free_memory_bytes: u64,
    /// The price per hour in USD; 0 for one's own machine.
    pub usd_per_hour: f64,
    /// The kind of device: `cpu` or `cuda`.
    pub device: &'static str,
    /// `true` if the provider may reclaim the machine.
    pub spot: bool,
    /// The provider's name for the region; `null` if it has none.
    pub region: Option<String>,
}

impl From<&Offer> for OfferView {
    fn from(offer: &Offer) -> Self {
        Self {
            provider: offer.provider.clone(),
            name: offer.name.clone(),
            memory_bytes: offer.memory.0,
            free_memory_bytes: offer.free().0,
            usd_per_hour: offer.micro_usd_per_hour as f64 / 1e6,
            device: offer.device.name(),
            spot: offer.spot,
            region: offer.region.clone(),
        }
    }
}

/// The reason why an offer is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefusalView {
    /// The provider's name for the machine.
    pub offer: String,
    /// The code: `too_small`, `crowded`, `no_slot`, `not_cheaper`; `device_not_in_build`, `sharding_not_in_build`;
    /// `no_price`, if the price is unknown now, such as that of a stale entry of the catalogue; or the limit of
    /// `compute` that it does not satisfy: `other_device`, `price`, `region`, `spot`, `cost`, `deadline`.
    pub code: &'static str,
    /// A human-readable message.
    pub message: String,
}

impl RefusalView {
    /// Creates the refusal of an offer that has enough memory, while another one is preferred.
    pub fn not_cheaper(offer: &str, taken: &str) -> Self {
        let message =
            format!("{offer} is large enough; the job costs less on {taken}, or as much, and {taken} is smaller");
        Self { offer: offer.to_owned(), code: "not_cheaper", message }
    }
}

impl From<&Refusal> for RefusalView {
    fn from(refusal: &Refusal) -> Self {
        Self { offer: refusal.offer().to_owned(), code: refusal.code(), message: refusal.to_string() }
    }
}

/// The estimated throughput.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct PaceView {
    /// The number of tokens per second, counting all tokens of a step.
    pub tokens_per_second: f64,
    /// The source: `measured` in runs of this base model on this kind of processor, or `assumed`; `duration_source`
    /// has more.
    pub source: &'static str,
    /// The number of runs of this base model on this kind of processor in which it was measured.
    pub runs: i64,
}

impl PaceView {
    /// Creates the view of the throughput of a job.
    pub fn new(rate: &Rate, cost: TokenCost) -> Self {
        let (source, runs) = match rate.source {
            DurationSource::Measured => ("measured", i64::try_from(rate.runs).unwrap_or(i64::MAX)),
            DurationSource::SimilarBase | DurationSource::OtherProcessor => ("assumed", 0),
        };
        Self { tokens_per_second: rate.tokens_per_second(cost), source, runs }
    }
}

/// An estimated value with its range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct BandView {
    /// The lower bound: smaller values are rare.
    pub low: f64,
    /// The most likely value.
    pub likely: f64,
    /// The upper bound: larger values are rare.
    pub high: f64,
}

impl From<Band> for BandView {
    fn from(band: Band) -> Self {
        let Band { low, likely, high } = band;
        Self { low, likely, high }
    }
}
