//! The export of an adapter: its files are written, compared with the served adapter where they contain the base,
//! described, and uploaded.

/// The model card of an export.
mod card;
/// The comparison with the served adapter.
mod drift;
/// GGUF files.
mod gguf;
/// The importance matrix of a quantization.
mod importance;
/// The files that an export reads.
pub(crate) mod inputs;
/// The manifest of an export.
mod manifest;
/// Merged models as Hugging Face folders.
mod merged;
/// The progress of the weights.
mod progress;

use std::{fs, path::Path};

use attune_domain::{
    export::{Drift, ExportFormat},
    run::{RunEvent, task::ExportTask},
};
use attune_text::model::{TextModel, adapter_template};

use self::inputs::ExportInputs;
use crate::{context::RunContext, error::TrainerError, memory, publishing::blobs::put_folder};

/// Writes the export, and uploads it. Returns the task's last event.
///
/// # Errors
/// [`TrainerError::Export`]: the form cannot hold the model. [`TrainerError::Model`], [`TrainerError::Text`],
/// [`TrainerError::Node`], [`TrainerError::Stopped`], [`TrainerError::Ended`].
pub(crate) fn export(task: &ExportTask, inputs: &ExportInputs, context: &RunContext) -> Result<RunEvent, TrainerError> {
    tch::set_num_threads(i32::try_from(task.threads.max(1)).unwrap_or(1));
    let folder = context.scratch.join("export");
    fs::create_dir_all(&folder).map_err(TrainerError::io(&folder))?;
    let text = texts(inputs)?;
    let drift = write(task, (inputs, &text), context, &folder)?;
    card::write(task, drift, &folder)?;
    manifest::write(task, drift, (inputs, context), &folder)?;
    if context.events.is_stop_requested()? {
        return Err(TrainerError::Stopped { step: 0 });
    }
    let files = context.network.block_on(put_folder(&context.platform, context.run_lease, &folder))?;
    tracing::info!(files = files.len(), ?drift, "the export is uploaded");
    Ok(RunEvent::Exported { files, drift, peak_memory: memory::peak() })
}

/// Writes the weights and the files that belong to them.
fn write(
    task: &ExportTask,
    (inputs, text): (&ExportInputs, &TextModel),
    context: &RunContext,
    folder: &Path,
) -> Result<Option<Drift>, TrainerError> {
    match task.spec.format {
        ExportFormat::Peft => copy_adapter(task, inputs, folder).map(|()| None),
        ExportFormat::Merged => {
            merged::write(task, (inputs, text), context, folder)?;
            drift::measure(task, (inputs, text), folder).map(Some)
        }
        ExportFormat::Gguf => {
            let file = gguf::write_model(task, (inputs, text), context, folder)?;
            let again = context.scratch.join("again");
            gguf::read_again(&file, &again)?;
            let drift = drift::measure(task, (inputs, text), &again)?;
            fs::remove_dir_all(&again).map_err(TrainerError::io(&again))?;
            Ok(Some(drift))
        }
        ExportFormat::GgufAdapter => gguf::write_adapter(task, inputs, context, folder).map(|()| None),
    }
}

/// Returns the base's tokenizer, with the chat template that the adapter was trained with.
fn texts(inputs: &ExportInputs) -> Result<TextModel, TrainerError> {
    let text = TextModel::open(&inputs.base)?;
    match adapter_template(&inputs.adapter)? {
        Some(template) => Ok(text.with_template(&template)?),
        None => Ok(text),
    }
}

fn copy_adapter(task: &ExportTask, inputs: &ExportInputs, folder: &Path) -> Result<(), TrainerError> {
    for file in &task.adapter {
        let to = folder.join(&file.name);
        fs::copy(inputs.adapter.join(&file.name), &to).map_err(TrainerError::io(&to))?;
    }
    if let Some(manifest) = &task.manifest {
        put(folder, attune_domain::manifest::FILE, manifest)?;
    }
    Ok(())
}

/// Writes a text file of the export.
fn put(folder: &Path, name: &str, content: &str) -> Result<(), TrainerError> {
    let path = folder.join(name);
    fs::write(&path, content).map_err(TrainerError::io(&path))
}
