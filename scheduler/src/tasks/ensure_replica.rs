//! Launch of a wanted replica, `wanted → launching`: memory → offer → node in one transaction → launch.

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    id::{NodeId, ReplicaId},
    memory,
    offer::{Offer, Refusal, right_size},
    spec::Quantization,
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

/// The least memory for adapters, keys and values: with less, a single long chat would not fit.
const LEAST_BUDGET: Bytes = Bytes::mib(128);

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
        match decide(&base.architecture, wanted.base.quantization, &offers) {
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
                let launch = Launch { program: Program::Serving, name, token, resources };
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

/// Decides without I/O. The replica gets a quarter of the memory that its base leaves free, within bounds, so that
/// other processes fit too.
fn decide(architecture: &Architecture, quantization: Quantization, offers: &[Offer]) -> Decision {
    let least = memory::serving(architecture, quantization, LEAST_BUDGET);
    match right_size(least.needed(), false, offers) {
        Ok(offer) => {
            let left = offer.memory.saturating_sub(offer.reserved).saturating_sub(least.needed());
            let budget = Bytes((LEAST_BUDGET.0 + left.0 / 4).min(MOST_BUDGET.0));
            let memory = memory::serving(architecture, quantization, budget).needed();
            Decision::Place { offer: offer.clone(), memory, budget, threads: offer.threads }
        }
        Err(refusals) if refusals.iter().all(Refusal::is_final) => {
            let reasons = match &refusals[..] {
                [] => "there is no machine that stays".to_owned(),
                all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
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

/// Launches the placed replica at the provider of this name. If that fails, the replica ends.
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
        Err(error) => {
            tracing::error!(error = chain(&error), "a replica could not be launched");
            replica::end(&mut tx, id, Some("its process could not be started")).await?;
        }
    }
    Ok(tx.commit_at(FailPoint::ReplicaLaunched).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = include_str!("../../../domain/testdata/smollm2.json");

    fn decided(memory: u64, reserved: u64) -> Decision {
        let architecture = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let idle = Offer::cpu("local", "this machine", Bytes::mib(memory), 2);
        let offer = Offer { reserved: Bytes::mib(reserved), free_slots: 0, ..idle };
        decide(&architecture, Quantization::None, &[offer])
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
