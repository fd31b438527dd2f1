//! Commands and flags. The `///` lines are what `--help` shows.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{
    error::Result,
    up::{self, settings::UpArgs},
};

/// Fine-tune language models on your own machines, and talk to them
#[derive(Debug, Parser)]
#[command(name = "attune", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    /// The data folder: where `attune up` keeps everything, and where the other commands find its address and key
    #[arg(long, global = true, value_name = "DIR", env = "ATTUNE_DATA", default_value = ".attune")]
    data: PathBuf,
    /// The API's address [default: that of the data folder, then of ~/.config/attune/credentials.json]
    #[arg(long, global = true, value_name = "URL", env = "ATTUNE_API_URL")]
    api_url: Option<String>,
    /// The API key [default: as for --api-url]
    #[arg(long, global = true, value_name = "KEY", env = "ATTUNE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Print the API's JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole platform on this machine, and keep it up until Ctrl-C
    Up(Box<UpArgs>),
}

impl Cli {
    /// Does what was asked.
    pub(crate) async fn run(self) -> Result<()> {
        match self.command {
            Command::Up(args) => up::platform::up(&self.data, *args).await,
        }
    }
}
