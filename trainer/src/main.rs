//! `attune-trainer`: trains one adapter for the platform and reports the outcome.

use std::process::ExitCode;

use anyhow::Context;
use attune_domain::run::EXIT_INTERRUPTED;
use attune_process::{log, parent};
use attune_trainer::{
    config::Config,
    run::{RunEnd, run},
};
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let awake = attune_node::settle_for_training();
    let config = Config::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _log = log::start("attune-trainer", filter, config.log_format);
    if let Err(why) = awake {
        tracing::warn!(%why, "OpenMP threads will busy-wait, which is slow while other programs run");
    }
    match start(config) {
        Ok(RunEnd::Accepted) => ExitCode::SUCCESS,
        Ok(RunEnd::Refused) => ExitCode::FAILURE,
        Ok(RunEnd::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Err(why) => {
            tracing::error!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<RunEnd> {
    if config.exit_with_parent {
        parent::exit_with_parent().context("watching the parent process")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(config));
    // After the platform has ended the run, its tensor thread may still compute; do not wait for it.
    runtime.shutdown_background();
    Ok(outcome?)
}
