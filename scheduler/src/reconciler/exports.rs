//! Lost exports: their attempts end, then their processes are stopped.

use attune_process::failpoint::FailPoint;
use attune_store::exports::{
    export_end::{self, Blame, LOST, Lost},
    export_run::{self, ActiveExport},
};

use super::{ended::Stops, survey::Survey};
use crate::{
    app::App,
    error::SchedulerError,
    liveness::Hearing,
    providers::provider::{Ended, Process},
};

/// Ends the attempts of the provider's lost exports, and begins the leases of those whose processes wait there again.
pub(super) async fn end_lost<'a>(
    app: &App,
    survey: &Survey<'a>,
    hearing: &Hearing,
    stops: &mut Stops<'a>,
) -> Result<(), SchedulerError> {
    for export in &survey.exports {
        let name = export.node_id.to_string();
        let process = survey.process(&name);
        if matches!(process, Some(Process { pending: Some(_), ended: None, .. })) {
            let mut tx = app.begin().await?;
            export_run::waits_at_provider(&mut tx, export.export_id).await?;
            tx.commit_at(FailPoint::ReconcilePending).await?;
        } else if let Some((reason, blame)) = failure_reason(hearing, export, process) {
            lose(app, export, &reason, blame).await?;
            stops.add(survey.provider, name);
        }
    }
    Ok(())
}

fn failure_reason(hearing: &Hearing, export: &ActiveExport, process: Option<&Process>) -> Option<(String, Blame)> {
    match process {
        None if export.handle.is_none() => {
            Some(("the scheduler ended before its process was launched".into(), Blame::NotRun))
        }
        None => Some(("its process ended with the scheduler that started it".into(), Blame::Circumstances)),
        Some(Process { ended: Some(Ended { message, cause }), .. }) => {
            // The process may have ended because its reports could not be delivered.
            let is_export = cause.may_be_the_jobs() && hearing.covers(export.silent_seconds);
            Some((message.clone(), if is_export { Blame::Export } else { Blame::Circumstances }))
        }
        Some(_) if hearing.is_stale(export.silent_seconds) => {
            let reason = format!("its process has not reported for {:.0} s", export.silent_seconds);
            Some((reason, Blame::Export))
        }
        Some(_) => None,
    }
}

/// Ends an attempt. The caller stops its process afterwards: from now on its lease is stale.
pub(super) async fn lose(app: &App, export: &ActiveExport, reason: &str, blame: Blame) -> Result<(), SchedulerError> {
    tracing::warn!(export.id = %export.export_id, "an attempt at an export is lost: {reason}");
    let mut tx = app.begin().await?;
    export_end::lose(&mut tx, export.export_id, &Lost { code: LOST, message: reason, blame }).await?;
    Ok(tx.commit_at(FailPoint::ReconcileLose).await?)
}
