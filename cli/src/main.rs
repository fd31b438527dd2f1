//! `attune`: the platform's command line, and `attune up`, which starts a whole platform on this machine.
//!
//! Every command except `up` is only an HTTP client of the API. Read in this order.

mod adapters;
/// Commands and flags.
mod args;

mod connection;

/// `attune deployments`.
mod deployments;

mod files;
mod hub;
mod inference;

/// Errors and exit codes.
mod error;

/// JSON, tables, progress bars.
mod output;

/// `attune projects`, `keys`, `members`, `audit-log`.
mod organization;

/// `attune models`.
mod models;

/// `attune jobs`.
mod jobs;

/// The mapping of Ludwig configs to jobs.
mod ludwig;

/// `attune top`.
mod top;

/// `attune usage` and `attune budgets`.
mod usage;

/// `attune webhooks`.
mod webhooks;

/// `attune up`.
mod up;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The first TLS client would panic without a provider; installing fails only if one is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = args::Cli::parse();
    let json = cli.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return report(&error::CliError::Failed(format!("cannot start: {e}")), json),
    };
    // On this thread, not in a task: PostgreSQL's parent-death signal follows the thread that started it.
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
