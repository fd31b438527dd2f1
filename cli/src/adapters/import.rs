//! `attune adapters import`: uploads a folder in PEFT format as an adapter version.

use std::path::{Path, PathBuf};

use attune_domain::peft::{CONFIG, OTHER_FILES, TENSORS};
use clap::Args;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::Value;

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    output,
};

/// The flags of `attune adapters import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The folder with adapter_config.json and adapter_model.safetensors
    folder: PathBuf,
    /// The adapter's name [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// The base model that the adapter was trained over
    #[arg(long)]
    base_model: String,
    /// Assert that --base-model is the adapter's base, although the folder names it differently
    #[arg(long)]
    same_base: bool,
    /// The quantization of the base that the adapter was trained over: none, int8, nf4 or nf4-double [default: as the
    /// folder's attune_manifest.json states, or none]
    #[arg(long, value_name = "NAME")]
    quantization: Option<String>,
    /// Do not upload this file of the folder; can be repeated
    #[arg(long, value_name = "FILE")]
    skip: Vec<String>,
}

/// Uploads the folder; the API checks it.
///
/// # Errors
/// [`CliError`]: local errors, or that of the API, with every reason.
pub(crate) async fn import(client: &Client, args: &ImportArgs) -> Result<Value> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => folder_name(&args.folder)?,
    };
    let mut form = Form::new().text("name", name).text("base_model", args.base_model.clone());
    if args.same_base {
        let base = client.get(&["base_models", &args.base_model]).await?;
        form = form.text("base_digest", output::text(&base["digest"]));
    }
    if let Some(quantization) = &args.quantization {
        form = form.text("quantization", quantization.clone());
    }
    let (mut files, mut total) = (Vec::new(), 0);
    // Files of other names are not part of the adapter.
    let sent = [CONFIG, TENSORS].into_iter().chain(OTHER_FILES);
    for name in sent.filter(|name| !args.skip.iter().any(|skipped| skipped == name)) {
        let path = args.folder.join(name);
        if path.is_file() {
            total += path.metadata().doing(|| format!("read {}", path.display()))?.len();
            files.push((name, path));
        }
    }
    if files.is_empty() {
        return Err(CliError::Usage(format!("{} has no file of an adapter, such as {CONFIG}", args.folder.display())));
    }
    let bar = output::byte_bar("importing", total);
    for (name, path) in files {
        let (body, length) = Client::body(&path, bar.clone()).await?;
        form = form.part("files", Part::stream_with_length(body, length).file_name(name));
    }
    let view = client.json(client.request(Method::POST, &["adapters"]).multipart(form)).await;
    bar.finish_and_clear();
    view
}

fn folder_name(folder: &Path) -> Result<String> {
    let whole = folder.canonicalize().doing(|| format!("read {}", folder.display()))?;
    let name = whole.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| CliError::Usage("the folder has no name. Set --name.".into()))
}
