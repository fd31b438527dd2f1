//! The trainer's command line. Everything else is in its [`TaskSpec`](attune_domain::run::task::TaskSpec).

use std::path::PathBuf;

use attune_process::log::Format;
use clap::Parser;
use secrecy::SecretString;

/// Train one run on this machine, then exit. The exit status is 0 if the platform accepted the last event.
#[derive(Debug, Parser)]
#[command(name = "attune-trainer", version)]
pub struct Config {
    /// The platform's base URL, for example `http://127.0.0.1:8080`.
    #[arg(long, value_name = "URL")]
    pub api_url: String,

    /// The node's cache directory. Base models stay in it between runs.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: PathBuf,

    /// The run's bearer token, which identifies the run.
    #[arg(long, env = "ATTUNE_RUN_TOKEN", hide = true, hide_env_values = true)]
    pub token: SecretString,

    /// The format of the log: `text`, or `json`, one object a line.
    #[arg(long, env = "ATTUNE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: Format,

    /// Exit when standard input closes, which happens when the parent process exits.
    #[arg(long)]
    pub exit_with_parent: bool,
}
