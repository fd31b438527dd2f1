//! The Slurm provider: each run and each replica is a job of a Slurm cluster. See docs/SLURM.md.

/// The answer of `sacct`.
mod accounting;
/// The commands of Slurm, with limits.
mod command;
/// The answer of `squeue`.
mod job;
/// The `Provider` implementation.
pub(crate) mod provider;
/// The batch script of a job.
mod script;
/// Tests with scripted commands.
#[cfg(test)]
mod tests;
