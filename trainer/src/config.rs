//! What a trainer is told when it is started. Everything else comes with its [`RunSpec`](attune_domain::run::RunSpec).

use std::path::PathBuf;

use clap::Parser;
use secrecy::SecretString;

/// Trains one run on this machine and leaves. Its exit status is 0 when the platform has taken its last event.
#[derive(Debug, Parser)]
#[command(name = "attune-trainer", version)]
pub struct Config {
    /// Where the platform is, for example `http://127.0.0.1:8080`.
    #[arg(long, value_name = "URL")]
    pub api_url: String,

    /// The node's cache; base models stay in it between runs.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: PathBuf,

    /// The run's token. It names the run.
    #[arg(long, env = "ATTUNE_RUN_TOKEN", hide = true, hide_env_values = true)]
    pub token: SecretString,

    /// Leave when standard input ends, which it does when the parent process is gone.
    #[arg(long)]
    pub exit_with_parent: bool,
}
