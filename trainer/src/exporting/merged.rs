//! Merged models as Hugging Face folders: weights in files of a bounded size with an index, the configuration, the
//! tokenizer, the chat template and the settings of generation.
//!
//! Source: `save_pretrained` of transformers' `modeling_utils.py`, for the names of files and the index.

use std::{fs, path::Path};

use attune_domain::{
    export::{BaseWeights, ExportDtype, ExportSpec},
    run::task::ExportTask,
    spec::Quantization,
};
use attune_model::{
    error::ModelError,
    io::stream::{Entry, write_streamed},
    merge::Merged,
};
use attune_text::model::TextModel;
use serde_json::{Map, Value, json};
use tch::Kind;

use super::{inputs::ExportInputs, progress::Progress, put};
use crate::{context::RunContext, error::TrainerError};

/// The base's files that are copied.
const COPIED: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

/// Writes the folder.
pub(super) fn write(
    task: &ExportTask,
    (inputs, text): (&ExportInputs, &TextModel),
    context: &RunContext,
    folder: &Path,
) -> Result<(), TrainerError> {
    let merged = Merged::open(&inputs.base, &inputs.adapter, quantization(task))?;
    let (kind, name) = match task.spec.dtype {
        ExportDtype::F16 => (Kind::Half, "float16"),
        ExportDtype::Bf16 => (Kind::BFloat16, "bfloat16"),
        ExportDtype::F32 | ExportDtype::Q8Zero | ExportDtype::Q4KMedium => (Kind::Float, "float32"),
    };
    write_weights(&merged, (task.spec, kind), context, folder)?;
    put(folder, "config.json", &config(&inputs.base, name)?)?;
    for name in COPIED {
        let from = inputs.base.join(name);
        if from.is_file() {
            let to = folder.join(name);
            fs::copy(&from, &to).map_err(TrainerError::io(&to))?;
        }
    }
    match text.template() {
        Some(template) => put(folder, "chat_template.jinja", template.source()),
        None => Ok(()),
    }
}

/// Returns the quantization that the base's weights go through before the merge.
pub(super) const fn quantization(task: &ExportTask) -> Quantization {
    match task.spec.base_weights {
        BaseWeights::Dequantized => task.quantization,
        BaseWeights::Original => Quantization::None,
    }
}

fn write_weights(
    merged: &Merged,
    (spec, kind): (ExportSpec, Kind),
    context: &RunContext,
    folder: &Path,
) -> Result<(), TrainerError> {
    let entries: Vec<Entry> = merged.tensors().into_iter().map(|(name, shape)| Entry { name, shape }).collect();
    let shards = shards(entries, kind, spec.shard_bytes.0);
    let total: u64 = shards.iter().flatten().map(|entry| entry.bytes(kind)).sum();
    let (mut done, mut progress) = (0, Progress::new(&context.events));
    let mut index = Map::new();
    for (place, shard) in shards.iter().enumerate() {
        let file = file_name(place, shards.len());
        let written = write_streamed(&folder.join(&file), kind, shard, |entry| {
            progress.at(done, total)?;
            done += entry.bytes(kind);
            Ok::<_, TrainerError>(merged.read(&entry.name)?)
        });
        written.map_err(too_large(spec))?;
        index.extend(shard.iter().map(|entry| (entry.name.clone(), json!(file))));
    }
    progress.at(done, total)?;
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": index});
        put(folder, "model.safetensors.index.json", &format!("{index:#}\n"))?;
    }
    Ok(())
}

/// Names the number type in the error of a tensor that has numbers outside of it.
fn too_large(spec: ExportSpec) -> impl FnOnce(TrainerError) -> TrainerError {
    move |error| match error {
        TrainerError::Model(ModelError::NotFinite(name)) => {
            let dtype: &str = spec.dtype.into();
            TrainerError::Export(format!("tensor '{name}' has numbers that {dtype} cannot hold; export bf16 or f32"))
        }
        other => other,
    }
}

/// Distributes the tensors, in order, over files of at most `most` bytes; a larger tensor has a file of its own.
fn shards(entries: Vec<Entry>, kind: Kind, most: u64) -> Vec<Vec<Entry>> {
    let (mut shards, mut bytes): (Vec<Vec<Entry>>, u64) = (Vec::new(), 0);
    for entry in entries {
        let length = entry.bytes(kind);
        match shards.last_mut() {
            Some(shard) if bytes.saturating_add(length) <= most => {
                shard.push(entry);
                bytes += length;
            }
            _ => {
                shards.push(vec![entry]);
                bytes = length;
            }
        }
    }
    shards
}

fn file_name(place: usize, count: usize) -> String {
    if count == 1 { "model.safetensors".into() } else { format!("model-{:05}-of-{count:05}.safetensors", place + 1) }
}

/// Returns the base's `config.json` with the number type of the export.
fn config(base: &Path, dtype: &str) -> Result<String, TrainerError> {
    let path = base.join("config.json");
    let text = fs::read(&path).map_err(TrainerError::io(&path))?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|why| TrainerError::Internal(format!("config.json: {why}")))?;
    // transformers 4 reads the second key.
    for key in ["dtype", "torch_dtype"] {
        config.insert(key.into(), dtype.into());
    }
    Ok(format!("{:#}\n", Value::Object(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_distributed_in_order_and_never_split() {
        let entry = |name: &str, side: i64| Entry { name: name.into(), shape: vec![side] };
        let entries = vec![entry("a", 4), entry("b", 4), entry("c", 100), entry("d", 1)];
        let names = |most: u64| -> Vec<Vec<String>> {
            let shards = shards(entries.clone(), Kind::Float, most);
            shards.iter().map(|shard| shard.iter().map(|entry| entry.name.clone()).collect()).collect()
        };
        assert_eq!(names(32), [vec!["a", "b"], vec!["c"], vec!["d"]]);
        assert_eq!(names(1 << 20), [vec!["a", "b", "c", "d"]]);
        assert_eq!(file_name(1, 3), "model-00002-of-00003.safetensors");
        assert_eq!(file_name(0, 1), "model.safetensors");
    }
}
