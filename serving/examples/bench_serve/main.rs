//! Measures `attune-serving` as a process of its own, over HTTP: `bench_serve --serving PROGRAM --base FOLDER --scratch
//! FOLDER MEASURE`. This program is the replica's platform, its object store and its clients. Each measure prints one
//! JSON line; `scripts/bench-serve` compares them.

mod adapters;
mod client;
mod latency;
mod load;
mod loads;
mod memory;
mod platform;
mod prompts;
mod rates;
mod replica;
mod setup;
mod soak;
mod start;
mod stats;
mod throughput;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::setup::Setup;

#[derive(Parser)]
#[command(about = "Measures attune-serving over HTTP; prints one JSON line")]
struct Options {
    #[command(flatten)]
    setup: Setup,
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Subcommand)]
enum Measure {
    /// Tokens per second of prompts and of answers, alone and eight at a time.
    Rates,
    /// Tokens per second with 1, 8, 32 and 128 active adapters, and with the base alone.
    Adapters {
        /// Rounds over all numbers of adapters.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Seconds of each.
        #[arg(long, default_value_t = 6.0)]
        seconds: f64,
    },
    /// Times to the first token and per token under open-loop load.
    Load {
        /// Seconds of each load.
        #[arg(long, default_value_t = 90.0)]
        seconds: f64,
    },
    /// The latency of one project, alone and while another one floods the replica.
    Flood {
        /// Rounds, each without and with the flood.
        #[arg(long, default_value_t = 2)]
        rounds: usize,
        /// Requests of each.
        #[arg(long, default_value_t = 20)]
        requests: u64,
    },
    /// The resident memory of bases, and of 128 adapters.
    Memory,
    /// The time from the start of the process to the first token, and its parts.
    Start {
        /// Starts with the base in the disk cache.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// The times of loading adapters from the object store and from disk.
    Loads,
    /// Errors and memory under a long load of 80 % of the capacity.
    Soak {
        /// The length of the load.
        #[arg(long, default_value_t = 60.0)]
        minutes: f64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Options { setup, measure } = Options::parse();
    std::fs::create_dir_all(&setup.scratch).context("creating the scratch folder")?;
    let line = match measure {
        Measure::Rates => rates::measure(&setup).await?,
        Measure::Adapters { rounds, seconds } => throughput::measure(&setup, rounds, seconds).await?,
        Measure::Load { seconds } => latency::measure(&setup, seconds).await?,
        Measure::Flood { rounds, requests } => latency::measure_flood(&setup, rounds, requests).await?,
        Measure::Memory => memory::measure(&setup).await?,
        Measure::Start { rounds } => start::measure(&setup, rounds).await?,
        Measure::Loads => loads::measure(&setup).await?,
        Measure::Soak { minutes } => soak::measure(&setup, minutes).await?,
    };
    println!("{line}");
    Ok(())
}
