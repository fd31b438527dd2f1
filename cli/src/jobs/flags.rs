//! The training flags of a job, and the request field of each. The API checks their values and names the field in its
//! errors.

use attune_domain::spec::Method;
use serde_json::Value;

/// A field of the request: the path of its section, its name, and its value if the flag is set.
pub(super) type Field = (&'static [&'static str], &'static str, Option<Value>);

const TRAINER: &[&str] = &["trainer"];
const ADAPTER: &[&str] = &["adapter"];
const QUANTIZATION: &[&str] = &["quantization"];

/// The flags for the method, the hyperparameters and the trainer.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Training")]
pub(super) struct TrainingFlags {
    #[arg(long, help = method_help())]
    pub(super) method: Option<String>,
    /// The number of epochs
    #[arg(long, value_name = "COUNT")]
    pub(super) epochs: Option<i64>,
    /// The number of rows per optimizer step
    #[arg(long, value_name = "ROWS")]
    pub(super) batch_size: Option<i64>,
    /// The peak learning rate, or auto: a short range test chooses it (as `attune lr-find` does)
    #[arg(long, value_name = "RATE|auto", value_parser = auto_or_json, conflicts_with = "learning_rate_multiplier")]
    pub(super) learning_rate: Option<Value>,
    /// The peak learning rate as a multiple of the default
    #[arg(long, value_name = "FACTOR")]
    pub(super) learning_rate_multiplier: Option<f64>,
    /// The learning rate schedule: constant, linear, cosine or cosine_with_restarts
    #[arg(long)]
    pub(super) schedule: Option<String>,
    /// The number of cycles of cosine_with_restarts
    #[arg(long, value_name = "COUNT")]
    pub(super) num_cycles: Option<i64>,
    /// The fraction of all steps that are warm-up
    #[arg(long, value_name = "SHARE")]
    pub(super) warmup_ratio: Option<f64>,
    /// The optimizer: adamw or adamw_8bit
    #[arg(long)]
    pub(super) optimizer: Option<String>,
    /// The weight decay of AdamW
    #[arg(long, value_name = "DECAY")]
    pub(super) weight_decay: Option<f64>,
    /// LoRA+: the ratio of the learning rate of the B matrices to that of the A matrices
    #[arg(long, value_name = "RATIO")]
    pub(super) loraplus_lr_ratio: Option<f64>,
    /// The gradient norm to which larger gradients are clipped
    #[arg(long, value_name = "NORM")]
    pub(super) max_grad_norm: Option<f64>,
    /// NEFTune: the scale of the noise on the embeddings during training
    #[arg(long, value_name = "ALPHA")]
    pub(super) neftune_noise_alpha: Option<f64>,
    /// The maximum number of optimizer steps
    #[arg(long, value_name = "COUNT")]
    pub(super) max_steps: Option<i64>,
    /// The maximum length of a row
    #[arg(long, value_name = "TOKENS")]
    pub(super) max_length: Option<i64>,
    /// The policy for rows longer than --max-length: error, truncate, drop or split
    #[arg(long, value_name = "WHAT")]
    pub(super) over_length: Option<String>,
    /// Train on the tokens of prompts too, not only on those of answers
    #[arg(long)]
    pub(super) train_on_prompt: bool,
    /// The number of rows per forward pass, or auto: as many as the free memory allows
    #[arg(long, value_name = "ROWS|auto", value_parser = auto_or_json)]
    pub(super) micro_batch_size: Option<Value>,
    /// Recompute activations in the backward pass instead of storing them: true, false, or auto: if they do not fit
    #[arg(long, value_name = "true|false|auto", value_parser = auto_or_json)]
    pub(super) gradient_checkpointing: Option<Value>,
    /// The number of steps between checkpoints
    #[arg(long, value_name = "STEPS")]
    pub(super) checkpoint_every_steps: Option<i64>,
    /// The number of steps between evaluations on the validation file; 0: only at the end
    #[arg(long, value_name = "STEPS")]
    pub(super) eval_every_steps: Option<i64>,
    /// Stop after this many evaluations in a row without a better loss, and keep the best adapter
    #[arg(long, value_name = "COUNT")]
    pub(super) early_stopping_patience: Option<i64>,
    /// The minimum decrease of the loss, in nats, that counts as better
    #[arg(long, value_name = "NATS")]
    pub(super) early_stopping_threshold: Option<f64>,
}

fn method_help() -> String {
    let methods = Method::one_of(|method| format!("{} ({})", method.name(), method.rows()));
    format!("The training method: {methods}")
}

impl TrainingFlags {
    /// Returns all fields except the method and the hyperparameters, whose section depends on the rest of the request.
    pub(super) fn fields(self) -> Vec<Field> {
        let on = |is_on: bool| is_on.then_some(Value::Bool(true));
        vec![
            (TRAINER, "learning_rate", self.learning_rate),
            (TRAINER, "schedule", self.schedule.map(Value::from)),
            (TRAINER, "num_cycles", self.num_cycles.map(Value::from)),
            (TRAINER, "warmup_ratio", self.warmup_ratio.map(Value::from)),
            (TRAINER, "optimizer", self.optimizer.map(Value::from)),
            (TRAINER, "weight_decay", self.weight_decay.map(Value::from)),
            (TRAINER, "loraplus_lr_ratio", self.loraplus_lr_ratio.map(Value::from)),
            (TRAINER, "max_grad_norm", self.max_grad_norm.map(Value::from)),
            (TRAINER, "neftune_noise_alpha", self.neftune_noise_alpha.map(Value::from)),
            (TRAINER, "max_steps", self.max_steps.map(Value::from)),
            (TRAINER, "max_length", self.max_length.map(Value::from)),
            (TRAINER, "over_length", self.over_length.map(Value::from)),
            (TRAINER, "train_on_prompt", on(self.train_on_prompt)),
            (TRAINER, "micro_batch_size", self.micro_batch_size),
            (TRAINER, "gradient_checkpointing", self.gradient_checkpointing),
            (TRAINER, "checkpoint_every_steps", self.checkpoint_every_steps.map(Value::from)),
            (TRAINER, "eval_every_steps", self.eval_every_steps.map(Value::from)),
            (TRAINER, "early_stopping_patience", self.early_stopping_patience.map(Value::from)),
            (TRAINER, "early_stopping_threshold", self.early_stopping_threshold.map(Value::from)),
        ]
    }
}

/// The flags for the adapter and the quantization of its base.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Adapter")]
pub(super) struct AdapterFlags {
    /// The adapter's rank
    #[arg(long)]
    pub(super) rank: Option<i64>,
    /// LoRA's alpha: the adapter's scale is alpha / rank
    #[arg(long, value_name = "ALPHA")]
    pub(super) lora_alpha: Option<f64>,
    /// The projections that get an adapter, such as q_proj,v_proj, or all-linear
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) target_modules: Option<Vec<String>>,
    /// The dropout probability of the adapter's inputs during training
    #[arg(long, value_name = "SHARE")]
    pub(super) lora_dropout: Option<f64>,
    /// rsLoRA: the adapter's scale is alpha / sqrt(rank)
    #[arg(long)]
    pub(super) use_rslora: bool,
    /// DoRA: normalize the rows of the adapted weight to trained magnitudes
    #[arg(long)]
    pub(super) use_dora: bool,
    /// The quantization of the base during training: nf4, int8 or none
    #[arg(long, value_name = "TYPE")]
    pub(super) quantization: Option<String>,
    /// Double quantization: quantize the scales of nf4 too: true or false
    #[arg(long, value_name = "true|false")]
    pub(super) double_quant: Option<bool>,
}

impl AdapterFlags {
    pub(super) fn fields(self) -> Vec<Field> {
        let on = |is_on: bool| is_on.then_some(Value::Bool(true));
        vec![
            (ADAPTER, "rank", self.rank.map(Value::from)),
            (ADAPTER, "lora_alpha", self.lora_alpha.map(Value::from)),
            (ADAPTER, "target_modules", self.target_modules.map(Value::from)),
            (ADAPTER, "lora_dropout", self.lora_dropout.map(Value::from)),
            (ADAPTER, "use_rslora", on(self.use_rslora)),
            (ADAPTER, "use_dora", on(self.use_dora)),
            (QUANTIZATION, "type", self.quantization.map(Value::from)),
            (QUANTIZATION, "double_quant", self.double_quant.map(Value::from)),
        ]
    }
}

/// Parses a number or a boolean as JSON; anything else becomes a string, which the API checks.
#[expect(clippy::unnecessary_wraps, reason = "clap wants a Result")]
fn auto_or_json(text: &str) -> Result<Value, String> {
    let read = serde_json::from_str::<Value>(text).ok().filter(|value| value.is_number() || value.is_boolean());
    Ok(read.unwrap_or_else(|| text.into()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        training: TrainingFlags,
        #[command(flatten)]
        adapter: AdapterFlags,
    }

    #[test]
    fn every_flag_is_in_the_request_under_its_own_name() {
        // Each flag has a different value, so that swapped fields are detected.
        let (mut line, mut want) = (vec!["attune".to_owned()], Vec::new());
        let names = TrainingFlags::default().fields().into_iter().chain(AdapterFlags::default().fields());
        for (number, (section, name, _)) in names.enumerate() {
            let flag = match (section, name) {
                (["quantization"], "type") => "--quantization".to_owned(),
                _ => format!("--{}", name.replace('_', "-")),
            };
            let (given, value) = match name {
                "train_on_prompt" | "use_rslora" | "use_dora" => (None, json!(true)),
                "double_quant" => (Some("false".to_owned()), json!(false)),
                "schedule" | "optimizer" | "over_length" | "type" => {
                    (Some(format!("w{number}")), json!(format!("w{number}")))
                }
                "target_modules" => (Some("q_proj,v_proj".to_owned()), json!(["q_proj", "v_proj"])),
                _ => (Some(number.to_string()), json!(number)),
            };
            line.push(flag);
            line.extend(given);
            want.push((section, name, value));
        }
        let line = Line::try_parse_from(&line).unwrap_or_else(|refused| panic!("{refused}"));
        let got = line.training.fields().into_iter().chain(line.adapter.fields());
        for ((section, name, value), want) in got.zip(want) {
            let value = value.unwrap_or_else(|| panic!("{name} is lost"));
            let same = value == want.2 || value.as_f64().is_some_and(|number| Some(number) == want.2.as_f64());
            assert!(same && (section, name) == (want.0, want.1), "{name}: {value} instead of {}", want.2);
        }
    }

    #[test]
    fn the_help_of_the_method_names_the_rows_of_each() {
        let command = Line::command();
        let method = command.get_arguments().find(|argument| argument.get_id() == "method").unwrap();
        let help = method.get_help().unwrap().to_string();
        assert!(help.starts_with("The training method: supervised (chats, prompts and completions)"), "{help}");
        for method in Method::ALL {
            assert!(help.contains(&format!("{} ({})", method.name(), method.rows())), "{help}");
        }
    }

    #[test]
    fn auto_stays_a_word() {
        assert_eq!(auto_or_json("auto").unwrap(), json!("auto"));
        assert_eq!(auto_or_json("1e-4").unwrap(), json!(1e-4));
        assert_eq!(auto_or_json("false").unwrap(), json!(false));
        assert_eq!(auto_or_json("null").unwrap(), json!("null"), "the API refuses it with what is allowed");
    }
}
