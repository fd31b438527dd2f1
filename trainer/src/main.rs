//! `attune-trainer`: gets an address and a token, trains an adapter, and says how it went.

use std::process::ExitCode;

use anyhow::Context;
use attune_process::{log, parent};
use attune_trainer::{config::Config, run::run};
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let awake = attune_node::settle_for_training();
    let config = Config::parse();
    let _log = log::start(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")));
    if let Err(why) = awake {
        tracing::warn!(%why, "waiting threads will spin, which is slow beside other programs");
    }
    match start(config) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            tracing::error!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<bool> {
    if config.exit_with_parent {
        parent::exit_with_parent().context("watching the parent process")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(config));
    // A run that was taken away may still compute; nobody waits for it.
    runtime.shutdown_background();
    Ok(outcome?)
}
