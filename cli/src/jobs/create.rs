//! The request to create a job: a file, overridden by flags, with local datasets uploaded first.
//!
//! The API checks the values and names the field in its errors.

use std::path::PathBuf;

use attune_domain::spec::Method;
use serde_json::{Map, Value, json};

use super::{
    dataset_path::local,
    document::{self, Document},
    flags::{AdapterFlags, TrainingFlags},
    machine::MachineFlags,
};
use crate::{
    connection::client::Client,
    error::{CliError, Result},
    files::commands as files,
};

/// The flags that describe a new job.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct NewJobArgs {
    /// A YAML or JSON file with the job (`attune schema job` prints its schema), or a Ludwig LLM config (`-`: standard
    /// input); flags override it
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The base model, or a fine-tuned model to train further
    #[arg(long)]
    model: Option<String>,
    /// The ID of a file, or a local file, which is uploaded first; for a Ludwig config, the table of its rows
    #[arg(long, value_name = "ID|PATH")]
    training_file: Option<String>,
    /// The ID of a validation file, or a local file, which is uploaded first
    #[arg(long, value_name = "ID|PATH")]
    validation_file: Option<String>,
    /// A part of the fine-tuned model's name
    #[arg(long)]
    suffix: Option<String>,
    /// The seed; the same seed and data give the same adapter
    #[arg(long)]
    seed: Option<i64>,
    /// The adapter to start from instead of a new one: its ID, adapter_…, or its model's name, ft:…
    #[arg(long, value_name = "ADAPTER")]
    continue_from: Option<String>,
    /// The maximum price, in USD, at which the job is paused
    #[arg(long, value_name = "USD")]
    max_price_usd: Option<f64>,
    /// The priority among the project's jobs: low, normal or high
    #[arg(long)]
    priority: Option<String>,
    /// Let the job be stopped at a checkpoint for another job, and be queued again
    #[arg(long)]
    preemptible: bool,
    #[command(flatten)]
    machine: MachineFlags,
    #[command(flatten)]
    training: TrainingFlags,
    #[command(flatten)]
    adapter: AdapterFlags,
}

/// The flags of `attune jobs create`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(super) new: NewJobArgs,
    /// Watch the job until it ends
    #[arg(long)]
    pub(super) watch: bool,
    /// Print the request without sending it; uploads and creates nothing
    #[arg(long, conflicts_with = "watch")]
    pub(super) dry_run: bool,
}

/// Returns the request's body: the file's values, overridden by the flags.
///
/// # Errors
/// [`CliError::Usage`]: a file that is not a job. [`CliError::Failed`]: a file that cannot be read.
pub(super) fn laid(args: NewJobArgs) -> Result<Map<String, Value>> {
    let Document { mut body, recipe } = match &args.file {
        Some(path) => document::read(path)?,
        None => Document::default(),
    };
    lay_over(&mut body, args)?;
    if let Some(recipe) = recipe {
        document::make_rows(&mut body, &recipe)?;
    }
    Ok(body)
}

/// Uploads local datasets and replaces their paths by file IDs; returns the body to send.
///
/// # Errors
/// [`CliError::Usage`]: no model, or no training file. The errors of an upload.
pub(super) async fn uploaded(client: &Client, mut body: Map<String, Value>) -> Result<Value> {
    for (field, flag) in [("model", "--model"), ("training_file", "--training-file")] {
        if !body.contains_key(field) {
            return Err(CliError::Usage(format!("{field} is missing. Set {flag}, or '{field}' in the file of -f.")));
        }
    }
    for field in ["training_file", "validation_file"] {
        if let Some(path) = body.get(field).and_then(Value::as_str).and_then(local) {
            let uploaded = files::upload(client, &path, "fine-tune", None).await?;
            body.insert(field.into(), uploaded["id"].clone());
        }
    }
    Ok(body.into())
}

fn lay_over(body: &mut Map<String, Value>, args: NewJobArgs) -> Result<()> {
    let NewJobArgs { model, training_file, validation_file, suffix, seed, continue_from, .. } = args;
    let (training, adapter, machine) = (args.training, args.adapter, args.machine);
    if let Some(method) = &training.method {
        insert(body, &["method"], "type", method.as_str().into())?;
    }
    let hyperparameters = place_of_hyperparameters(body);
    let fields = [
        (&[][..], "model", model.map(Value::from)),
        (&[], "training_file", training_file.map(Value::from)),
        (&[], "validation_file", validation_file.map(Value::from)),
        (&[], "suffix", suffix.map(Value::from)),
        (&[], "seed", seed.map(Value::from)),
        (&[], "continue_from", continue_from.map(Value::from)),
        (&["compute"], "max_price_usd", args.max_price_usd.map(Value::from)),
        (&["compute"], "priority", args.priority.map(Value::from)),
        (&["compute"], "preemptible", args.preemptible.then_some(Value::Bool(true))),
        (&hyperparameters[..], "n_epochs", training.epochs.map(Value::from)),
        (&hyperparameters[..], "batch_size", training.batch_size.map(Value::from)),
        (&hyperparameters[..], "learning_rate_multiplier", training.learning_rate_multiplier.map(Value::from)),
    ];
    let all = fields.into_iter().chain(machine.fields()).chain(training.fields()).chain(adapter.fields());
    for (section, name, value) in all {
        if let Some(value) = value {
            insert(body, section, name, value)?;
        }
    }
    Ok(())
}

/// Returns the section of the hyperparameters. A file with OpenAI's newer `method` gets them there, since
/// hyperparameters in both places could contradict each other.
fn place_of_hyperparameters(body: &Map<String, Value>) -> Vec<&'static str> {
    let Some(method) = body.get("method") else { return vec!["hyperparameters"] };
    let method = method["type"].as_str().and_then(Method::from_name).unwrap_or_default();
    vec!["method", method.name(), "hyperparameters"]
}

pub(super) fn insert(body: &mut Map<String, Value>, section: &[&str], name: &str, value: Value) -> Result<()> {
    let mut at = body;
    for part in section {
        at = at
            .entry(*part)
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .ok_or_else(|| CliError::Usage(format!("'{part}' in the file of -f must be an object")))?;
    }
    at.insert(name.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(body: Value, args: NewJobArgs) -> Value {
        let mut body = body.as_object().unwrap().clone();
        lay_over(&mut body, args).unwrap();
        body.into()
    }

    #[test]
    fn flags_win_over_the_file_and_keep_the_rest() {
        let file = json!({"model": "a", "adapter": {"rank": 4, "lora_alpha": 8}, "metadata": {"k": "v"}});
        let args = NewJobArgs {
            model: Some("b".into()),
            adapter: AdapterFlags { rank: Some(16), ..AdapterFlags::default() },
            training: TrainingFlags { epochs: Some(2), ..TrainingFlags::default() },
            ..NewJobArgs::default()
        };
        let want = json!({"model": "b", "adapter": {"rank": 16, "lora_alpha": 8}, "metadata": {"k": "v"},
                          "hyperparameters": {"n_epochs": 2}});
        assert_eq!(over(file, args), want);
    }

    #[test]
    fn hyperparameters_are_laid_where_the_file_has_them() {
        let file = json!({"method": {"type": "supervised"}});
        let args = |method: Option<&str>| {
            let training =
                TrainingFlags { epochs: Some(2), method: method.map(String::from), ..TrainingFlags::default() };
            NewJobArgs { training, ..NewJobArgs::default() }
        };
        let want = json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}});
        assert_eq!(over(file, args(None)), want);
        let want = json!({"method": {"type": "continued_pretraining",
            "continued_pretraining": {"hyperparameters": {"n_epochs": 2}}}});
        assert_eq!(over(json!({}), args(Some("continued_pretraining"))), want);
        assert_eq!(over(json!({}), args(None)), json!({"hyperparameters": {"n_epochs": 2}}));
    }

    #[test]
    fn the_place_in_the_queue_is_requested_next_to_the_price() {
        let machine = MachineFlags {
            max_usd_per_hour: Some(2.0),
            regions: vec!["eu-west-1".into()],
            device: vec!["NVIDIA-L4".into(), "NVIDIA-L40S".into()],
            ..MachineFlags::default()
        };
        let args = NewJobArgs { priority: Some("low".into()), preemptible: true, machine, ..NewJobArgs::default() };
        let file = json!({"model": "a", "compute": {"max_price_usd": 1.5}});
        let compute = json!({"max_price_usd": 1.5, "priority": "low", "preemptible": true, "max_usd_per_hour": 2.0,
            "regions": ["eu-west-1"], "device": ["NVIDIA-L4", "NVIDIA-L40S"]});
        assert_eq!(over(file, args), json!({"model": "a", "compute": compute}));
    }

    #[test]
    fn an_adapter_to_continue_from_is_named_next_to_the_model() {
        let args = NewJobArgs { continue_from: Some("adapter_01".into()), ..NewJobArgs::default() };
        assert_eq!(over(json!({"model": "a"}), args), json!({"model": "a", "continue_from": "adapter_01"}));
    }
}
