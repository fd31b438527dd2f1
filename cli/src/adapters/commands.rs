//! `attune adapters`: adapter versions from fine-tuning jobs and imports, their aliases, and their export.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use futures::StreamExt;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::{
    adapters::{
        alias::{self, AliasCommand},
        import::{self, ImportArgs},
        plain_name::plain_name,
        pull,
    },
    connection::client::Client,
    error::{CliError, Doing, Result},
    files::digest,
    output,
};

/// The subcommands of `attune adapters`.
#[derive(Debug, Subcommand)]
pub(crate) enum AdaptersCommand {
    /// List all versions of all adapters, newest first
    List,
    /// Retrieve an adapter version
    #[command(alias = "get")]
    Show {
        /// The version: its model's name (ft:…), its ID, NAME@ALIAS, NAME@NUMBER, or NAME for the newest
        adapter: String,
        /// Print the version's manifest, which records its provenance
        #[arg(long)]
        manifest: bool,
    },
    /// List the versions of one adapter, newest first
    Versions {
        /// The adapter's name
        adapter: String,
    },
    /// Download an adapter version into a folder; resumes a pull that was interrupted
    Pull {
        /// The version: its model's name (ft:…) or its ID
        adapter: String,
        /// The folder to create
        folder: PathBuf,
    },
    /// Manage aliases, such as NAME@prod, that can be moved from version to version
    #[command(subcommand)]
    Alias(AliasCommand),
    /// Download an adapter version into a new folder, or as one archive
    Export {
        /// The version, as for `show`
        adapter: String,
        /// The format of the export
        #[arg(long, value_enum, default_value = "peft")]
        format: Format,
        /// The folder to create, which may exist if it is empty; with `--format tar`, the file to create
        folder: PathBuf,
    },
    /// Import an adapter in PEFT format that was trained elsewhere, as the next version of NAME
    Import(ImportArgs),
}

/// The export formats of an adapter version.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// A folder that Hugging Face PEFT loads without changes
    Peft,
    /// The same folder as one tar archive
    Tar,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: AdaptersCommand, as_json: bool) -> Result<()> {
    match command {
        AdaptersCommand::List => {
            let adapters = client.list(&["adapters"], None).await?;
            if as_json { output::json(&adapters) } else { table(&adapters) }
        }
        AdaptersCommand::Show { adapter, manifest: true } => {
            output::json(&client.get(&["adapters", &adapter, "manifest"]).await?)
        }
        AdaptersCommand::Show { adapter, manifest: false } => {
            let view = client.get(&["adapters", &adapter]).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        AdaptersCommand::Pull { adapter, folder } => {
            let view = pull::pull(client, &adapter, &folder).await?;
            if as_json {
                return output::json(&view);
            }
            output::line(&format!("{}: {}", folder.display(), output::text(&view["model"])))
        }
        AdaptersCommand::Versions { adapter } => {
            let versions = client.list(&["adapters", &adapter, "versions"], None).await?;
            if as_json { output::json(&versions) } else { table(&versions) }
        }
        AdaptersCommand::Alias(command) => alias::run(client, command, as_json).await,
        AdaptersCommand::Import(args) => {
            let view = import::import(client, &args).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        AdaptersCommand::Export { adapter, format: Format::Tar, folder: file } => {
            let view = archive(client, &adapter, &file).await?;
            if as_json {
                return output::json(&view);
            }
            output::line(&format!("{}: {}", file.display(), output::text(&view["model"])))
        }
        AdaptersCommand::Export { adapter, format: Format::Peft, folder } => {
            let view = export(client, &adapter, &folder).await?;
            if as_json {
                return output::json(&view);
            }
            let count = view["files"].as_array().map_or(0, Vec::len);
            output::line(&format!("{}: {count} files of {}", folder.display(), output::text(&view["model"])))
        }
    }
}

fn table(adapters: &Value) -> Result<()> {
    let rows = adapters["data"].as_array().into_iter().flatten().map(|adapter| {
        let aliases: Vec<String> = adapter["aliases"].as_array().into_iter().flatten().map(output::text).collect();
        vec![
            format!("{}@{}", output::text(&adapter["name"]), output::text(&adapter["version"])),
            aliases.join(", "),
            output::text(&adapter["model"]),
            output::text(&adapter["base_model"]),
            output::moment(&adapter["created_at"]),
        ]
    });
    let headings = ["ADAPTER", "ALIASES", "MODEL", "BASE", "CREATED (UTC)"];
    let none = "No adapters yet. Create one with `attune jobs create` or `attune adapters import`.";
    output::table(&headings, rows.collect(), none)
}

fn show(view: &Value) -> Result<()> {
    let aliases: Vec<String> = view["aliases"].as_array().into_iter().flatten().map(output::text).collect();
    output::fields(&[
        ("name", output::text(&view["name"])),
        ("version", output::text(&view["version"])),
        ("aliases", aliases.join(", ")),
        ("model", output::text(&view["model"])),
        ("adapter", output::text(&view["id"])),
        ("base", output::text(&view["base_model"])),
        ("job", output::text(&view["fine_tuning_job"])),
        ("created", output::moment(&view["created_at"])),
    ])?;
    for file in view["files"].as_array().into_iter().flatten() {
        let (name, size) = (output::text(&file["name"]), output::bytes(&file["bytes"]));
        output::line(&format!("file   {name}  {size}  sha256 {}", output::text(&file["sha256"])))?;
    }
    Ok(())
}

/// Exports a version into `folder`. Writes a temporary folder next to it, checks every digest and then renames it, so
/// that `folder` is either complete or missing.
async fn export(client: &Client, adapter: &str, folder: &Path) -> Result<Value> {
    let there = folder.exists();
    if there && std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_some()) {
        let taken =
            format!("{} exists already and is not empty. Export into a new or an empty folder.", folder.display());
        return Err(CliError::Usage(taken));
    }
    let view = client.get(&["adapters", adapter]).await?;
    let files = view["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let total = files.iter().filter_map(|file| file["bytes"].as_u64()).sum();
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).doing(|| format!("create the folder {}", parent.display()))?;
    let half = tempfile::Builder::new().prefix(".attune-export-").tempdir_in(parent);
    let half = half.doing(|| format!("create a folder in {}", parent.display()))?;
    let whole = half.path().join("adapter");
    std::fs::create_dir(&whole).doing(|| format!("create the folder {}", whole.display()))?;
    let bar = output::byte_bar("exporting", total);
    for file in files {
        download(client, adapter, file, &whole, &bar).await?;
    }
    bar.finish_and_clear();
    // A rename onto an empty folder replaces it; onto a folder with content it fails.
    std::fs::rename(&whole, folder).doing(|| format!("rename the export to {}", folder.display()))?;
    Ok(view)
}

/// Exports a version as the tar archive `file`. Writes a temporary file next to it and then renames it, so that `file`
/// is either complete or missing.
async fn archive(client: &Client, adapter: &str, file: &Path) -> Result<Value> {
    if file.exists() {
        return Err(CliError::Usage(format!("{} exists already. Use the name of a new file.", file.display())));
    }
    let view = client.get(&["adapters", adapter]).await?;
    let id = output::text(&view["id"]); // an alias may be moved in the meantime
    let answer = client.send(client.request(Method::GET, &["adapters", &id, "export"])).await?;
    let total = answer.content_length().unwrap_or(0);
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).doing(|| format!("create the folder {}", parent.display()))?;
    let half = tempfile::Builder::new().prefix(".attune-export-").tempfile_in(parent);
    let half = half.doing(|| format!("create a file in {}", parent.display()))?;
    let cannot = || format!("write {}", file.display());
    let mut out = tokio::fs::File::from_std(half.reopen().doing(cannot)?);
    let bar = output::byte_bar("exporting", total);
    let mut stream = answer.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| client.unreachable(&e))?;
        out.write_all(&bytes).await.doing(cannot)?;
        bar.inc(bytes.len() as u64);
    }
    out.sync_all().await.doing(cannot)?;
    bar.finish_and_clear();
    half.persist_noclobber(file).map_err(|e| e.error).doing(cannot)?;
    Ok(view)
}

async fn download(client: &Client, adapter: &str, file: &Value, folder: &Path, bar: &ProgressBar) -> Result<()> {
    let name = plain_name(&file["name"])?;
    let answer = client.send(client.request(Method::GET, &["adapters", adapter, "files", name])).await?;
    let path = folder.join(name);
    let cannot = || format!("write {}", path.display());
    let mut out = tokio::fs::File::create(&path).await.doing(cannot)?;
    let mut running = digest::Running::default();
    let mut stream = answer.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| client.unreachable(&e))?;
        running.add(&bytes);
        out.write_all(&bytes).await.doing(cannot)?;
        bar.inc(bytes.len() as u64);
    }
    out.sync_all().await.doing(cannot)?;
    let found = running.finish().to_string();
    let expected = output::text(&file["sha256"]);
    if found != expected {
        let torn = format!("{name} has SHA-256 {found}, expected {expected}. Nothing was written; try again.");
        return Err(CliError::Failed(torn));
    }
    Ok(())
}
