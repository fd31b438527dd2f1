//! The trainer's settings, checked: the allowed range of each, and its default.

use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use super::auto::{AutoBool, AutoInt};
use super::{
    Method, Optimizer, OverLength, Schedule,
    hyperparameters::BASE_LEARNING_RATE,
    range::{bad, set_float, set_int, set_name},
    request::TrainerFields,
};
use crate::bad_field::BadField;

/// The trainer's settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = TrainerView))]
#[expect(missing_docs, reason = "as in the request")]
pub struct TrainerSpec {
    /// The learning rate in use: the default until the range test has chosen one, if it was requested.
    pub learning_rate: f64,
    /// `true` if the request had `"auto"`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub learning_rate_auto: bool,
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub schedule: Schedule,
    #[serde(default = "once")]
    #[cfg_attr(feature = "schema", schema(required))]
    pub num_cycles: u32,
    pub warmup_ratio: f64,
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = String, required))]
    pub optimizer: Optimizer,
    pub weight_decay: f64,
    // LoRA+. Source: Hayou et al., arXiv:2402.12354.
    #[serde(default = "one")]
    #[cfg_attr(feature = "schema", schema(required))]
    pub loraplus_lr_ratio: f64,
    pub max_grad_norm: f64,
    // NEFTune: uniform noise of magnitude `alpha / √(tokens · width)`. Source: Jain et al., arXiv:2310.05914.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub neftune_noise_alpha: f64,
    pub max_steps: Option<u64>,
    pub max_length: u32,
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = String, required))]
    pub over_length: OverLength,
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub train_on_prompt: bool,
    /// The requested value; the job's events show the value that the plan chose.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = AutoInt, required))]
    pub micro_batch_size: Option<u32>,
    /// The requested value; the job's events show the value that the plan chose.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = AutoBool, required))]
    pub gradient_checkpointing: Option<bool>,
    pub checkpoint_every_steps: u64,
    pub eval_every_steps: u64,
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub early_stopping_patience: u64,
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(required))]
    pub early_stopping_threshold: f64,
}

const fn one() -> f64 {
    1.0
}

const fn once() -> u32 {
    1
}

/// The checks, in groups of fields that [`TrainSpec::check`](super::TrainSpec::check) calls in the order in which a
/// request's faults are reported.
impl TrainerSpec {
    /// Returns the defaults for a base with a context of `longest` tokens.
    pub(super) fn defaults(longest: i64) -> Self {
        Self {
            learning_rate: BASE_LEARNING_RATE,
            learning_rate_auto: false,
            schedule: Schedule::Cosine,
            num_cycles: once(),
            warmup_ratio: 0.03,
            optimizer: Optimizer::default(),
            weight_decay: 0.0,
            loraplus_lr_ratio: one(),
            max_grad_norm: 1.0,
            neftune_noise_alpha: 0.0,
            max_steps: None,
            max_length: longest.min(2048) as u32,
            over_length: OverLength::default(),
            train_on_prompt: false,
            micro_batch_size: None,
            gradient_checkpointing: None,
            checkpoint_every_steps: 20,
            eval_every_steps: 0,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
        }
    }

    /// Sets the learning rate, which defaults to the base learning rate times `multiplier`.
    pub(super) fn set_learning_rate(&mut self, asked: &TrainerFields, multiplier: f64) -> Result<(), BadField> {
        self.learning_rate = BASE_LEARNING_RATE * multiplier;
        let given = asked.learning_rate.and_then(|rate| rate.0);
        set_float(&mut self.learning_rate, "trainer.learning_rate", given, 1e-8..=1.0)?;
        self.learning_rate_auto = asked.learning_rate.is_some_and(|rate| rate.0.is_none());
        Ok(())
    }

    /// Sets the validations, and early stopping, which requires validations during the training.
    pub(super) fn set_validations(&mut self, asked: &TrainerFields) -> Result<(), BadField> {
        const PATIENCE: &str = "trainer.early_stopping_patience";
        const THRESHOLD: &str = "trainer.early_stopping_threshold";
        set_int(&mut self.eval_every_steps, "trainer.eval_every_steps", asked.eval_every_steps, 0..=1_000_000)?;
        set_int(&mut self.early_stopping_patience, PATIENCE, asked.early_stopping_patience, 0..=1_000_000)?;
        set_float(&mut self.early_stopping_threshold, THRESHOLD, asked.early_stopping_threshold, 0.0..=1e3)?;
        let (patience, threshold) = (self.early_stopping_patience, self.early_stopping_threshold);
        if patience > 0 && self.eval_every_steps == 0 {
            return Err(bad(PATIENCE, patience, "left out, or given together with trainer.eval_every_steps"));
        }
        if patience == 0 && asked.early_stopping_threshold.is_some() {
            return Err(bad(THRESHOLD, threshold, "left out when trainer.early_stopping_patience is"));
        }
        Ok(())
    }

    pub(super) fn set_schedule(&mut self, asked: &TrainerFields) -> Result<(), BadField> {
        set_name(&mut self.schedule, "trainer.schedule", asked.schedule.as_deref())?;
        match asked.num_cycles {
            Some(given) if self.schedule != Schedule::CosineWithRestarts => {
                let allowed = "left out when trainer.schedule is not cosine_with_restarts";
                Err(bad("trainer.num_cycles", given, allowed))
            }
            _ => Ok(()),
        }
    }

    /// Sets `train_on_prompt`, which a method that trains every token does not accept as `false`.
    pub(super) fn set_prompts(&mut self, asked: &TrainerFields, method: Method) -> Result<(), BadField> {
        if method.trains_every_token() && asked.train_on_prompt == Some(false) {
            return Err(bad("trainer.train_on_prompt", false, "left out when every token is trained"));
        }
        self.train_on_prompt = asked.train_on_prompt.unwrap_or(self.train_on_prompt);
        Ok(())
    }

    /// Sets the number of optimizer steps, and the changes of the learning rate, weights and gradients in a step.
    pub(super) fn set_steps(&mut self, asked: &TrainerFields) -> Result<(), BadField> {
        if asked.max_steps.is_some() {
            set_int(self.max_steps.insert(1), "trainer.max_steps", asked.max_steps, 1..=10_000_000)?;
        }
        set_float(&mut self.warmup_ratio, "trainer.warmup_ratio", asked.warmup_ratio, 0.0..=1.0)?;
        set_float(&mut self.weight_decay, "trainer.weight_decay", asked.weight_decay, 0.0..=1.0)?;
        set_float(&mut self.max_grad_norm, "trainer.max_grad_norm", asked.max_grad_norm, 1e-6..=1e6)
    }

    /// Sets the maximum length of a row, at most `longest` tokens, and the number of steps between checkpoints.
    pub(super) fn set_lengths(&mut self, asked: &TrainerFields, longest: i64) -> Result<(), BadField> {
        set_int(&mut self.max_length, "trainer.max_length", asked.max_length, 1..=longest)?;
        let (param, given) = ("trainer.checkpoint_every_steps", asked.checkpoint_every_steps);
        set_int(&mut self.checkpoint_every_steps, param, given, 1..=1_000_000)
    }

    /// Sets the policy for long rows, the optimizer, the LoRA+ ratio, the noise, and the number of cosine cycles.
    pub(super) fn set_optimizer(&mut self, asked: &TrainerFields) -> Result<(), BadField> {
        set_name(&mut self.over_length, "trainer.over_length", asked.over_length.as_deref())?;
        set_name(&mut self.optimizer, "trainer.optimizer", asked.optimizer.as_deref())?;
        let ratio = &mut self.loraplus_lr_ratio;
        set_float(ratio, "trainer.loraplus_lr_ratio", asked.loraplus_lr_ratio, 1.0..=1000.0)?;
        let alpha = &mut self.neftune_noise_alpha;
        set_float(alpha, "trainer.neftune_noise_alpha", asked.neftune_noise_alpha, 0.0..=1000.0)?;
        set_int(&mut self.num_cycles, "trainer.num_cycles", asked.num_cycles, 1..=1000)
    }

    /// Sets the choices that are the plan's if the request leaves them out. A micro-batch has at most the `batch` rows
    /// of a batch.
    pub(super) fn set_plan(&mut self, asked: &TrainerFields, batch: u32) -> Result<(), BadField> {
        if let Some(size) = asked.micro_batch_size.and_then(|rows| rows.0) {
            if !(1..=i64::from(batch)).contains(&size) {
                let allowed = format!("\"auto\", or a whole number from 1 to {batch}, the batch size");
                return Err(bad("trainer.micro_batch_size", size, allowed));
            }
            self.micro_batch_size = Some(size as u32);
        }
        self.gradient_checkpointing = asked.gradient_checkpointing.and_then(|is_on| is_on.0);
        Ok(())
    }
}
