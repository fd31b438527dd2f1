//! What a replica is started with. Everything else it learns from the platform.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

/// Serves one base model with many adapters, for an Attune platform.
///
/// Started by the platform's scheduler. The token must be in ATTUNE_REPLICA_TOKEN.
#[derive(Debug, Parser)]
#[command(name = "attune-serving", version)]
pub struct Config {
    /// Where the platform is: http://127.0.0.1:8080
    #[arg(long)]
    pub api_url: String,
    /// The node's cache of base models and adapters
    #[arg(long)]
    pub cache_dir: PathBuf,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Who this replica is; also what its callers must show
    #[arg(long, env = "ATTUNE_REPLICA_TOKEN", hide_env_values = true, hide = true)]
    pub token: SecretString,
    /// Requests that are answered at the same time; more of them wait
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_batch: u16,
    /// Leave when standard input ends
    #[arg(long)]
    pub exit_with_parent: bool,
    /// What to log
    #[arg(long, env = "ATTUNE_LOG", default_value = "info")]
    pub log: EnvFilter,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Config::command().debug_assert();
    }
}
