//! The resident memory of a base in `f32` and computed from its codes, and of adapters next to it.

use anyhow::Result;
use attune_domain::{placement::ServedCompute, spec::Quantization};
use serde_json::{Value, json};

use crate::{client::Ask, platform::Served, prompts::Random, replica::Replica, setup::Setup};

/// The number of adapters.
const ADAPTERS: usize = 128;
/// The tokens of a prompt.
const PROMPT: u64 = 16;
/// The seed of the tiny base.
const TINY_SEED: u64 = 7;

/// Measures replicas of a tiny base, of the base in `f32`, and of the base from its codes, then with adapters. Each is
/// measured after an answer. The memory of the first is that of the program.
pub(crate) async fn measure(setup: &Setup) -> Result<Value> {
    let adapters = setup.adapters(ADAPTERS)?;
    let packed = setup.served(ADAPTERS)?;
    let unpacked = Served { quantization: Quantization::None, compute: ServedCompute::F32, ..packed.clone() };
    let tiny = setup.scratch.join("tiny");
    attune_tests::tiny::write(&tiny, TINY_SEED)?;
    let program = resident(Replica::start(setup, Served { base: tiny, ..unpacked.clone() }).await?).await?;
    let in_f32 = resident(Replica::start(setup, unpacked).await?).await?;
    // The first start quantizes the base, which needs memory that later ones do not.
    Replica::start(setup, packed.clone()).await?.stop().await?;
    let from_codes = resident(Replica::start(setup, packed.clone()).await?).await?;

    let replica = Replica::start(setup, packed).await?;
    let refs = adapters.refs(replica.platform.url()).await?;
    let mut random = Random::new(0);
    for adapter in refs {
        let ask = Ask { adapter: Some(adapter), ..Ask::sampled(random.prompt(PROMPT), 1, 0) };
        replica.client.answer(ask).await?;
    }
    let with_adapters = resident(replica).await?;
    Ok(json!({
        "adapters": ADAPTERS,
        "program_mib": program,
        "f32_mib": in_f32,
        "codes_mib": from_codes,
        "with_adapters_mib": with_adapters,
    }))
}

/// Returns the resident memory of a replica after an answer, in MiB, and ends it.
async fn resident(replica: Replica) -> Result<f64> {
    // IDs that every vocabulary has.
    let prompt = (1..=u32::try_from(PROMPT)?).collect();
    replica.client.answer(Ask::sampled(prompt, PROMPT, 0)).await?;
    let bytes = replica.resident()?;
    replica.stop().await?;
    Ok(bytes.0 as f64 / f64::from(1 << 20))
}
