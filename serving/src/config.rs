//! The replica's command line. Everything else comes from the platform.

use std::{net::SocketAddr, path::PathBuf};

use attune_domain::serve::Engine;
use attune_process::log::Format;
use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

/// Serve one base model with many adapters, for an Attune platform.
///
/// The platform's scheduler starts this program. The token must be in ATTUNE_REPLICA_TOKEN.
#[derive(Debug, Parser)]
#[command(name = "attune-serving", version)]
pub struct Arguments {
    /// The options of all commands
    #[command(flatten)]
    pub config: Config,
    /// The command. Default: serve with the engine of this program
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A command for another engine, which runs in a container next to this program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch the base model into the cache, and link its folder
    Fetch {
        /// The path of the link
        #[arg(long)]
        link: PathBuf,
    },
    /// Serve with another engine
    Bridge(BridgeOptions),
}

/// The options of a bridge.
#[derive(Debug, Args)]
pub struct BridgeOptions {
    /// The engine: vllm or lorax
    #[arg(long, value_parser = other_engine)]
    pub engine: Engine,
    /// The engine's base URL, for example http://127.0.0.1:18000
    #[arg(long)]
    pub engine_url: String,
    /// The highest rank of an adapter that the engine loads
    #[arg(long)]
    pub max_lora_rank: u32,
}

fn other_engine(name: &str) -> Result<Engine, String> {
    match name.parse() {
        Ok(engine @ (Engine::Vllm | Engine::Lorax)) => Ok(engine),
        _ => Err("use vllm or lorax".into()),
    }
}

/// The options of all commands.
#[derive(Debug, Args)]
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
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_bridge_has_another_engine() {
        let parse = |engine| {
            let common = ["attune-serving", "--api-url", "http://a", "--cache-dir", "/c"];
            let bridge = ["bridge", "--engine", engine, "--engine-url", "http://127.0.0.1:1", "--max-lora-rank", "8"];
            Arguments::try_parse_from(common.into_iter().chain(["--token", "t"]).chain(bridge))
        };
        let Some(Command::Bridge(options)) = parse("lorax").unwrap().command else { panic!("no bridge") };
        assert_eq!((options.engine, options.max_lora_rank), (Engine::Lorax, 8));
        assert!(parse("attune").unwrap_err().to_string().contains("use vllm or lorax"));
    }
}
