//! The replica's command line. Everything else comes from the platform.

use std::{net::SocketAddr, path::PathBuf};

use attune_process::log::Format;
use clap::Parser;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

/// Serve one base model with many adapters, for an Attune platform.
///
/// The platform's scheduler starts this program. The token must be in ATTUNE_REPLICA_TOKEN.
#[derive(Debug, Parser)]
#[command(name = "attune-serving", version)]
pub struct Config {
    /// The platform's base URL, for example http://127.0.0.1:8080
    #[arg(long)]
    pub api_url: String,
    /// The node's cache directory for base models and adapters
    #[arg(long)]
    pub cache_dir: PathBuf,
    /// The address to listen on; port 0 selects a free port
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The replica's token, which callers must send too
    #[arg(long, env = "ATTUNE_REPLICA_TOKEN", hide_env_values = true, hide = true)]
    pub token: SecretString,
    /// The maximum number of answers that run concurrently; more wait
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_batch: u16,
    /// Exit when standard input closes
    #[arg(long)]
    pub exit_with_parent: bool,
    /// The log filter
    #[arg(long, env = "ATTUNE_LOG", default_value = "info")]
    pub log: EnvFilter,
    /// The format of the log: `text`, or `json`, one object a line
    #[arg(long, env = "ATTUNE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: Format,
    /// The address that publishes metrics. Default: none
    #[arg(long, env = "ATTUNE_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
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
