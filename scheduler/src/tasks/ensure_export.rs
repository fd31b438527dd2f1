//! Launch of a queued export, `queued → running`: memory → offer → node in one transaction → launch.

use attune_domain::{
    id::ExportId,
    memory::{self, MemoryEstimate},
    offer::{Offer, Refusal, right_size},
};
use attune_process::{error_chain::chain, failpoint::FailPoint};
use attune_store::{
    adapters::base_model,
    error::StoreError,
    exports::{
        export,
        export_end::{self, Blame, LOST, Lost},
        export_run::{self, Placed, Placement},
        export_task::{self, Gone},
    },
    queue::EnsureExport,
    runs::node::{self, NewNode},
};

use super::Handle;
use crate::{
    app::App,
    error::SchedulerError,
    providers::provider::{Launch, Program, Resources},
    reconciler::ended,
};

/// The code of an export that no offer can hold.
const NO_OFFER: &str = "no_offer";

/// The code of an export whose base model or adapter was deleted.
const INPUT_DELETED: &str = "input_deleted";

/// The placement decision for a queued export.
enum Decision {
    Place(Offer),
    Refuse(String),
    Wait(String),
}

impl Handle for EnsureExport {
    #[tracing::instrument(skip_all, fields(export.id = %self.export_id))]
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        let market = app.market().await?;
        let _placing = app.placing.lock().await;
        let mut tx = app.begin().await?;
        let export = match export::load(&mut tx, self.export_id).await {
            Err(StoreError::NotFound(_)) => return Ok(()), // deleted
            found => found?,
        };
        if let Some(gone) = export_task::hold_inputs(&mut tx, self.export_id).await? {
            export_end::fail(&mut tx, self.export_id, INPUT_DELETED, words(gone)).await?;
            return Ok(tx.commit_at(FailPoint::ExportRefuse).await?);
        }
        let base = base_model::get(&mut tx, export.base_model_id).await?;
        let estimate = memory::exporting(&base.architecture, export.quantization, export.spec);
        match decide(&estimate, &market.offers(&mut tx).await?) {
            Decision::Place(offer) => {
                let node = NewNode {
                    provider: offer.provider.clone(),
                    offer: offer.name.clone(),
                    memory: estimate.needed(),
                    micro_usd_per_hour: offer.micro_usd_per_hour,
                };
                let heartbeat_seconds = app.leases.heartbeat_seconds;
                let placement = Placement { node, threads: offer.threads, heartbeat_seconds };
                let Some(placed) = export_run::place(&mut tx, self.export_id, &placement).await? else {
                    return Ok(());
                };
                tx.commit_at(FailPoint::ExportPlace).await?;
                let resources = Resources { offer: offer.name, memory: estimate.needed(), threads: offer.threads };
                start(&app, self.export_id, &offer.provider, (placed, resources)).await
            }
            Decision::Refuse(reason) if market.is_complete() => {
                export_end::fail(&mut tx, self.export_id, NO_OFFER, &reason).await?;
                Ok(tx.commit_at(FailPoint::ExportRefuse).await?)
            }
            // A provider that does not answer may have an offer that can hold it.
            Decision::Refuse(reason) | Decision::Wait(reason) => {
                export_run::wait(&mut tx, self.export_id, &reason).await?;
                tx.commit_at(FailPoint::ExportRefuse).await?;
                ended::stop_idle_replicas(&app).await
            }
        }
    }
}

const fn words(gone: Gone) -> &'static str {
    match gone {
        Gone::Base => "the base model was deleted",
        Gone::Adapter => "the adapter version or checkpoint was deleted",
        Gone::Calibration => "the file of the importance matrix was deleted",
    }
}

/// Decides without I/O.
fn decide(estimate: &MemoryEstimate, offers: &[Offer]) -> Decision {
    match right_size(estimate.needed(), false, offers) {
        Ok(offer) => Decision::Place(offer.clone()),
        Err(refusals) => {
            let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            let reasons = if reasons.is_empty() { "there is no machine".to_owned() } else { reasons.join("; ") };
            let text =
                format!("the export needs {} of memory ({}): {reasons}", estimate.needed(), estimate.breakdown());
            if refusals.iter().all(Refusal::is_final) { Decision::Refuse(text) } else { Decision::Wait(text) }
        }
    }
}

/// Launches the attempt at the provider of this name. If that fails, the attempt is lost; one that did not run because
/// its provider cannot be reached, or lacks something for a while, counts among no maximum.
async fn start(
    app: &App,
    id: ExportId,
    provider: &str,
    (placed, resources): (Placed, Resources),
) -> Result<(), SchedulerError> {
    let (name, token) = (placed.node_id.to_string(), placed.token.into());
    let launched = app.providers.launch(provider, Launch { program: Program::Trainer, name, token, resources }).await;
    let mut tx = app.begin().await?;
    match launched {
        Ok(handle) => node::launched(&mut tx, &[(placed.node_id, handle)]).await?,
        Err(error) => {
            tracing::error!(error = chain(&error), "an export could not be launched");
            let blame = if error.is_passing() { Blame::NotRun } else { Blame::Export };
            let lost = Lost { code: LOST, message: "its process could not be started", blame };
            export_end::lose(&mut tx, id, &lost).await?;
        }
    }
    Ok(tx.commit_at(FailPoint::ExportLaunched).await?)
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        bytes::Bytes,
        export::{ExportRequest, ExportSpec},
        spec::{AdapterSpec, Quantization},
    };

    use super::*;

    fn decided(memory: u64, reserved: u64) -> Decision {
        let architecture = Architecture::from_config_json(attune_store::testing::CONFIG.as_bytes()).unwrap();
        let asked = ExportRequest { format: "merged".into(), ..ExportRequest::default() };
        let spec = ExportSpec::check(&asked, &architecture, &AdapterSpec::lora(8, 16.0, &["q_proj"])).unwrap();
        let estimate = memory::exporting(&architecture, Quantization::Int8, spec);
        let idle = Offer::cpu("local", "this machine", Bytes::mib(memory), 2);
        let offer = Offer { reserved: Bytes::mib(reserved), free_slots: 0, ..idle };
        decide(&estimate, &[offer])
    }

    #[test]
    fn an_export_is_placed_waits_or_is_refused_by_memory() {
        assert!(matches!(decided(8000, 0), Decision::Place(_)));
        assert!(matches!(decided(8000, 7900), Decision::Wait(reason) if reason.contains("this machine")));
        assert!(matches!(decided(100, 0), Decision::Refuse(reason) if reason.contains("the export needs")));
    }
}
