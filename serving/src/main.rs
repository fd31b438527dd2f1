//! `attune-serving`: one process, one base model, many adapters. The scheduler starts it.

use std::process::ExitCode;

use attune_process::{log, parent};
use attune_serving::{
    bridge,
    config::{Arguments, Command, Config},
    replica,
};
use clap::Parser;

fn main() -> ExitCode {
    let awake = attune_node::let_waiting_threads_sleep();
    let Arguments { config, command } = Arguments::parse();
    let _log = log::start("attune-serving", config.log.clone(), config.log_format);
    if let Err(why) = awake {
        tracing::warn!(%why, "OpenMP threads will busy-wait, which is slow while other programs run");
    }
    match run(config, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config, command: Option<Command>) -> anyhow::Result<()> {
    if config.exit_with_parent {
        parent::exit_with_parent()?;
    }
    // The decoder has its own thread and thread pool; the runtime has little work.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        match command {
            None => replica::serve(config).await,
            Some(Command::Fetch { link }) => bridge::fetch(config, &link).await,
            Some(Command::Bridge(options)) => bridge::serve(config, options).await,
        }
    });
    runtime.shutdown_background(); // do not wait for an engine step in progress
    outcome
}
