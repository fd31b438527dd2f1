//! Launch of a wanted replica, `wanted → launching`: memory → offer → node in one transaction → launch.

use attune_domain::{
    bytes::Bytes,
    id::{NodeId, ReplicaId},
    memory::{self, ServedModels},
    offer::{Offer, Refusal, ReplicaKind, right_size_replica},
    serve::Engine,
};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    adapters::base_model,
    queue::EnsureReplica,
    replica::{self, Placement, ReplicaState},
    runs::node::{self, NewNode},
};

use super::Handle;
use crate::{
    app::App,
    error::SchedulerError,
    providers::provider::{Launch, Program, Resources},
    reconciler::ended,
};

/// The most memory for adapters, keys and values: more is of no use on one machine's CPUs.
const MOST_BUDGET: Bytes = Bytes::mib(2048);

/// The placement decision for a wanted replica.
enum Decision {
    Place { offer: Offer, memory: Bytes, budget: Bytes, threads: u32 },
    Refuse(String),
    Wait,
}

impl Handle for EnsureReplica {
    #[tracing::instrument(skip_all, fields(replica.id = %self.replica_id))]
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        let market = app.market().await?;
        let _placing = app.placing.lock().await;
        let mut tx = app.begin().await?;
        let wanted = replica::get(&mut tx, self.replica_id).await?;
        if wanted.state != ReplicaState::Wanted {
            return Ok(());
        }
        let base = base_model::get(&mut tx, wanted.base.base_model_id).await?;
        let mut offers = market.offers(&mut tx).await?;
        // A replica answers requests at any time, so its machine must stay.
        offers.retain(|offer| !offer.spot);
        let unable = app.providers.retain_able(wanted.kind.engine, &mut offers);
        let draft = match wanted.kind.draft.filter(|_| app.serving.speculation) {
            Some(id) => Some(base_model::get(&mut tx, id).await?),
            None => None,
        };
        let served = ServedModels {
            draft: draft.as_ref().map(|draft| &draft.architecture),
            kv_cache_dtype: wanted.kind.kv_cache_dtype,
            ..ServedModels::new(&base.architecture, wanted.base.quantization, app.serving.compute)
        };
        match decide(served, wanted.kind, Choice { offers: &offers, unable: &unable }) {
            Decision::Place { offer, memory, budget, threads } => {
                let resources = Resources { offer: offer.name.clone(), memory, threads };
                let placement = Placement {
                    node: NewNode {
                        provider: offer.provider.clone(),
                        offer: offer.name,
                        memory,
                        micro_usd_per_hour: offer.micro_usd_per_hour,
                    },
                    memory_budget: budget,
                    threads,
                    heartbeat_seconds: app.leases.heartbeat_seconds,
                };
                let Some(node_id) = replica::place(&mut tx, self.replica_id, &placement).await? else { return Ok(()) };
                tx.commit_at(FailPoint::ReplicaPlace).await?;
                let (name, token) = (wanted.replica_id.to_string(), wanted.token.into());
                let program = match wanted.kind.engine {
                    Engine::Attune => Program::Serving,
                    engine @ (Engine::Vllm | Engine::Lorax) => Program::Bridge(engine),
                };
                let launch = Launch { program, name, token, resources };
                start(&app, wanted.replica_id, node_id, &offer.provider, launch).await
            }
            Decision::Refuse(reason) if market.is_complete() => {
                replica::end(&mut tx, self.replica_id, Some(&reason)).await?;
                tx.commit_at(FailPoint::ReplicaRefuse).await?;
                tracing::warn!("{reason}");
                Ok(())
            }
            // A provider that does not answer may have an offer that can hold it.
            Decision::Refuse(_) | Decision::Wait => {
                tx.rollback().await?;
                ended::stop_idle_replicas(&app).await
            }
        }
    }
}

/// The offers that a replica may be placed on.
struct Choice<'a> {
    offers: &'a [Offer],
    /// The reasons of the providers that cannot run its engine.
    unable: &'a [String],
}

/// Decides without I/O. The replica gets a quarter of the memory that its base leaves free, within bounds, so that
/// other processes fit too. One with another engine than `attune` gets the whole offer.
fn decide(served: ServedModels<'_>, kind: ReplicaKind, Choice { offers, unable }: Choice<'_>) -> Decision {
    let least_budget = served.least_budget();
    let least = memory::serving(served, least_budget);
    match right_size_replica(least.needed(), kind, offers) {
        Ok(offer) if kind.engine != Engine::Attune => {
            Decision::Place { offer: offer.clone(), memory: offer.memory, budget: least_budget, threads: offer.threads }
        }
        Ok(offer) => {
            let left = offer.memory.saturating_sub(offer.reserved).saturating_sub(least.needed());
            let budget = Bytes((least_budget.0 + left.0 / 4).min(MOST_BUDGET.0));
            let memory = memory::serving(served, budget).needed();
            Decision::Place { offer: offer.clone(), memory, budget, threads: offer.threads }
        }
        Err(refusals) if refusals.iter().all(Refusal::is_final) => {
            let reasons = match &refusals[..] {
                [] if unable.is_empty() => "there is no machine that stays".to_owned(),
                all => all.iter().map(ToString::to_string).chain(unable.iter().cloned()).collect::<Vec<_>>().join("; "),
            };
            Decision::Refuse(format!(
                "a replica needs at least {} of memory ({}), but {reasons}",
                least.needed(),
                least.breakdown()
            ))
        }
        Err(_) => Decision::Wait,
    }
}

/// Launches the placed replica at the provider of this name. If that fails, the replica ends, or is wanted again if its
/// provider cannot be reached or the machine lacks something for a while.
async fn start(
    app: &App,
    id: ReplicaId,
    node_id: NodeId,
    provider: &str,
    launch: Launch,
) -> Result<(), SchedulerError> {
    let launched = app.providers.launch(provider, launch).await;
    let mut tx = app.begin().await?;
    match launched {
        Ok(handle) => node::launched(&mut tx, &[(node_id, handle)]).await?,
        Err(error) if error.is_passing() => {
            tracing::warn!(error = chain(&error), "a replica could not be launched; retrying later");
            replica::want_again(&mut tx, id).await?;
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "a replica could not be launched");
            replica::end(&mut tx, id, Some("its process could not be started")).await?;
        }
    }
    Ok(tx.commit_at(FailPoint::ReplicaLaunched).await?)
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        offer::{OfferDevice, ReplicaDevice},
        placement::ServedCompute,
        serve::KvCacheDtype,
        spec::Quantization,
    };

    use super::*;

    const SMOLLM2: &str = include_str!("../../../domain/testdata/smollm2.json");

    fn smollm2() -> Architecture {
        Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap()
    }

    fn served(architecture: &Architecture) -> ServedModels<'_> {
        ServedModels::new(architecture, Quantization::None, ServedCompute::Packed)
    }

    fn decided(memory: u64, reserved: u64) -> Decision {
        let architecture = smollm2();
        let idle = Offer::cpu("local", "this machine", Bytes::mib(memory), 2);
        let offer = Offer { reserved: Bytes::mib(reserved), free_slots: 0, ..idle };
        decide(served(&architecture), ReplicaKind::default(), Choice { offers: &[offer], unable: &[] })
    }

    /// A draft model needs memory of its own, and keys and values in 8 bits less.
    #[test]
    fn a_replica_is_placed_with_its_draft_and_its_keys_and_values() {
        let (base, draft) = (smollm2(), Architecture { num_hidden_layers: 3, ..smollm2() });
        let plain = served(&base);
        let need = |served: ServedModels<'_>| memory::serving(served, served.least_budget()).needed();
        let places = |served: ServedModels<'_>, memory: Bytes| {
            let offers = [Offer { memory, ..Offer::cpu("local", "this machine", memory, 2) }];
            let decision = decide(served, ReplicaKind::default(), Choice { offers: &offers, unable: &[] });
            matches!(decision, Decision::Place { .. })
        };
        let drafts = ServedModels { draft: Some(&draft), ..plain };
        let small = ServedModels { kv_cache_dtype: KvCacheDtype::Int8, ..plain };
        assert!(places(plain, need(plain)) && !places(drafts, need(plain)) && places(drafts, need(drafts)));
        assert!(places(small, need(small)) && !places(plain, need(small)));
    }

    #[test]
    fn an_engine_that_no_provider_runs_is_refused_with_their_reasons() {
        let architecture = smollm2();
        let unable = ["local starts no vLLM: only Kubernetes does".to_owned()];
        let choice = Choice { offers: &[], unable: &unable };
        let kind = ReplicaKind { engine: Engine::Vllm, ..ReplicaKind::default() };
        let Decision::Refuse(reason) = decide(served(&architecture), kind, choice) else { panic!("placed") };
        assert!(reason.ends_with("but local starts no vLLM: only Kubernetes does"), "{reason}");
    }

    #[test]
    fn a_replica_is_placed_on_a_device_of_its_kind_or_refused_with_every_reason() {
        let architecture = smollm2();
        let device = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_000) };
        let cpu = Offer { micro_usd_per_hour: 5, ..Offer::cpu("cloud", "large", Bytes::mib(16_000), 2) };
        let gpu = Offer { device, ..Offer::cpu("cloud", "gpu", Bytes::mib(16_000), 2) };
        let decided = |engine, device, offers: &[Offer]| {
            let kind = ReplicaKind { engine, device, ..ReplicaKind::default() };
            decide(served(&architecture), kind, Choice { offers, unable: &[] })
        };
        let both = [gpu, cpu];
        for (engine, device, name) in [
            (Engine::Attune, ReplicaDevice::Auto, "large"),
            (Engine::Attune, ReplicaDevice::Cpu, "large"),
            (Engine::Vllm, ReplicaDevice::Cuda, "gpu"),
        ] {
            let Decision::Place { offer, .. } = decided(engine, device, &both) else { panic!("{engine:?} {device:?}") };
            assert_eq!(offer.name, name);
        }
        let refused = decided(Engine::Attune, ReplicaDevice::Cuda, &both);
        let Decision::Refuse(reason) = refused else { panic!("placed") };
        assert!(reason.contains("gpu: the device cuda is not in this build"), "{reason}");
        assert!(reason.contains("large has the device cpu, and device is cuda"), "{reason}");
    }

    #[test]
    fn a_replica_leaves_room_for_others() {
        let Decision::Place { memory, budget, .. } = decided(16_000, 0) else { panic!("not placed") };
        assert_eq!(budget, MOST_BUDGET);
        assert!(memory < Bytes::mib(4000), "{memory}");
    }

    #[test]
    fn what_never_fits_is_refused_and_what_does_not_fit_now_waits() {
        assert!(matches!(decided(500, 0), Decision::Refuse(_)));
        assert!(matches!(decided(16_000, 15_500), Decision::Wait));
    }
}
