//! `attune models`: imports, lists, inspects, deletes and converts models.

use std::path::{Path, PathBuf};

use attune_domain::digest::Sha256;
use attune_gguf::{
    convert::{Progress, convert_with},
    folder::{Folder, ModelFile, check_folder},
};
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    files::digest,
    output,
};

/// The subcommands of `attune models`.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Import a base model from a GGUF file or a Hugging Face folder
    #[command(
        after_help = "A GGUF file is converted to a Hugging Face folder on this machine first. Files that the platform \
                            has already are not uploaded again, so repeat an interrupted import to resume it."
    )]
    Import {
        /// The .gguf file, or the folder with config.json, tokenizer.json and *.safetensors
        path: PathBuf,
        /// The model's name [default: the name of the file or folder]
        #[arg(long)]
        name: Option<String>,
        /// The folder for the converted model during the import [default: the system's temporary folder]
        #[arg(long, value_name = "DIR")]
        work_dir: Option<PathBuf>,
        /// Import for every project of the installation; needs a key with the scope `installation`, for which it is the
        /// default
        #[arg(long, conflicts_with = "project_only")]
        installation: bool,
        /// Import for the key's project only; the default for keys without the scope `installation`
        #[arg(long)]
        project_only: bool,
    },
    /// List the base models and the fine-tuned models
    List,
    /// Retrieve a model
    Get {
        /// The model's name, such as ft:… for a fine-tuned model
        model: String,
    },
    /// Delete a fine-tuned model, or a base model that is not in use
    Delete {
        /// The model's name
        model: String,
    },
    /// Convert a GGUF file to a Hugging Face folder, without a platform
    Convert {
        /// The GGUF file
        gguf: PathBuf,
        /// The folder to create; it must not exist
        folder: PathBuf,
    },
}

/// Runs `attune models convert`, which needs no platform.
///
/// # Errors
/// [`CliError::Failed`]: the file is not a model, the folder exists, the disk is full.
pub(crate) fn convert(gguf: &Path, folder: &Path, json: bool) -> Result<()> {
    let converted = convert_file(gguf, folder)?;
    if json {
        let names: Vec<&str> = converted.files.iter().map(|file| file.name.as_str()).collect();
        return output::json(&json!({"folder": folder, "parameters": converted.parameters, "files": names}));
    }
    output::line(&format!("{}: {} weights in {} files", folder.display(), converted.parameters, converted.files.len()))
}

/// Runs any other command.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: ModelsCommand, as_json: bool) -> Result<()> {
    match command {
        ModelsCommand::Import { path, name, work_dir, installation, project_only } => {
            let owner = match (installation, project_only) {
                (true, _) => Some("installation"),
                (false, true) => Some("project"),
                (false, false) => None,
            };
            let view = import(client, &path, name, work_dir.as_deref(), owner).await?;
            if as_json { output::json(&view) } else { show_base(&view) }
        }
        ModelsCommand::List => {
            let models = client.get(&["models"]).await?;
            if as_json {
                return output::json(&models);
            }
            let rows = models["data"].as_array().into_iter().flatten();
            let rows = rows.map(|model| {
                vec![output::text(&model["id"]), output::text(&model["owned_by"]), output::moment(&model["created"])]
            });
            output::table(
                &["MODEL", "OWNER", "CREATED (UTC)"],
                rows.collect(),
                "No models yet. Import a base model with `attune models import PATH`.",
            )
        }
        ModelsCommand::Get { model } => {
            let view = match client.get(&["base_models", &model]).await {
                Err(CliError::NotFound { .. }) => client.get(&["models", &model]).await?,
                answer => answer?,
            };
            if as_json { output::json(&view) } else { show_base(&view) }
        }
        ModelsCommand::Delete { model } => {
            // Only the names of fine-tuned models start with `ft:` or contain `@`.
            let of = if model.starts_with("ft:") || model.contains('@') { "models" } else { "base_models" };
            let view = client.json(client.request(Method::DELETE, &[of, &model])).await?;
            if as_json { output::json(&view) } else { output::line(&format!("deleted {model}")) }
        }
        ModelsCommand::Convert { gguf, folder } => convert(&gguf, &folder, as_json),
    }
}

fn show_base(view: &Value) -> Result<()> {
    let files = view["files"].as_array().map(|files| {
        let bytes: u64 = files.iter().filter_map(|file| file["bytes"].as_u64()).sum();
        format!("{} ({})", files.len(), output::bytes(&bytes.into()))
    });
    output::fields(&[
        ("model", if view["name"].is_string() { output::text(&view["name"]) } else { output::text(&view["id"]) }),
        ("owner", output::text(if view["owner"].is_null() { &view["owned_by"] } else { &view["owner"] })),
        ("family", output::text(&view["architecture"]["family"])),
        ("layers", output::text(&view["architecture"]["num_hidden_layers"])),
        ("context", output::text(&view["architecture"]["max_position_embeddings"])),
        ("files", files.unwrap_or_default()),
        ("digest", output::text(&view["digest"])),
        ("created", output::moment(if view["created_at"].is_null() { &view["created"] } else { &view["created_at"] })),
    ])
}

async fn import(
    client: &Client,
    path: &Path,
    name: Option<String>,
    work_dir: Option<&Path>,
    owner: Option<&str>,
) -> Result<Value> {
    let named = name.or_else(|| name_of(path));
    let name = named.ok_or_else(|| CliError::Usage("the path has no file name. Set --name.".into()))?;
    if path.is_dir() {
        let folder = check_folder(path).map_err(|e| CliError::Failed(e.to_string()))?;
        return upload(client, &folder, &name, owner).await;
    }
    if !path.exists() {
        return Err(CliError::Usage(format!("there is no file or folder {}", path.display())));
    }
    let work = match work_dir {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let work = work.doing(|| "create a temporary folder".into())?;
    let folder = convert_file(path, &work.path().join("model"))?;
    upload(client, &folder, &name, owner).await
}

/// Returns a model's default name: `SmolLM2-135M-Instruct.Q4_1` for `…/SmolLM2-135M-Instruct.Q4_1.gguf`.
fn name_of(path: &Path) -> Option<String> {
    let full = path.canonicalize().ok()?;
    let name = full.file_name()?.to_str()?;
    Some(name.strip_suffix(".gguf").unwrap_or(name).to_owned())
}

fn convert_file(gguf: &Path, folder: &Path) -> Result<Folder> {
    let bar = output::byte_bar("converting", 0);
    let mut tell = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    // Blocking is fine: this command runs no other task.
    let converted = tokio::task::block_in_place(|| convert_with(gguf, folder, &mut tell));
    bar.finish_and_clear();
    converted.map(|converted| converted.folder).map_err(|e| CliError::Failed(e.to_string()))
}

async fn upload(client: &Client, folder: &Folder, name: &str, owner: Option<&str>) -> Result<Value> {
    let total = folder.files.iter().map(|file| file.size.0).sum();
    let digests = hash(folder, total)?;
    let bar = output::byte_bar("uploading", total);
    for (file, sha256) in folder.files.iter().zip(&digests) {
        let digest = sha256.to_string();
        let blob = ["base_models", "blobs", &digest];
        if client.exists(&blob).await? {
            bar.inc(file.size.0);
            continue;
        }
        client.put_file(&blob, &folder.path.join(&file.name), bar.clone()).await?;
    }
    bar.finish_and_clear();
    let files: Vec<Value> = folder.files.iter().zip(&digests).map(|(file, sha256)| entry(file, *sha256)).collect();
    let mut body = json!({"name": name, "files": files});
    if let Some(owner) = owner {
        body["owner"] = owner.into();
    }
    client.json(client.request(Method::POST, &["base_models"]).json(&body)).await
}

fn entry(file: &ModelFile, sha256: Sha256) -> Value {
    json!({"name": file.name, "sha256": sha256, "bytes": file.size})
}

fn hash(folder: &Folder, total: u64) -> Result<Vec<Sha256>> {
    let bar = output::byte_bar("reading", total);
    let digests = tokio::task::block_in_place(|| {
        folder.files.iter().map(|file| digest::of_file(&folder.path.join(&file.name), |count| bar.inc(count))).collect()
    });
    bar.finish_and_clear();
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_like_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Smol.Q4_1.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(name_of(&file).as_deref(), Some("Smol.Q4_1"));
        assert_eq!(name_of(&folder.path().join(".")), name_of(folder.path()));
    }
}
