//! The times of loading adapters: of requests for one token whose adapter is in the object store, on disk, or in
//! memory. They include the answer itself, so they are upper bounds of the load.

use std::time::Duration;

use anyhow::{Result, ensure};
use attune_domain::{
    bytes::Bytes,
    serve::{AdapterRef, AdapterTier},
};
use serde_json::{Value, json};

use crate::{adapters::Adapters, client::Ask, platform::Served, prompts::Random, replica::Replica, setup::Setup};

/// The number of adapters.
const COUNT: usize = 64;
/// The number of adapters that memory holds. Requests go through all adapters in turn, so each evicts one.
const IN_MEMORY: usize = 8;
/// The tokens of a prompt.
const PROMPT: u64 = 8;
/// The time that the object store takes before the first byte of a file. Source: "Best practices design patterns:
/// optimizing Amazon S3 performance" in the Amazon S3 User Guide, which names 100 to 200 ms.
const STORE_DELAY: Duration = Duration::from_millis(150);

/// Measures all adapters from the object store, then from disk, then one of them from memory.
pub(crate) async fn measure(setup: &Setup) -> Result<Value> {
    let adapters = setup.adapters(COUNT)?;
    let memory = Bytes(2 * Adapters::memory_of(&setup.base, IN_MEMORY)?.0);
    let cache = setup.scratch.join("cache-of-loads");
    if cache.exists() {
        std::fs::remove_dir_all(&cache)?;
    }
    let replica = Replica::start_in(setup, Served { memory, ..setup.served(0)? }, &cache).await?;
    replica.platform.delay_adapters(STORE_DELAY);
    let refs = adapters.refs(replica.platform.url()).await?;
    let mut requests = Requests { replica: &replica, random: Random::new(0) };
    // The engine's first step is slower.
    requests.replica.client.answer(Ask::sampled(requests.random.prompt(PROMPT), 1, 0)).await?;
    let from_store = requests.seconds(&refs, AdapterTier::Store).await?;
    let from_disk = requests.seconds(&refs, AdapterTier::Disk).await?;
    let repeated = vec![refs[COUNT - 1].clone(); COUNT];
    let from_memory = requests.seconds(&repeated, AdapterTier::Memory).await?;
    replica.stop().await?;
    std::fs::remove_dir_all(&cache)?;
    Ok(json!({
        "adapter_bytes": Adapters::memory_of(&setup.base, 1)?,
        "store_delay_s": STORE_DELAY.as_secs_f64(),
        "store_s": from_store,
        "disk_s": from_disk,
        "memory_s": from_memory,
    }))
}

struct Requests<'a> {
    replica: &'a Replica,
    random: Random,
}

impl Requests<'_> {
    /// Returns the times of one request for each adapter, one after another. Each must find its adapter in `tier`.
    async fn seconds(&mut self, adapters: &[AdapterRef], tier: AdapterTier) -> Result<Vec<f64>> {
        let mut seconds = Vec::with_capacity(adapters.len());
        for adapter in adapters {
            let ask = Ask { adapter: Some(adapter.clone()), ..Ask::sampled(self.random.prompt(PROMPT), 1, 0) };
            let answer = self.replica.client.answer(ask).await?;
            ensure!(answer.tier == Some(tier), "{} was found in {:?} instead of {tier:?}", adapter.id, answer.tier);
            seconds.push(answer.whole().as_secs_f64());
        }
        Ok(seconds)
    }
}
