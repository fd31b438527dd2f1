//! `attune-trainer`: gets an address and a token, trains an adapter, and says how it went.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use attune_trainer::{config::Config, run::run};
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<ExitCode> {
    let awake = attune_node::settle_for_training();
    let config = Config::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if let Err(why) = awake {
        tracing::warn!(%why, "waiting threads will spin, which is slow beside other programs");
    }
    if config.exit_with_parent {
        attune_node::exit_with_parent().context("watching the parent process")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(config));
    // A run that was taken away may still compute; nobody waits for it.
    runtime.shutdown_background();
    Ok(if outcome? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
