//! What a job asks for, checked: the one place that knows every default and every allowed range.
//!
//! `api` turns its wire body into a [`Requested`]; [`TrainSpec::check`] turns that into numbers, or into a
//! [`BadField`] that names the field, the value and what is allowed. Everything after that point works with a
//! [`TrainSpec`] and decides nothing anew.

use serde::{Deserialize, Serialize};

use crate::architecture::PROJECTIONS;

/// A value that the user gave and that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{param}: {given} is not allowed; it must be {allowed}")]
pub struct BadField {
    /// The field's path in the request: `adapter.rank`.
    pub param: &'static str,
    /// What was given.
    pub given: String,
    /// What may be given.
    pub allowed: String,
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to zero.
    Linear,
    /// Falls along half a cosine to zero.
    Cosine,
}

impl Schedule {
    /// The schedule of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "constant" => Self::Constant,
            "linear" => Self::Linear,
            "cosine" => Self::Cosine,
            _ => return None,
        })
    }
}

/// How the frozen weights are held while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Quantization {
    /// 4-bit NormalFloat in blocks of 64.
    Nf4 {
        /// The blocks' scales are quantised too, to 8 bits.
        double_quant: bool,
    },
    /// As they are, in f32.
    None,
}

/// The adapter to train. Names as PEFT has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// Rank of the two factors.
    pub rank: u32,
    /// The correction is scaled by `lora_alpha / rank`.
    pub lora_alpha: f64,
    /// Which projections have one, in the order of a block.
    pub target_modules: Vec<String>,
}

/// A checked training job, every default filled in. Part of the run contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// Passes over the training rows.
    pub n_epochs: u32,
    /// Stops after this many optimiser steps, if the epochs have not ended by then.
    pub max_steps: Option<u64>,
    /// Rows per optimiser step, over all micro-batches.
    pub effective_batch_size: u32,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// What `learning_rate` is a multiple of, as OpenAI's clients see it.
    pub learning_rate_multiplier: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Share of all steps in which it rises from zero.
    pub warmup_ratio: f64,
    /// AdamW's decoupled decay.
    pub weight_decay: f64,
    /// Gradients with a larger global norm are scaled down to it.
    pub max_grad_norm: f64,
    /// Seeds the factors and the order of rows.
    pub seed: u64,
    /// The longest row that is allowed, in tokens. A longer one fails the job with its line.
    pub max_length: u32,
    /// Optimiser steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Optimiser steps between passes over the validation file; 0: only at the end.
    pub eval_every_steps: u64,
    /// The adapter.
    pub adapter: AdapterSpec,
    /// The base while training.
    pub quantization: Quantization,
}

/// What the user gave; `None` is `"auto"`.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "each field is the one of TrainSpec with the same name")]
pub struct Requested {
    pub n_epochs: Option<i64>,
    pub max_steps: Option<i64>,
    pub effective_batch_size: Option<i64>,
    pub learning_rate: Option<f64>,
    pub learning_rate_multiplier: Option<f64>,
    pub schedule: Option<String>,
    pub warmup_ratio: Option<f64>,
    pub weight_decay: Option<f64>,
    pub max_grad_norm: Option<f64>,
    pub seed: Option<i64>,
    pub max_length: Option<i64>,
    pub checkpoint_every_steps: Option<i64>,
    pub eval_every_steps: Option<i64>,
    pub rank: Option<i64>,
    pub lora_alpha: Option<f64>,
    pub target_modules: Option<Vec<String>>,
    pub quantization: Option<String>,
    pub double_quant: Option<bool>,
}

/// The learning rate at a multiplier of 1. A usual one for LoRA; Dettmers et al., arXiv:2305.14314, table 9.
pub const BASE_LEARNING_RATE: f64 = 2e-4;

impl TrainSpec {
    /// Checks every field and fills every default. `rows` is the number of rows in the training file.
    ///
    /// # Errors
    /// The first [`BadField`].
    pub fn check(asked: &Requested, rows: u64, longest: u64) -> Result<Self, BadField> {
        if let (Some(rate), Some(_)) = (asked.learning_rate, asked.learning_rate_multiplier) {
            return Err(bad("trainer.learning_rate", rate, "left out when learning_rate_multiplier is given"));
        }
        let multiplier =
            float("hyperparameters.learning_rate_multiplier", asked.learning_rate_multiplier, 1.0, 1e-4, 1e3)?;
        let learning_rate =
            float("trainer.learning_rate", asked.learning_rate, BASE_LEARNING_RATE * multiplier, 1e-8, 1.0)?;
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        Ok(Self {
            n_epochs: int("hyperparameters.n_epochs", asked.n_epochs, 3, 1, 100)? as u32,
            max_steps: asked
                .max_steps
                .map(|n| int("trainer.max_steps", Some(n), 1, 1, 10_000_000))
                .transpose()?
                .map(|n| n as u64),
            effective_batch_size: batch_size(asked.effective_batch_size, rows)?,
            learning_rate,
            learning_rate_multiplier: learning_rate / BASE_LEARNING_RATE,
            schedule: schedule(asked.schedule.as_deref())?,
            warmup_ratio: float("trainer.warmup_ratio", asked.warmup_ratio, 0.03, 0.0, 1.0)?,
            weight_decay: float("trainer.weight_decay", asked.weight_decay, 0.0, 0.0, 1.0)?,
            max_grad_norm: float("trainer.max_grad_norm", asked.max_grad_norm, 1.0, 1e-6, 1e6)?,
            seed: int("seed", asked.seed, 42, 0, i64::from(u32::MAX))? as u64,
            max_length: int("trainer.max_length", asked.max_length, longest.min(2048), 1, longest)? as u32,
            checkpoint_every_steps: int(
                "trainer.checkpoint_every_steps",
                asked.checkpoint_every_steps,
                20,
                1,
                1_000_000,
            )? as u64,
            eval_every_steps: int("trainer.eval_every_steps", asked.eval_every_steps, 0, 0, 1_000_000)? as u64,
            adapter: adapter(asked)?,
            quantization: quantization(asked)?,
        })
    }

    /// Optimiser steps of the whole job over `rows` rows; the last step of an epoch may hold fewer rows.
    #[must_use]
    pub fn total_steps(&self, rows: u64) -> u64 {
        let all = rows.div_ceil(u64::from(self.effective_batch_size)) * u64::from(self.n_epochs);
        self.max_steps.map_or(all, |most| most.min(all))
    }
}

fn bad(param: &'static str, given: impl ToString, allowed: impl Into<String>) -> BadField {
    BadField { param, given: given.to_string(), allowed: allowed.into() }
}

fn int(param: &'static str, given: Option<i64>, default: i64, least: i64, most: i64) -> Result<i64, BadField> {
    let value = given.unwrap_or(default);
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(bad(param, value, format!("a whole number from {least} to {most}")))
    }
}

fn float(param: &'static str, given: Option<f64>, default: f64, least: f64, most: f64) -> Result<f64, BadField> {
    let value = given.unwrap_or(default);
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(bad(param, value, format!("a number from {least} to {most}")))
    }
}

/// `auto`: about one row in 64, from 4 to 32, so that a small file still takes enough steps to learn from.
fn batch_size(given: Option<i64>, rows: u64) -> Result<u32, BadField> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let auto = (rows / 64).clamp(4, 32).min(rows.max(1));
    Ok(int("hyperparameters.batch_size", given, auto, 1, 1024)? as u32)
}

fn schedule(given: Option<&str>) -> Result<Schedule, BadField> {
    let name = given.unwrap_or("cosine");
    Schedule::from_name(name).ok_or_else(|| bad("trainer.schedule", name, "constant, linear or cosine"))
}

fn adapter(asked: &Requested) -> Result<AdapterSpec, BadField> {
    let rank = int("adapter.rank", asked.rank, 16, 1, 256)? as u32;
    Ok(AdapterSpec {
        rank,
        lora_alpha: float("adapter.lora_alpha", asked.lora_alpha, 2.0 * f64::from(rank), 1e-3, 1e4)?,
        target_modules: target_modules(asked.target_modules.as_deref())?,
    })
}

/// In the order of a block, each once; `all-linear` is all seven.
fn target_modules(given: Option<&[String]>) -> Result<Vec<String>, BadField> {
    const PARAM: &str = "adapter.target_modules";
    let allowed = || format!("'all-linear' or some of {}", PROJECTIONS.join(", "));
    let Some(given) = given else { return Ok(PROJECTIONS.map(String::from).to_vec()) };
    if given.is_empty() {
        return Err(bad(PARAM, "[]", allowed()));
    }
    if given == ["all-linear"] {
        return Ok(PROJECTIONS.map(String::from).to_vec());
    }
    if let Some(unknown) = given.iter().find(|name| !PROJECTIONS.contains(&name.as_str())) {
        return Err(bad(PARAM, unknown, allowed()));
    }
    Ok(PROJECTIONS.iter().filter(|name| given.iter().any(|g| g == *name)).map(|name| (*name).to_owned()).collect())
}

fn quantization(asked: &Requested) -> Result<Quantization, BadField> {
    match asked.quantization.as_deref().unwrap_or("nf4") {
        "nf4" => Ok(Quantization::Nf4 { double_quant: asked.double_quant.unwrap_or(true) }),
        "none" if asked.double_quant == Some(true) => {
            Err(bad("quantization.double_quant", true, "left out when quantization.type is none"))
        }
        "none" => Ok(Quantization::None),
        other => Err(bad("quantization.type", other, "nf4 or none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &Requested) -> Result<TrainSpec, String> {
        TrainSpec::check(asked, 360, 8192).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_fill_every_field() {
        let spec = check(&Requested::default()).unwrap();
        assert_eq!((spec.n_epochs, spec.effective_batch_size, spec.adapter.rank, spec.max_length), (3, 5, 16, 2048));
        assert_eq!(spec.adapter.target_modules, PROJECTIONS);
        assert_eq!(spec.quantization, Quantization::Nf4 { double_quant: true });
        assert_eq!(spec.total_steps(360), 216);
    }

    #[test]
    fn a_refusal_names_the_field_the_value_and_the_range() {
        let rank = Requested { rank: Some(512), ..Requested::default() };
        assert_eq!(
            check(&rank).unwrap_err(),
            "adapter.rank: 512 is not allowed; it must be a whole number from 1 to 256"
        );
        let nan = Requested { learning_rate: Some(f64::NAN), ..Requested::default() };
        assert_eq!(
            check(&nan).unwrap_err(),
            "trainer.learning_rate: NaN is not allowed; it must be a number from 0.00000001 to 1"
        );
    }

    #[test]
    fn targets_are_sorted_and_said_once() {
        let given = ["v_proj", "q_proj", "v_proj"].map(String::from).to_vec();
        let spec = check(&Requested { target_modules: Some(given), ..Requested::default() }).unwrap();
        assert_eq!(spec.adapter.target_modules, ["q_proj", "v_proj"]);
    }
}
