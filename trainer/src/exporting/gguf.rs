//! GGUF files: merged models with a Modelfile, and adapters.

use std::path::{Path, PathBuf};

use attune_domain::{export::ExportDtype, run::task::ExportTask};
use attune_gguf::{
    convert::convert,
    export::{
        adapter,
        interface::{AdapterSource, Matrices, ModelSource, Weights, Written},
        model, ollama,
    },
};
use attune_model::{
    adapter::LoraAdapter,
    error::ModelError,
    io::weights::architecture,
    merge::{Merged, numbers},
};
use attune_text::{model::TextModel, template::ChatTemplate};

use super::{importance, inputs::ExportInputs, merged, progress::Progress, put};
use crate::{context::RunContext, error::TrainerError};

/// The name of a merged model's file.
const MODEL: &str = "model.gguf";

/// The name of an adapter's file.
const ADAPTER: &str = "adapter.gguf";

/// The weights of a merged model.
struct Model<'a> {
    merged: Merged,
    progress: Progress<'a>,
}

impl Weights for Model<'_> {
    type Error = TrainerError;

    fn read(&mut self, name: &str) -> Result<Vec<f32>, TrainerError> {
        Ok(self.merged.numbers(name)?)
    }

    fn written(&mut self, Written { done, total }: Written) -> Result<(), TrainerError> {
        self.progress.at(done, total)
    }
}

/// The factors of an adapter.
struct Factors<'a> {
    adapter: &'a LoraAdapter,
    progress: Progress<'a>,
}

impl Weights for Factors<'_> {
    type Error = TrainerError;

    fn read(&mut self, name: &str) -> Result<Vec<f32>, TrainerError> {
        let wanted = format!("base_model.model.{name}.weight");
        let all = self.adapter.parameters();
        let factor = all.iter().find(|(known, _)| *known == wanted).map(|(_, factor)| *factor);
        let missing = || ModelError::Missing { name: wanted.clone(), place: "the adapter".into() };
        Ok(numbers(factor.ok_or_else(missing)?)?)
    }

    fn written(&mut self, Written { done, total }: Written) -> Result<(), TrainerError> {
        self.progress.at(done, total)
    }
}

/// Writes a merged model and its Modelfile. Returns the model's path.
pub(super) fn write_model(
    task: &ExportTask,
    (inputs, text): (&ExportInputs, &TextModel),
    context: &RunContext,
    folder: &Path,
) -> Result<PathBuf, TrainerError> {
    let matrices = match task.spec.dtype {
        ExportDtype::F32 | ExportDtype::Bf16 => Matrices::F32,
        ExportDtype::F16 => Matrices::F16,
        ExportDtype::Q8Zero => Matrices::Q8Zero,
        ExportDtype::Q4KMedium => Matrices::Q4KMedium,
    };
    let template = text.template().map(ChatTemplate::source);
    let importance = importance::compute(task, (inputs, text), context)?;
    let source = ModelSource {
        folder: &inputs.base,
        template,
        name: &task.model,
        license: task.base.license.as_deref(),
        matrices,
        importance: importance.as_ref(),
        threads: usize::try_from(task.threads).unwrap_or(1),
    };
    let merged = Merged::open(&inputs.base, &inputs.adapter, merged::quantization(task))?;
    let mut weights = Model { merged, progress: Progress::new(&context.events) };
    let path = folder.join(MODEL);
    model::write_model(&source, &path, &mut weights).map_err(TrainerError::of_gguf)?;
    put(folder, "Modelfile", &ollama::modelfile(text, MODEL))?;
    Ok(path)
}

/// Converts a written file to a Hugging Face folder, with the reader that imports use.
pub(super) fn read_again(file: &Path, folder: &Path) -> Result<(), TrainerError> {
    convert(file, folder).map(drop).map_err(|why| TrainerError::Export(format!("the written file is refused: {why}")))
}

/// Writes an adapter.
pub(super) fn write_adapter(
    task: &ExportTask,
    inputs: &ExportInputs,
    context: &RunContext,
    folder: &Path,
) -> Result<(), TrainerError> {
    let architecture = architecture(&inputs.base)?;
    let adapter = LoraAdapter::load(&inputs.adapter, &architecture)?;
    let source = AdapterSource { architecture: &architecture, spec: adapter.spec(), name: &task.model };
    let mut factors = Factors { adapter: &adapter, progress: Progress::new(&context.events) };
    adapter::write_adapter(&source, &folder.join(ADAPTER), &mut factors).map_err(TrainerError::of_gguf)
}
