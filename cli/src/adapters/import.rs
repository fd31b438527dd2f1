//! `attune adapters import`: a folder in PEFT's form, on its way in.

use std::path::{Path, PathBuf};

use attune_domain::{
    manifest,
    peft::{CONFIG, TENSORS},
};
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

/// What is sent of a folder, where it is there; whatever else lies in it is no part of the adapter.
const SENT: [&str; 9] = [
    CONFIG,
    TENSORS,
    "README.md",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    manifest::FILE,
];

/// What to bring, and as what.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A folder with adapter_config.json and adapter_model.safetensors
    folder: PathBuf,
    /// What to call the adapter [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// The base model that it corrects
    #[arg(long)]
    base_model: String,
    /// The folder calls its base something else, but it is this very model
    #[arg(long)]
    same_base: bool,
    /// The quantization of the base that it was trained over: none, int8, nf4 or nf4-double [default: what the folder's
    /// attune_manifest.json says, or else none]
    #[arg(long, value_name = "NAME")]
    quantization: Option<String>,
    /// Do not send this file of the folder; can be given more than once
    #[arg(long, value_name = "FILE")]
    skip: Vec<String>,
}

/// Sends the folder; every check is the platform's.
///
/// # Errors
/// [`CliError`]: this machine's, or the API's, with every reason.
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
    for name in SENT.iter().filter(|name| !args.skip.iter().any(|skipped| skipped == *name)) {
        let path = args.folder.join(name);
        if path.is_file() {
            total += path.metadata().doing(|| format!("read {}", path.display()))?.len();
            files.push((*name, path));
        }
    }
    if files.is_empty() {
        return Err(CliError::Usage(format!(
            "{} holds no file of an adapter, such as {CONFIG}",
            args.folder.display()
        )));
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
    name.map(str::to_owned).ok_or_else(|| CliError::Usage("the folder has no name; give one with --name".into()))
}
