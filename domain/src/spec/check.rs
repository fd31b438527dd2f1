//! The defaults and the allowed ranges of all fields of a training job.

use super::{AdapterSpec, Method, Optimizer, OverLength, Quantization, Requested, Schedule, TrainSpec};
use crate::{architecture::PROJECTIONS, bad_field::BadField, template_kwargs::TemplateKwargs};

/// The learning rate at a multiplier of 1, common for LoRA. Source: Dettmers et al., arXiv:2305.14314, table 9.
pub const BASE_LEARNING_RATE: f64 = 2e-4;

impl TrainSpec {
    /// Checks every field and fills in every default. `rows` is the number of rows in the training file, `longest` the
    /// base's maximum context in tokens.
    ///
    /// # Errors
    /// The first [`BadField`].
    pub fn check(asked: &Requested, rows: u64, longest: u64) -> Result<Self, BadField> {
        if let (Some(rate), Some(_)) = (asked.learning_rate, asked.learning_rate_multiplier) {
            return Err(bad("trainer.learning_rate", rate, "left out when learning_rate_multiplier is given"));
        }
        if asked.learning_rate_auto && (asked.learning_rate.is_some() || asked.learning_rate_multiplier.is_some()) {
            return Err(bad("trainer.learning_rate", "auto", "left out when learning_rate_multiplier is given"));
        }
        let multiplier =
            float("hyperparameters.learning_rate_multiplier", asked.learning_rate_multiplier, 1.0, 1e-4, 1e3)?;
        let learning_rate =
            float("trainer.learning_rate", asked.learning_rate, BASE_LEARNING_RATE * multiplier, 1e-8, 1.0)?;
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        let eval_every_steps = int("trainer.eval_every_steps", asked.eval_every_steps, 0, 0, 1_000_000)? as u64;
        let (early_stopping_patience, early_stopping_threshold) = early_stopping(asked, eval_every_steps)?;
        let schedule = schedule(asked.schedule.as_deref())?;
        if asked.num_cycles.is_some() && schedule != Schedule::CosineWithRestarts {
            let allowed = "left out when trainer.schedule is not cosine_with_restarts";
            return Err(bad("trainer.num_cycles", asked.num_cycles.unwrap_or_default(), allowed));
        }
        let effective_batch_size = batch_size(asked.effective_batch_size, rows)?;
        let method = method(asked.method.as_deref())?;
        if method.trains_every_token() && asked.train_on_prompt == Some(false) {
            return Err(bad("trainer.train_on_prompt", false, "left out when every token is trained"));
        }
        Ok(Self {
            n_epochs: int("hyperparameters.n_epochs", asked.n_epochs, 3, 1, 100)? as u32,
            max_steps: asked
                .max_steps
                .map(|n| int("trainer.max_steps", Some(n), 1, 1, 10_000_000))
                .transpose()?
                .map(|n| n as u64),
            effective_batch_size,
            learning_rate,
            learning_rate_multiplier: learning_rate / BASE_LEARNING_RATE,
            schedule,
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
            eval_every_steps,
            adapter: adapter(asked)?,
            quantization: quantization(asked)?,
            method,
            train_on_prompt: asked.train_on_prompt.unwrap_or(false),
            over_length: over_length(asked.over_length.as_deref())?,
            optimizer: optimizer(asked.optimizer.as_deref())?,
            loraplus_lr_ratio: float("trainer.loraplus_lr_ratio", asked.loraplus_lr_ratio, 1.0, 1.0, 1000.0)?,
            neftune_noise_alpha: float("trainer.neftune_noise_alpha", asked.neftune_noise_alpha, 0.0, 0.0, 1000.0)?,
            num_cycles: int("trainer.num_cycles", asked.num_cycles, 1, 1, 1000)? as u32,
            learning_rate_auto: asked.learning_rate_auto,
            early_stopping_patience,
            early_stopping_threshold,
            micro_batch_size: micro_batch_size(asked.micro_batch_size, effective_batch_size)?,
            gradient_checkpointing: asked.gradient_checkpointing,
            chat_template_kwargs: chat_template_kwargs(asked, method)?,
        })
    }

    /// Returns the number of optimizer steps of the whole job over `rows` rows; the last step of an epoch may have
    /// fewer rows.
    #[must_use]
    pub fn total_steps(&self, rows: u64) -> u64 {
        let all = rows.div_ceil(u64::from(self.effective_batch_size)) * u64::from(self.n_epochs);
        self.max_steps.map_or(all, |most| most.min(all))
    }
}

pub(super) fn bad(param: &'static str, given: impl ToString, allowed: impl Into<String>) -> BadField {
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

/// Checks the variables of the chat template. A method whose rows are not rendered with a template allows none.
fn chat_template_kwargs(asked: &Requested, method: Method) -> Result<TemplateKwargs, BadField> {
    let Some(given) = &asked.chat_template_kwargs else { return Ok(TemplateKwargs::default()) };
    let kwargs = TemplateKwargs::check(given)?;
    if !method.uses_chat_template() && !kwargs.is_empty() {
        let names: Vec<_> = kwargs.as_map().keys().map(String::as_str).collect();
        let allowed = format!("left out when method.type is {}", method.name());
        return Err(bad("chat_template_kwargs", names.join(", "), allowed));
    }
    Ok(kwargs)
}

/// Checks the batch size. `auto`: about one row in 64, from 4 to 32, so that a small file still has enough steps to
/// train on.
fn batch_size(given: Option<i64>, rows: u64) -> Result<u32, BadField> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let auto = (rows / 64).clamp(4, 32).min(rows.max(1));
    Ok(int("hyperparameters.batch_size", given, auto, 1, 1024)? as u32)
}

/// Checks the micro-batch size, which is at most the batch size.
fn micro_batch_size(given: Option<i64>, batch: u32) -> Result<Option<u32>, BadField> {
    let Some(size) = given else { return Ok(None) };
    if (1..=i64::from(batch)).contains(&size) {
        return Ok(Some(size as u32));
    }
    Err(bad("trainer.micro_batch_size", size, format!("\"auto\", or a whole number from 1 to {batch}, the batch size")))
}

/// Checks patience and threshold. Both require validations during the training.
fn early_stopping(asked: &Requested, eval_every_steps: u64) -> Result<(u64, f64), BadField> {
    const PATIENCE: &str = "trainer.early_stopping_patience";
    const THRESHOLD: &str = "trainer.early_stopping_threshold";
    let patience = int(PATIENCE, asked.early_stopping_patience, 0, 0, 1_000_000)? as u64;
    let threshold = float(THRESHOLD, asked.early_stopping_threshold, 0.0, 0.0, 1e3)?;
    if patience > 0 && eval_every_steps == 0 {
        return Err(bad(PATIENCE, patience, "left out, or given together with trainer.eval_every_steps"));
    }
    if patience == 0 && asked.early_stopping_threshold.is_some() {
        return Err(bad(THRESHOLD, threshold, "left out when trainer.early_stopping_patience is"));
    }
    Ok((patience, threshold))
}

fn schedule(given: Option<&str>) -> Result<Schedule, BadField> {
    let name = given.unwrap_or("cosine");
    Schedule::from_name(name)
        .ok_or_else(|| bad("trainer.schedule", name, "constant, linear, cosine or cosine_with_restarts"))
}

fn method(given: Option<&str>) -> Result<Method, BadField> {
    let Some(name) = given else { return Ok(Method::default()) };
    let allowed = || Method::one_of(|method| method.name().to_owned());
    Method::from_name(name).ok_or_else(|| bad("method.type", name, allowed()))
}

fn over_length(given: Option<&str>) -> Result<OverLength, BadField> {
    match given.unwrap_or("error") {
        "error" => Ok(OverLength::Error),
        "truncate" => Ok(OverLength::Truncate),
        "drop" => Ok(OverLength::Drop),
        "split" => Ok(OverLength::Split),
        other => Err(bad("trainer.over_length", other, "error, truncate, drop or split")),
    }
}

fn optimizer(given: Option<&str>) -> Result<Optimizer, BadField> {
    match given.unwrap_or("adamw") {
        "adamw" => Ok(Optimizer::Adamw),
        "adamw_8bit" => Ok(Optimizer::Adamw8bit),
        other => Err(bad("trainer.optimizer", other, "adamw or adamw_8bit")),
    }
}

fn adapter(asked: &Requested) -> Result<AdapterSpec, BadField> {
    let rank = int("adapter.rank", asked.rank, 16, 1, 256)? as u32;
    let use_dora = asked.use_dora.unwrap_or(false);
    let lora_dropout = float("adapter.lora_dropout", asked.lora_dropout, 0.0, 0.0, 0.9)?;
    if use_dora && lora_dropout > 0.0 {
        return Err(bad("adapter.lora_dropout", lora_dropout, "0 or left out with adapter.use_dora"));
    }
    Ok(AdapterSpec {
        rank,
        lora_alpha: float("adapter.lora_alpha", asked.lora_alpha, 2.0 * f64::from(rank), 1e-3, 1e4)?,
        target_modules: target_modules(asked.target_modules.as_deref())?,
        lora_dropout,
        use_rslora: asked.use_rslora.unwrap_or(false),
        use_dora,
    })
}

/// Returns the modules in the order of a block, each once; `all-linear` is all seven.
pub(super) fn target_modules(given: Option<&[String]>) -> Result<Vec<String>, BadField> {
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
        "int8" | "none" if asked.double_quant == Some(true) => {
            Err(bad("quantization.double_quant", true, "left out when quantization.type is not nf4"))
        }
        "int8" => Ok(Quantization::Int8),
        "none" => Ok(Quantization::None),
        other => Err(bad("quantization.type", other, "nf4, int8 or none")),
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
    fn fields_that_need_another_are_refused_without_it() {
        let by_hand = Requested::default();
        for (asked, param) in [
            (Requested { early_stopping_patience: Some(2), ..by_hand.clone() }, "trainer.early_stopping_patience: 2"),
            (
                Requested { early_stopping_threshold: Some(0.1), ..by_hand.clone() },
                "trainer.early_stopping_threshold: 0.1",
            ),
            (Requested { num_cycles: Some(2), ..by_hand.clone() }, "trainer.num_cycles: 2"),
            (Requested { micro_batch_size: Some(6), ..by_hand.clone() }, "trainer.micro_batch_size: 6"),
            (Requested { micro_batch_size: Some(0), ..by_hand.clone() }, "trainer.micro_batch_size: 0"),
            (
                Requested { learning_rate_auto: true, learning_rate_multiplier: Some(2.0), ..by_hand.clone() },
                "trainer.learning_rate: auto",
            ),
            (
                Requested { quantization: Some("int8".into()), double_quant: Some(true), ..by_hand.clone() },
                "quantization",
            ),
            (Requested { optimizer: Some("sgd".into()), ..by_hand.clone() }, "trainer.optimizer: sgd"),
            (Requested { over_length: Some("cut".into()), ..by_hand.clone() }, "trainer.over_length: cut"),
            (Requested { method: Some("dpo".into()), ..by_hand.clone() }, "method.type: dpo"),
            (Requested { lora_dropout: Some(1.0), ..by_hand.clone() }, "adapter.lora_dropout: 1"),
        ] {
            let refused = check(&asked).unwrap_err();
            assert!(refused.starts_with(param), "{refused}");
        }
        assert_eq!(
            check(&Requested { micro_batch_size: Some(6), ..by_hand }).unwrap_err(),
            "trainer.micro_batch_size: 6 is not allowed; it must be \"auto\", or a whole number from 1 to 5, the \
             batch size"
        );
    }

    #[test]
    fn variables_of_a_chat_template_go_with_chats() {
        let kwargs = serde_json::json!({"enable_thinking": false}).as_object().cloned();
        let asked = Requested { chat_template_kwargs: kwargs, ..Requested::default() };
        assert!(!check(&asked).unwrap().chat_template_kwargs.is_empty());
        let texts = Requested { method: Some("continued_pretraining".into()), ..asked };
        assert!(check(&texts).unwrap_err().starts_with("chat_template_kwargs: enable_thinking is not allowed"));
    }

    #[test]
    fn dropout_does_not_go_with_magnitudes() {
        let both = Requested { use_dora: Some(true), lora_dropout: Some(0.1), ..Requested::default() };
        let refused = check(&both).unwrap_err();
        assert!(refused.starts_with("adapter.lora_dropout: 0.1 is not allowed"), "{refused}");
    }

    #[test]
    fn targets_are_sorted_and_said_once() {
        let given = ["v_proj", "q_proj", "v_proj"].map(String::from).to_vec();
        let spec = check(&Requested { target_modules: Some(given), ..Requested::default() }).unwrap();
        assert_eq!(spec.adapter.target_modules, ["q_proj", "v_proj"]);
    }
}
