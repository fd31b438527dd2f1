//! The settings of the replicas that are measured.

use std::path::PathBuf;

use anyhow::{Context, Result};
use attune_domain::{bytes::Bytes, placement::ServedCompute, spec::Quantization};

use crate::{adapters::Adapters, platform::Served};

/// The replica's settings.
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// The program attune-serving.
    #[arg(long)]
    pub(crate) serving: PathBuf,
    /// The base model, a Hugging Face folder.
    #[arg(long)]
    pub(crate) base: PathBuf,
    /// A folder for adapters and for the replica's cache. What it contains is used again.
    #[arg(long)]
    pub(crate) scratch: PathBuf,
    /// The number of threads.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: u32,
    /// The quantization: int8, nf4 or nf4-double; none, for the blocks of a GGUF file that the base has.
    #[arg(long, default_value = "nf4-double")]
    quantization: String,
}

impl Setup {
    /// Returns the base as most measures serve it: computed from its codes, with memory for `adapters`.
    pub(crate) fn served(&self, adapters: usize) -> Result<Served> {
        let quantization = Quantization::from_name(&self.quantization).context("not a quantization")?;
        Ok(Served {
            base: self.base.clone(),
            quantization,
            compute: ServedCompute::Packed,
            speculation: true,
            threads: self.threads,
            // Half of it is for keys and values.
            memory: Bytes(2 * Adapters::memory_of(&self.base, adapters)?.0.max(Bytes::mib(1024).0)),
        })
    }

    /// Returns the adapters 0 to `count` - 1; those that do not exist yet are written first.
    pub(crate) fn adapters(&self, count: usize) -> Result<Adapters> {
        Adapters::open(&self.base, &self.scratch.join("adapters"), count)
    }
}
