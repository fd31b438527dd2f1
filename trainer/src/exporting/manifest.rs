//! `export_manifest.json`: the digest of each file of an export, its origin, and the programs that load it.

use std::{fs, path::Path};

use attune_domain::{
    bytes::Bytes,
    export::{Drift, MANIFEST_FILE, loads_with},
    peft,
    run::{Blob, task::ExportTask},
    spec::AdapterSpec,
};
use attune_node::{NodeError, sha256_of_file};
use serde_json::{Value, json};

use super::{inputs::ExportInputs, put};
use crate::{context::RunContext, error::TrainerError};

/// The value of `format` in the manifests that this release writes.
const FORMAT: u32 = 1;

/// Writes the manifest of the files in `folder`.
pub(super) fn write(
    task: &ExportTask,
    drift: Option<Drift>,
    (inputs, context): (&ExportInputs, &RunContext),
    folder: &Path,
) -> Result<(), TrainerError> {
    let adapter = adapter_spec(&inputs.adapter)?;
    let origin: Option<Value> = task.manifest.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let manifest = json!({
        "format": FORMAT,
        "export": task.export_id,
        "model": task.model,
        "base_model": {
            "name": task.base.name,
            "digest": task.base.digest,
            "quantization": task.quantization,
            "license": task.base.license,
        },
        "spec": task.spec,
        "imatrix_data": task.calibration.as_ref().map(|file| json!({"sha256": file.sha256, "bytes": file.bytes})),
        "drift": drift,
        "loads_with": loads_with::of(task.spec, &adapter, task.quantization),
        "files": files(context, folder)?,
        "adapter": origin,
    });
    put(folder, MANIFEST_FILE, &format!("{manifest:#}\n"))
}

fn files(context: &RunContext, folder: &Path) -> Result<Vec<Blob>, TrainerError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(TrainerError::io(folder))? {
        let entry = entry.map_err(TrainerError::io(folder))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|name| TrainerError::Node(NodeError::BadName(format!("{name:?}"))))?;
        let (sha256, bytes) = context.network.block_on(sha256_of_file(&entry.path()))?;
        files.push(Blob { name, sha256, bytes: Bytes(bytes) });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// Returns the configuration of the adapter in a PEFT folder.
fn adapter_spec(folder: &Path) -> Result<AdapterSpec, TrainerError> {
    let path = folder.join("adapter_config.json");
    let text = fs::read(&path).map_err(TrainerError::io(&path))?;
    let refused = |why: String| TrainerError::Export(format!("adapter_config.json: {why}"));
    let fields = serde_json::from_slice(&text).map_err(|why| refused(why.to_string()))?;
    let config = peft::read(fields)
        .map_err(|refusals| refused(refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
    Ok(config.spec)
}
