//! A new job's request: a JSON file, flags laid over it, and local datasets uploaded on the way.
//!
//! Values are not checked here: the API knows what is allowed, and says so by field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{
    client::Client,
    error::{CliError, Result, read_named},
    files,
};

/// Flags of `attune jobs create`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct NewJobArgs {
    /// A JSON file with the request's body (`-`: standard input); flags win over it
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The base model
    #[arg(long)]
    model: Option<String>,
    /// A file's id, or a local JSONL file, which is uploaded first
    #[arg(long, value_name = "ID|PATH")]
    training_file: Option<String>,
    /// The same, for validation
    #[arg(long, value_name = "ID|PATH")]
    validation_file: Option<String>,
    /// A part of the tuned model's name
    #[arg(long)]
    suffix: Option<String>,
    /// The same seed and data give the same adapter
    #[arg(long)]
    seed: Option<i64>,
    /// Passes over the training file
    #[arg(long, value_name = "COUNT", help_heading = "Training")]
    epochs: Option<i64>,
    /// Rows per optimiser step
    #[arg(long, value_name = "ROWS", help_heading = "Training")]
    batch_size: Option<i64>,
    /// The peak learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training", conflicts_with = "learning_rate_multiplier")]
    learning_rate: Option<f64>,
    /// The same, as a multiple of the default
    #[arg(long, value_name = "FACTOR", help_heading = "Training")]
    learning_rate_multiplier: Option<f64>,
    /// How the learning rate falls: constant, linear or cosine
    #[arg(long, help_heading = "Training")]
    schedule: Option<String>,
    /// Stop after so many optimiser steps
    #[arg(long, value_name = "COUNT", help_heading = "Training")]
    max_steps: Option<i64>,
    /// The longest row that is allowed
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    max_length: Option<i64>,
    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    checkpoint_every_steps: Option<i64>,
    /// Steps between passes over the validation file; 0: only at the end
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    eval_every_steps: Option<i64>,
    /// The adapter's rank
    #[arg(long, help_heading = "Adapter")]
    rank: Option<i64>,
    /// The adapter's scale is this over its rank
    #[arg(long, value_name = "ALPHA", help_heading = "Adapter")]
    lora_alpha: Option<f64>,
    /// Which projections have an adapter, such as q_proj,v_proj, or all-linear
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Adapter")]
    target_modules: Option<Vec<String>>,
    /// How the base is held while training: nf4 or none
    #[arg(long, value_name = "TYPE", help_heading = "Adapter")]
    quantization: Option<String>,
    /// Follow the job to its end
    #[arg(long)]
    pub(crate) watch: bool,
}

/// The request's body; local datasets are uploaded.
///
/// # Errors
/// [`CliError::Usage`]: no model, no data, a file that is no JSON; else what an upload gives.
pub(crate) async fn body(client: &Client, args: NewJobArgs) -> Result<Value> {
    let mut body = match &args.file {
        Some(path) => read(path)?,
        None => Map::new(),
    };
    lay_over(&mut body, args)?;
    for (field, flag) in [("model", "--model"), ("training_file", "--training-file")] {
        if !body.contains_key(field) {
            return Err(CliError::Usage(format!("a job needs {flag}, or '{field}' in the file given with -f")));
        }
    }
    for field in ["training_file", "validation_file"] {
        if let Some(path) = body.get(field).and_then(Value::as_str).and_then(local) {
            let uploaded = files::upload(client, &path, "fine-tune").await?;
            body.insert(field.into(), uploaded["id"].clone());
        }
    }
    Ok(body.into())
}

/// An id stays; everything else names a local file, there or not.
fn local(named: &str) -> Option<PathBuf> {
    let is_id = named.starts_with("file-") && !Path::new(named).exists();
    (!is_id).then(|| named.into())
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let (name, text) = if path == Path::new("-") {
        let read = std::io::read_to_string(std::io::stdin());
        let text = read.map_err(|e| CliError::Failed(format!("cannot read standard input: {e}")))?;
        ("standard input".into(), text.into_bytes())
    } else {
        (path.display().to_string(), read_named(path)?)
    };
    serde_json::from_slice(&text).map_err(|e| CliError::Usage(format!("{name} is not a JSON object: {e}")))
}

fn lay_over(body: &mut Map<String, Value>, args: NewJobArgs) -> Result<()> {
    // Whoever wrote OpenAI's newer `method` gets its hyperparameters laid over there; two places would contradict.
    let hyperparameters: &[&str] =
        if body.contains_key("method") { &["method", "supervised", "hyperparameters"] } else { &["hyperparameters"] };
    let flags = [
        (&[][..], "model", args.model.map(Value::from)),
        (&[], "training_file", args.training_file.map(Value::from)),
        (&[], "validation_file", args.validation_file.map(Value::from)),
        (&[], "suffix", args.suffix.map(Value::from)),
        (&[], "seed", args.seed.map(Value::from)),
        (hyperparameters, "n_epochs", args.epochs.map(Value::from)),
        (hyperparameters, "batch_size", args.batch_size.map(Value::from)),
        (hyperparameters, "learning_rate_multiplier", args.learning_rate_multiplier.map(Value::from)),
        (&["trainer"], "learning_rate", args.learning_rate.map(Value::from)),
        (&["trainer"], "schedule", args.schedule.map(Value::from)),
        (&["trainer"], "max_steps", args.max_steps.map(Value::from)),
        (&["trainer"], "max_length", args.max_length.map(Value::from)),
        (&["trainer"], "checkpoint_every_steps", args.checkpoint_every_steps.map(Value::from)),
        (&["trainer"], "eval_every_steps", args.eval_every_steps.map(Value::from)),
        (&["adapter"], "rank", args.rank.map(Value::from)),
        (&["adapter"], "lora_alpha", args.lora_alpha.map(Value::from)),
        (&["adapter"], "target_modules", args.target_modules.map(Value::from)),
        (&["quantization"], "type", args.quantization.map(Value::from)),
    ];
    for (section, name, value) in flags {
        if let Some(value) = value {
            insert(body, section, name, value)?;
        }
    }
    Ok(())
}

fn insert(body: &mut Map<String, Value>, section: &[&str], name: &str, value: Value) -> Result<()> {
    let mut at = body;
    for part in section {
        at = at
            .entry(*part)
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .ok_or_else(|| CliError::Usage(format!("'{part}' in the file given with -f must be an object")))?;
    }
    at.insert(name.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(body: Value, args: NewJobArgs) -> Value {
        let mut body = body.as_object().unwrap().clone();
        lay_over(&mut body, args).unwrap();
        body.into()
    }

    #[test]
    fn flags_win_over_the_file_and_keep_the_rest() {
        let file = json!({"model": "a", "adapter": {"rank": 4, "lora_alpha": 8}, "metadata": {"k": "v"}});
        let args = NewJobArgs { model: Some("b".into()), rank: Some(16), epochs: Some(2), ..NewJobArgs::default() };
        let want = json!({"model": "b", "adapter": {"rank": 16, "lora_alpha": 8}, "metadata": {"k": "v"},
                          "hyperparameters": {"n_epochs": 2}});
        assert_eq!(laid(file, args), want);
    }

    #[test]
    fn hyperparameters_are_laid_where_the_file_has_them() {
        let file = json!({"method": {"type": "supervised"}});
        let args = NewJobArgs { epochs: Some(2), ..NewJobArgs::default() };
        let want = json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}});
        assert_eq!(laid(file, args), want);
    }

    #[test]
    fn an_id_is_not_taken_for_a_path() {
        assert_eq!(local("file-0190"), None);
        assert_eq!(local("rows.jsonl"), Some("rows.jsonl".into()));
    }
}
