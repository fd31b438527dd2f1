//! The model card of an export: its base, its data, its form, the drift, and the licence of the base.

use std::path::Path;

use attune_domain::{
    export::{BaseWeights, Drift, ExportDtype, ExportFormat, IMATRIX_CHUNK_TOKENS, IMATRIX_CHUNKS},
    license,
    manifest::{Manifest, Origin},
    run::task::ExportTask,
};

use super::put;
use crate::{error::TrainerError, publishing::card::base_origin};

/// The name of the card.
const FILE: &str = "README.md";

/// Writes the card. The folder of an adapter keeps its own.
pub(super) fn write(task: &ExportTask, drift: Option<Drift>, folder: &Path) -> Result<(), TrainerError> {
    if folder.join(FILE).exists() {
        return Ok(());
    }
    put(folder, FILE, &card(task, drift))
}

fn card(task: &ExportTask, drift: Option<Drift>) -> String {
    let ExportTask { base, model, .. } = task;
    let dtype: &str = task.spec.dtype.into();
    let mut text = format!(
        "---\nbase_model: {base_name}\nlicense: {license}\ntags:\n- lora\n- attune\n---\n\n\
         # {model}\n\n{form}\n\nThe weights are {dtype}.\n",
        base_name = base.name,
        license = base.license.as_deref().unwrap_or(license::UNKNOWN),
        form = form(task),
    );
    text += &blocks(task);
    text += &base_origin(base);
    if let Some(drift) = drift {
        text += &format!(
            "\n## Difference from the served adapter\n\nOver {} tokens of fixed prompts: the largest difference of a \
             logit is {:.3e}, the mean KL divergence {:.3e} nats.\n",
            drift.tokens, drift.max_logit_difference, drift.mean_kl_divergence
        );
    }
    text += &origin(task);
    text += &licence(base.license.as_deref());
    text
}

/// Returns the section about the licence of the base model.
fn licence(name: Option<&str>) -> String {
    let of_base = match name {
        Some(name) => format!("The licence of the base model is `{name}`, as stated when it was imported."),
        None => "The licence of the base model is not known to the platform: see the base model's own page.".to_owned(),
    };
    format!("\n## Licence\n\n{of_base} It applies to models that contain its weights.\n")
}

/// Returns the sentences about blocks of 4 bits, and about their importance matrix.
fn blocks(task: &ExportTask) -> String {
    if task.spec.dtype != ExportDtype::Q4KMedium {
        return String::new();
    }
    let mut text = "\nThe matrices are in llama.cpp's mixture Q4_K_M: in blocks of 4 bits, and of 6 bits where those \
                    matter most; matrices whose rows are not multiples of 256 have 5 and 8 bits.\n"
        .to_owned();
    if let Some(file) = &task.calibration {
        text += &format!(
            "\nTheir scales were chosen with an importance matrix: the mean squares of the inputs of each matrix, over \
             at most {} tokens of the file with the SHA-256 `{}`.\n",
            IMATRIX_CHUNKS * IMATRIX_CHUNK_TOKENS,
            file.sha256
        );
    }
    text
}

/// Returns the sentences about the form and the base weights in it.
fn form(task: &ExportTask) -> String {
    let base = &task.base.name;
    let weights = match task.spec.base_weights {
        BaseWeights::Dequantized => format!(
            "those that the adapter was trained over: in {}, converted back to floats",
            task.quantization.in_words()
        ),
        BaseWeights::Original => "the original ones, before they were quantized for training".to_owned(),
    };
    match task.spec.format {
        ExportFormat::Peft | ExportFormat::GgufAdapter => format!("An adapter for {base}, without the base's weights."),
        ExportFormat::Merged | ExportFormat::Gguf => {
            format!("{base} with an adapter merged into it. The base weights are {weights}.")
        }
    }
}

/// Returns the section about the training, if the version has a manifest of one.
fn origin(task: &ExportTask) -> String {
    let manifest = task.manifest.as_deref().and_then(|text| serde_json::from_str::<Manifest>(text).ok());
    let Some(Manifest { origin: Origin::Job(training), spec, .. }) = manifest else { return String::new() };
    let metrics = &training.metrics;
    let loss = |loss: Option<f64>| loss.map_or_else(|| "not measured".to_owned(), |loss| format!("{loss:.4}"));
    format!(
        "\n## Training\n\nJob `{job}`, seed {seed}: rank {rank}, alpha {alpha}, on {targets}; {steps} steps, {tokens} \
         trained tokens. Training loss {train}, validation loss {valid}.\n\nThe training file has the SHA-256 \
         `{sha256}`.\n",
        job = training.job,
        seed = training.seed,
        rank = spec.rank,
        alpha = spec.lora_alpha,
        targets = spec.target_modules.join(", "),
        steps = metrics.steps,
        tokens = metrics.trained_tokens,
        train = loss(metrics.train_loss),
        valid = loss(metrics.valid_loss),
        sha256 = training.training_data.sha256,
    )
}

#[cfg(test)]
mod tests {
    use attune_domain::run::task::TaskBase;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_card_names_the_base_weights_and_the_drift() {
        let spec = json!({"format": "merged", "dtype": "bf16", "base_weights": "dequantized", "shard_bytes": 1048576});
        let task: ExportTask = serde_json::from_value(json!({"version": 4,
            "export_id": "export_00000000000000000000000000000001", "run_lease": 1, "heartbeat_seconds": 10,
            "base": [], "base_digest": "d".repeat(64), "base_name": "tiny", "model": "ft:tiny:default:house:1",
            "adapter": [], "manifest": null, "quantization": {"type": "int8"}, "spec": spec, "threads": 2,
            "predicted_peak": 1}))
        .unwrap();
        let drift = Drift { tokens: 90, max_logit_difference: 0.0125, mean_kl_divergence: 1e-6 };
        let text = card(&task, Some(drift));
        for part in ["in int8, converted back to floats", "The weights are bf16", "1.250e-2", "90 tokens", "Licence"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let original = ExportTask {
            spec: attune_domain::export::ExportSpec { base_weights: BaseWeights::Original, ..task.spec },
            ..task
        };
        assert!(card(&original, None).contains("before they were quantized"));
    }

    #[test]
    fn the_card_names_the_licence_and_the_data_of_the_importance_matrix() {
        let spec = json!({"format": "gguf", "dtype": "q4_k_m", "base_weights": "original", "shard_bytes": 1048576,
            "imatrix": true});
        let file = json!({"name": "rows.jsonl", "sha256": "a".repeat(64), "bytes": 7, "url": "http://objects/a"});
        let task: ExportTask = serde_json::from_value(json!({"version": 4,
            "export_id": "export_00000000000000000000000000000001", "run_lease": 1, "heartbeat_seconds": 10,
            "base": [], "base_digest": "d".repeat(64), "base_name": "tiny", "base_license": "apache-2.0",
            "model": "ft:tiny:default:house:1", "adapter": [], "manifest": null, "quantization": {"type": "int8"},
            "spec": spec, "calibration": file, "threads": 2, "predicted_peak": 1}))
        .unwrap();
        let text = card(&task, None);
        for part in ["\nlicense: apache-2.0\n", "is `apache-2.0`", "Q4_K_M", "32768 tokens", "`aaaa"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let base = TaskBase { license: None, ..task.base };
        let unknown = ExportTask { base, calibration: None, ..task };
        let text = card(&unknown, None);
        assert!(text.contains("\nlicense: unknown\n") && text.contains("not known to the platform"), "{text}");
        assert!(!text.contains("importance matrix"), "{text}");
    }
}
