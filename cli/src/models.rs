//! `attune models`: imports, lists, inspects, deletes and converts models.

use std::path::{Path, PathBuf};

use attune_domain::{digest::Sha256, hub_origin::HubOrigin};
use attune_gguf::{
    convert::{Blocks, Progress, convert_with},
    folder::{Folder, ModelFile, check_folder},
};
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    connection::{client::Client, config},
    error::{CliError, Doing, Result},
    files::digest,
    hub::{
        address::{HubModel, PREFIX},
        client::{Hub, Patience},
        download,
    },
    output,
};

/// The subcommands of `attune models`.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Import a base model from a GGUF file, a Hugging Face folder or a repository of a model hub
    #[command(
        after_help = "A GGUF file is converted to a Hugging Face folder on this machine first, and a repository is \
                            downloaded to this machine. Tensors of the types Q4_0, Q4_1 and Q8_0 keep their blocks. \
                            Files that the platform has already are not uploaded again, \
                            so repeat an interrupted import to resume it.\n\nHF_ENDPOINT names another hub than \
                            huggingface.co, and HF_TOKEN the token for it."
    )]
    Import {
        /// The .gguf file, or the folder with config.json, tokenizer.json and *.safetensors, or hf:OWNER/NAME@REVISION
        path: PathBuf,
        /// The model's name [default: the name of the file, folder or repository]
        #[arg(long)]
        name: Option<String>,
        /// The folder for the model during the import [default: the system's temporary folder; for a repository,
        /// attune/hub in the user's cache folder]
        #[arg(long, value_name = "DIR")]
        work_dir: Option<PathBuf>,
        /// Convert all tensors of a GGUF file to f32; other engines than attune need it
        #[arg(long)]
        dequantize: bool,
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
    /// Convert a GGUF file to a Hugging Face folder in f32, without a platform
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
    let converted = convert_file(gguf, folder, Blocks::Dequantized)?;
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
        ModelsCommand::Import { path, name, work_dir, dequantize, installation, project_only } => {
            let owner = match (installation, project_only) {
                (true, _) => Some("installation"),
                (false, true) => Some("project"),
                (false, false) => None,
            };
            let blocks = if dequantize { Blocks::Dequantized } else { Blocks::Kept };
            let view = import(client, &path, Importing { name, work_dir: work_dir.as_deref(), owner, blocks }).await?;
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
        ("origin", origin_text(&view["origin"])),
        ("license", license_text(view)),
        ("created", output::moment(if view["created_at"].is_null() { &view["created"] } else { &view["created_at"] })),
    ])
}

fn origin_text(origin: &Value) -> String {
    let [host, repository, revision, commit] =
        ["host", "repository", "revision", "commit"].map(|field| output::text(&origin[field]));
    if repository.is_empty() { String::new() } else { format!("{repository}@{revision} of {host}, commit {commit}") }
}

/// Returns the licence of a base model, or nothing for a fine-tuned model.
fn license_text(view: &Value) -> String {
    match &view["license"] {
        Value::String(license) => license.clone(),
        _ if view["object"] == "base_model" => "unknown".to_owned(),
        _ => String::new(),
    }
}

/// The options of an import.
struct Importing<'a> {
    name: Option<String>,
    work_dir: Option<&'a Path>,
    owner: Option<&'static str>,
    blocks: Blocks,
}

async fn import(
    client: &Client,
    path: &Path,
    Importing { name, work_dir, owner, blocks }: Importing<'_>,
) -> Result<Value> {
    if let Some(address) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) {
        return import_from_hub(client, HubModel::parse(address)?, name, work_dir, owner).await;
    }
    let named = name.or_else(|| name_of(path));
    let name = named.ok_or_else(|| CliError::Usage("the path has no file name. Set --name.".into()))?;
    if path.is_dir() {
        let folder = check_folder(path).map_err(|e| CliError::Failed(e.to_string()))?;
        return upload(client, &folder, &name, owner, None).await;
    }
    if !path.exists() {
        return Err(CliError::Usage(format!("there is no file or folder {}", path.display())));
    }
    let work = match work_dir {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let work = work.doing(|| "create a temporary folder".into())?;
    let folder = convert_file(path, &work.path().join("model"), blocks)?;
    upload(client, &folder, &name, owner, None).await
}

/// Downloads a repository of a model hub, and imports it. The download stays until the import has succeeded.
async fn import_from_hub(
    client: &Client,
    model: HubModel,
    name: Option<String>,
    work_dir: Option<&Path>,
    owner: Option<&str>,
) -> Result<Value> {
    let work = match work_dir {
        Some(folder) => folder.to_owned(),
        None => config::cache_folder()
            .map(|folder| folder.join("hub"))
            .ok_or_else(|| CliError::Usage("neither HOME nor XDG_CACHE_HOME is set. Set --work-dir.".into()))?,
    };
    let hub = Hub::new(config::hub_endpoint(), config::hub_token(), Patience::default())?;
    let name = name.unwrap_or_else(|| model.base_name());
    let resolved = download::resolve(&hub, model).await?;
    let folder = work.join(format!("{}--{}", resolved.model.repository.replace('/', "--"), resolved.commit));
    download::all(&hub, &resolved, &folder).await?;
    let checked = check_folder(&folder).map_err(|e| CliError::Failed(e.to_string()))?;
    let checked = Folder { license: resolved.license(), ..checked };
    let origin = HubOrigin {
        host: hub.host(),
        repository: resolved.model.repository,
        revision: resolved.model.revision,
        commit: resolved.commit,
    };
    let view = upload(client, &checked, &name, owner, Some(&origin)).await?;
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        output::note(&format!("the download {} could not be removed: {error}", folder.display()));
    }
    Ok(view)
}

/// Returns a model's default name: `SmolLM2-135M-Instruct.Q4_1` for `…/SmolLM2-135M-Instruct.Q4_1.gguf`.
fn name_of(path: &Path) -> Option<String> {
    let full = path.canonicalize().ok()?;
    let name = full.file_name()?.to_str()?;
    Some(name.strip_suffix(".gguf").unwrap_or(name).to_owned())
}

fn convert_file(gguf: &Path, folder: &Path, blocks: Blocks) -> Result<Folder> {
    let bar = output::byte_bar("converting", 0);
    let mut tell = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    // Blocking is fine: this command runs no other task.
    let converted = tokio::task::block_in_place(|| convert_with(gguf, folder, blocks, &mut tell));
    bar.finish_and_clear();
    converted.map(|converted| converted.folder).map_err(|e| CliError::Failed(e.to_string()))
}

async fn upload(
    client: &Client,
    folder: &Folder,
    name: &str,
    owner: Option<&str>,
    origin: Option<&HubOrigin>,
) -> Result<Value> {
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
    if let Some(origin) = origin {
        body["origin"] = json!(origin);
    }
    if let Some(license) = &folder.license {
        body["license"] = json!(license);
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
    fn an_origin_is_one_line_and_may_be_missing() {
        let origin = json!({"host": "h", "repository": "a/b", "revision": "main", "commit": "c1"});
        assert_eq!(origin_text(&origin), "a/b@main of h, commit c1");
        assert_eq!(origin_text(&Value::Null), "");
    }

    #[test]
    fn a_base_without_a_known_licence_says_so() {
        assert_eq!(license_text(&json!({"object": "base_model", "license": "mit"})), "mit");
        assert_eq!(license_text(&json!({"object": "base_model", "license": null})), "unknown");
        assert_eq!(license_text(&json!({"object": "model"})), "");
    }

    #[test]
    fn a_model_is_called_like_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Smol.Q4_1.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(name_of(&file).as_deref(), Some("Smol.Q4_1"));
        assert_eq!(name_of(&folder.path().join(".")), name_of(folder.path()));
    }
}
