//! `attune up`: a whole platform on one machine, as one process and its children.
//!
//! Read in this order. Nothing here knows a job, a file or a model: it starts programs and hands them their settings.

/// What the user asked for, from flags and a file.
pub(crate) mod settings;

/// One `attune up` per data folder.
mod lock;

/// Small files that only their owner may read, written whole or not at all.
pub(crate) mod private;

/// Keys that are made once.
mod secrets;

/// Lines on the terminal and in `logs/`, with the speaker's name in front.
mod log;

/// Where the private PostgreSQL cluster lies, and as whom it runs.
mod place;

/// Servers that an earlier `attune up` could not end.
mod leftovers;

/// The private PostgreSQL cluster.
mod postgres;

/// The embedded S3 server.
mod object_store;

/// The settings files of api and scheduler.
mod run_files;

/// Child processes: started, watched, started again, stopped.
mod children;

/// The order of a start and of a stop.
pub(crate) mod platform;
