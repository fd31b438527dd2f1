//! `attune adapters`: adapter versions from fine-tuning jobs and imports, their aliases, and their export.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::{
    adapters::{
        alias::{self, AliasCommand},
        export,
        exports::{self, ExportsCommand, Wanted},
        import::{self, ImportArgs},
        promotion::{self, PromotionCommand},
        pull,
        residency::{self, ResidencyCommand},
    },
    connection::client::Client,
    error::{CliError, Result},
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
    #[command(flatten)]
    Promotion(PromotionCommand),
    #[command(flatten)]
    Residency(ResidencyCommand),
    /// Download an adapter version into a new folder, as one archive, or in another form that a node writes
    Export(ExportArgs),
    /// Manage the exports that nodes write
    #[command(subcommand)]
    Exports(ExportsCommand),
    /// Import an adapter in PEFT format that was trained elsewhere, as the next version of NAME
    Import(ImportArgs),
}

/// The arguments of `attune adapters export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The version, as for `show`; for a form that a node writes, also the model name of a checkpoint
    adapter: String,
    /// The format of the export
    #[arg(long, value_enum, default_value = "peft")]
    format: Format,
    /// The number type of the weights: f32, f16 or bf16 (merged), or f32, f16, q8_0 or q4_k_m (gguf)
    #[arg(long)]
    dtype: Option<String>,
    /// The base weights that the adapter is merged into: dequantized (those of the training) or original
    #[arg(long)]
    base_weights: Option<String>,
    /// The maximum size of a file of merged weights, in bytes
    #[arg(long, value_name = "BYTES")]
    shard_bytes: Option<u64>,
    /// Weight the errors of q4_k_m with an importance matrix, computed from the rows of the adapter's job
    #[arg(long)]
    imatrix: bool,
    /// The ID of another dataset to compute the importance matrix from
    #[arg(long, value_name = "FILE_ID")]
    imatrix_file: Option<String>,
    /// The folder to create, which may exist if it is empty; with `--format tar`, the file to create
    folder: PathBuf,
}

/// The export formats of an adapter version.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// A folder that Hugging Face PEFT loads without changes
    Peft,
    /// The same folder as one tar archive
    Tar,
    /// The base model with the adapter merged into it, as a Hugging Face folder
    Merged,
    /// The merged model as a GGUF file with an Ollama Modelfile
    Gguf,
    /// The adapter alone as a GGUF file
    GgufAdapter,
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
        AdaptersCommand::Promotion(command) => promotion::run(client, command, as_json).await,
        AdaptersCommand::Residency(command) => residency::run(client, command, as_json).await,
        AdaptersCommand::Import(args) => {
            let view = import::import(client, &args).await?;
            if as_json { output::json(&view) } else { show(&view) }
        }
        AdaptersCommand::Exports(command) => exports::run(client, command, as_json).await,
        AdaptersCommand::Export(args) => export(client, args, as_json).await,
    }
}

async fn export(client: &Client, args: ExportArgs, as_json: bool) -> Result<()> {
    let has_options = args.dtype.is_some() || args.base_weights.is_some() || args.shard_bytes.is_some();
    let has_options = has_options || args.imatrix || args.imatrix_file.is_some();
    let ExportArgs { adapter, format, dtype, base_weights, shard_bytes, imatrix, imatrix_file, folder } = args;
    let written = match format {
        Format::Merged => "merged",
        Format::Gguf => "gguf",
        Format::GgufAdapter => "gguf_adapter",
        Format::Peft | Format::Tar if has_options => {
            let why = "--dtype, --base-weights, --shard-bytes and --imatrix are for --format merged and gguf";
            return Err(CliError::Usage(why.into()));
        }
        Format::Tar => {
            let view = export::archive(client, &adapter, &folder).await?;
            if as_json {
                return output::json(&view);
            }
            return output::line(&format!("{}: {}", folder.display(), output::text(&view["model"])));
        }
        // A checkpoint is no version: a node writes its folder.
        Format::Peft if adapter.contains(":ckpt-step-") => "peft",
        Format::Peft => {
            let view = export::folder(client, &adapter, &folder).await?;
            return if as_json { output::json(&view) } else { exported(&view, &folder) };
        }
    };
    let wanted = Wanted { format: written, dtype, base_weights, shard_bytes, imatrix, imatrix_file };
    let view = exports::export(client, &adapter, &wanted, &folder).await?;
    if as_json { output::json(&view) } else { exported(&view, &folder) }
}

fn exported(view: &Value, folder: &std::path::Path) -> Result<()> {
    let count = view["files"].as_array().map_or(0, Vec::len);
    output::line(&format!("{}: {count} files of {}", folder.display(), output::text(&view["model"])))
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
