//! Whole runs in this process, against a small platform over HTTP.

mod platform;
mod runs;
mod tiny;
