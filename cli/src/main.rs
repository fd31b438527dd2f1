//! `attune`: the command line of the platform, and `attune up`, which starts a whole one on this machine.
//!
//! Every command but `up` speaks HTTP to the API and knows nothing else of it. Read in this order.

mod adapters;
/// Commands and flags.
mod args;

mod connection;

mod files;
mod inference;

/// Failures and exit codes.
mod error;

/// JSON, tables, bars.
mod output;

/// `attune projects`, `keys`, `members`, `audit-log`.
mod organization;

/// `attune models`.
mod models;

/// `attune jobs`.
mod jobs;

/// Ludwig configs as jobs.
mod ludwig;

/// `attune usage` and `attune budgets`.
mod usage;

/// `attune webhooks`.
mod webhooks;

/// `attune up`.
mod up;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The first TLS client would panic without it; it fails only if there is one already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = args::Cli::parse();
    let json = cli.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return report(&error::CliError::Failed(format!("cannot start: {e}")), json),
    };
    // On this thread, not in a task: PostgreSQL is to end with the thread that started it.
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => report(&e, json),
    }
}

fn report(e: &error::CliError, json: bool) -> ExitCode {
    match e.body().filter(|_| json) {
        Some(body) => output::note(&body.to_string()),
        None => output::note(&format!("attune: {e}")),
    }
    ExitCode::from(e.exit_code())
}
