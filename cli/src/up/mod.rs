//! `attune up`: a whole platform on one machine, as one process and its child processes.
//!
//! Read in this order. This code only starts programs and writes their settings; it knows no jobs, files or models.

/// The settings, from flags and a file.
pub(crate) mod settings;

/// One `attune up` per data folder.
mod lock;

/// Files that only their owner can read, written atomically.
pub(crate) mod private;

/// Keys that are generated once.
mod secrets;

/// The log on the terminal and in `logs/`.
mod log;

/// The folder and the account of the private PostgreSQL cluster.
mod place;

/// PostgreSQL servers of an earlier `attune up`.
mod leftovers;

/// The private PostgreSQL cluster.
mod postgres;

/// The embedded S3 server.
mod object_store;

/// The settings files of the API and the scheduler.
mod run_files;

/// The supervision of child processes.
mod children;

/// The start and the stop of the platform, in order.
pub(crate) mod platform;
