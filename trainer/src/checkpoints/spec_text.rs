//! A job's spec in the form that a checkpoint's digest is computed over.

use attune_domain::spec::TrainSpec;
use serde_json::{Map, Value, json};

/// The order of the fields that the digests of existing checkpoints are computed with. Other fields follow in the order
/// in which they are serialized.
const ORDER: [&str; 28] = [
    "n_epochs",
    "max_steps",
    "effective_batch_size",
    "learning_rate",
    "learning_rate_multiplier",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "max_length",
    "checkpoint_every_steps",
    "eval_every_steps",
    "adapter",
    "quantization",
    "method",
    "train_on_prompt",
    "over_length",
    "optimizer",
    "loraplus_lr_ratio",
    "neftune_noise_alpha",
    "num_cycles",
    "learning_rate_auto",
    "early_stopping_patience",
    "early_stopping_threshold",
    "micro_batch_size",
    "gradient_checkpointing",
    "chat_template_kwargs",
];

/// Returns the spec as JSON with its fields in a fixed order.
pub(super) fn ordered(train: &TrainSpec) -> Value {
    let mut ordered = Map::new();
    if let Value::Object(mut rest) = json!(train) {
        for name in ORDER {
            if let Some(value) = rest.shift_remove(name) {
                ordered.insert(name.to_owned(), value);
            }
        }
        ordered.append(&mut rest);
    }
    Value::Object(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checkpoints of earlier versions remain valid: their digests are computed over this text.
    #[test]
    fn the_fields_keep_their_order() {
        let text = concat!(
            r#"{"n_epochs":3,"max_steps":null,"effective_batch_size":5,"learning_rate":0.0002,"#,
            r#""learning_rate_multiplier":1.0,"schedule":"cosine","warmup_ratio":0.03,"weight_decay":0.0,"#,
            r#""max_grad_norm":1.0,"seed":42,"max_length":2048,"checkpoint_every_steps":20,"#,
            r#""eval_every_steps":0,"adapter":{"rank":16,"lora_alpha":32.0,"target_modules":["q_proj"],"#,
            r#""lora_dropout":0.0,"use_rslora":false,"use_dora":false},"quantization":{"type":"nf4","#,
            r#""double_quant":true},"method":"supervised","train_on_prompt":false,"over_length":"error","#,
            r#""optimizer":"adamw","loraplus_lr_ratio":1.0,"neftune_noise_alpha":0.0,"num_cycles":1,"#,
            r#""learning_rate_auto":false,"early_stopping_patience":0,"early_stopping_threshold":0.0,"#,
            r#""micro_batch_size":null,"gradient_checkpointing":null,"#,
            r#""chat_template_kwargs":{"enable_thinking":false}}"#,
        );
        let train: TrainSpec = serde_json::from_str(text).unwrap();
        assert_eq!(ordered(&train).to_string(), text);
    }
}
