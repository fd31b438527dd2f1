//! Fail points: named places, before and after each commit of the pipeline, at which a test ends or stops the process;
//! and guards that a test switches off, to show that the test notices their absence. See `docs/FAULTS.md`.
//!
//! Only builds with the feature `failpoints` have them; in all others these functions do nothing.

use strum::{EnumString, IntoStaticStr, VariantArray};

/// A commit of the pipeline: a database transaction, or a step of a trainer that later steps rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantArray)]
pub enum FailPoint {
    /// The API stores a file's row.
    #[strum(serialize = "api.file.create")]
    FileCreate,
    /// The API stores a job and its `ValidateJob` message.
    #[strum(serialize = "api.job.create")]
    JobCreate,
    /// The API cancels a job.
    #[strum(serialize = "api.job.cancel")]
    JobCancel,
    /// The API pauses a job.
    #[strum(serialize = "api.job.pause")]
    JobPause,
    /// The API resumes a job.
    #[strum(serialize = "api.job.resume")]
    JobResume,
    /// The API keeps the content that a run names from being swept.
    #[strum(serialize = "api.run.name_blobs")]
    RunNameBlobs,
    /// The API stores the uploads that it grants to a run.
    #[strum(serialize = "api.run.grant_blobs")]
    RunGrantBlobs,
    /// The API records that a run has uploaded content.
    #[strum(serialize = "api.run.prove_blob")]
    RunProveBlob,
    /// The API applies a trainer's report that does not publish.
    #[strum(serialize = "api.run.report")]
    RunReport,
    /// The API applies a trainer's report that publishes an adapter version.
    #[strum(serialize = "api.run.publish")]
    RunPublish,
    /// The API keeps the content of a job's results from being swept; the report that publishes follows.
    #[strum(serialize = "api.run.announce_results")]
    RunAnnounceResults,
    /// The API records the objects that an export is about to upload.
    #[strum(serialize = "api.export.record_files")]
    ExportRecordFiles,
    /// The API applies the report of an export.
    #[strum(serialize = "api.export.report")]
    ExportReport,
    /// The API applies a replica's report.
    #[strum(serialize = "api.replica.report")]
    ReplicaReport,
    /// The API, or the scheduler for a batch, keeps content from being swept; the move to its key follows.
    #[strum(serialize = "api.content.announce")]
    ContentAnnounce,
    /// The API stores the row of an upload's part, whose object is stored.
    #[strum(serialize = "api.upload.add_part")]
    UploadAddPart,
    /// The API claims an upload; the assembly of its parts follows, and then `api.file.create`.
    #[strum(serialize = "api.upload.claim")]
    UploadClaim,
    /// The API records that a project has uploaded content, which is stored.
    #[strum(serialize = "api.base_model.put_blob")]
    BlobRecord,
    /// The API stores an imported adapter version, whose files are stored.
    #[strum(serialize = "api.adapter.import")]
    AdapterImport,
    /// The API moves an alias.
    #[strum(serialize = "api.alias.set")]
    AliasSet,
    /// The API claims an `Idempotency-Key`; the request follows.
    #[strum(serialize = "api.idempotency.claim")]
    IdempotencyClaim,
    /// The API stores the response to a request with an `Idempotency-Key`, or frees the key.
    #[strum(serialize = "api.idempotency.settle")]
    IdempotencySettle,
    /// The scheduler takes the leadership.
    #[strum(serialize = "scheduler.leader.take")]
    LeaderTake,
    /// The scheduler counts an attempt to validate a job.
    #[strum(serialize = "scheduler.validate.begin")]
    ValidateBegin,
    /// The scheduler stores that an attempt to validate a job ended without an outcome.
    #[strum(serialize = "scheduler.validate.take_back")]
    ValidateTakeBack,
    /// The scheduler stores the outcome of a validation, and the `DispatchJob` message.
    #[strum(serialize = "scheduler.validate.settle")]
    ValidateSettle,
    /// The scheduler stores the runs that it starts at once, and their nodes; the launches follow.
    #[strum(serialize = "scheduler.dispatch.claim")]
    DispatchClaim,
    /// The scheduler stores the handles of launched trainers.
    #[strum(serialize = "scheduler.dispatch.launched")]
    DispatchLaunched,
    /// The scheduler ends a run whose trainer could not be launched.
    #[strum(serialize = "scheduler.dispatch.launch_failed")]
    DispatchLaunchFailed,
    /// The scheduler pauses a job whose money is spent.
    #[strum(serialize = "scheduler.dispatch.pause")]
    DispatchPause,
    /// The scheduler forgets the measures of a job whose offer has no room.
    #[strum(serialize = "scheduler.dispatch.skip")]
    DispatchSkip,
    /// The scheduler fails or measures again a job that no offer can hold.
    #[strum(serialize = "scheduler.dispatch.reconsider")]
    DispatchReconsider,
    /// The scheduler stops a running job for a waiting one.
    #[strum(serialize = "scheduler.dispatch.preempt")]
    DispatchPreempt,
    /// The scheduler stores the places of the waiting jobs.
    #[strum(serialize = "scheduler.dispatch.waits")]
    DispatchWaits,
    /// The scheduler reserves the node of a replica; the launch follows.
    #[strum(serialize = "scheduler.replica.place")]
    ReplicaPlace,
    /// The scheduler ends a replica that no offer can hold.
    #[strum(serialize = "scheduler.replica.refuse")]
    ReplicaRefuse,
    /// The scheduler stores the outcome of a replica's launch.
    #[strum(serialize = "scheduler.replica.launched")]
    ReplicaLaunched,
    /// The scheduler reserves the node of an export; the launch follows.
    #[strum(serialize = "scheduler.export.place")]
    ExportPlace,
    /// The scheduler fails an export that cannot be written, or stores the reason why it waits.
    #[strum(serialize = "scheduler.export.refuse")]
    ExportRefuse,
    /// The scheduler stores the outcome of an export's launch.
    #[strum(serialize = "scheduler.export.launched")]
    ExportLaunched,
    /// The scheduler publishes the providers' offers.
    #[strum(serialize = "scheduler.reconcile.offers")]
    ReconcileOffers,
    /// The scheduler stores that a process waits at its provider.
    #[strum(serialize = "scheduler.reconcile.pending")]
    ReconcilePending,
    /// The scheduler ends a lost run.
    #[strum(serialize = "scheduler.reconcile.lose")]
    ReconcileLose,
    /// The scheduler ends a replica.
    #[strum(serialize = "scheduler.reconcile.end_replica")]
    ReconcileEndReplica,
    /// The scheduler releases the nodes without a run or replica.
    #[strum(serialize = "scheduler.reconcile.release_nodes")]
    ReconcileReleaseNodes,
    /// The scheduler queues jobs again whose money is available again.
    #[strum(serialize = "scheduler.reconcile.release_affordable")]
    ReconcileReleaseAffordable,
    /// The scheduler sends lost messages again.
    #[strum(serialize = "scheduler.reconcile.push_again")]
    ReconcilePushAgain,
    /// The scheduler creates the deliveries of events.
    #[strum(serialize = "scheduler.webhook.relay")]
    WebhookRelay,
    /// The scheduler claims deliveries.
    #[strum(serialize = "scheduler.webhook.claim")]
    WebhookClaim,
    /// The scheduler stores the outcome of an attempt to deliver an event.
    #[strum(serialize = "scheduler.webhook.settle")]
    WebhookSettle,
    /// The scheduler claims a batch.
    #[strum(serialize = "scheduler.batch.claim")]
    BatchClaim,
    /// The scheduler stores the outcome of a batch's validation.
    #[strum(serialize = "scheduler.batch.validate")]
    BatchValidate,
    /// The scheduler stores a batch's answer to a request, and its charge.
    #[strum(serialize = "scheduler.batch.answer")]
    BatchAnswer,
    /// The scheduler stores that a batch has all its answers; its files follow.
    #[strum(serialize = "scheduler.batch.answered")]
    BatchAnswered,
    /// The scheduler stores the rows of a batch's files, whose content is stored, and ends the batch.
    #[strum(serialize = "scheduler.batch.finish")]
    BatchFinish,
    /// The scheduler deletes rows of expired content, whose objects it has deleted.
    #[strum(serialize = "scheduler.sweep.batch")]
    SweepBatch,
    /// The trainer renames a complete checkpoint folder.
    #[strum(serialize = "trainer.checkpoint.rename")]
    CheckpointRename,
    /// The trainer uploads a checkpoint's files.
    #[strum(serialize = "trainer.checkpoint.upload")]
    CheckpointUpload,
    /// The trainer uploads the files of the adapter.
    #[strum(serialize = "trainer.publish.upload")]
    PublishUpload,
    /// The trainer sends a report with events.
    #[strum(serialize = "trainer.report.send")]
    ReportSend,
}

/// A guard that a test can switch off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantArray)]
pub enum Guard {
    /// The scheduler's term in each of its transactions.
    #[strum(serialize = "guard.leader_term")]
    LeaderTerm,
    /// The lease in each report of a run, and the refusal of reports of a run that has ended.
    #[strum(serialize = "guard.run_lease")]
    RunLease,
    /// The numbers of events, by which a repeated report changes nothing.
    #[strum(serialize = "guard.report_sequence")]
    ReportSequence,
    /// The exit of a child when its parent exits.
    #[strum(serialize = "guard.exit_with_parent")]
    ExitWithParent,
}

impl FailPoint {
    /// All fail points.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// Returns the name in `ATTUNE_FAILPOINTS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Ends or stops the process here if a test requests it: directly before the commit.
    pub fn before(self) {
        reach(self, Side::Before);
    }

    /// Ends or stops the process here if a test requests it: directly after the commit.
    pub fn after(self) {
        reach(self, Side::After);
    }
}

impl Guard {
    /// All guards.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// Returns the name in `ATTUNE_FAILPOINTS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns whether the guard is in force: always, but in a test that switches it off.
    #[must_use]
    pub fn is_on(self) -> bool {
        !is_off(self)
    }
}

/// The side of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Side {
    Before,
    After,
}

#[cfg(feature = "failpoints")]
mod active;
#[cfg(feature = "failpoints")]
use active::{is_off, reach};

#[cfg(not(feature = "failpoints"))]
const fn reach(_: FailPoint, _: Side) {}

#[cfg(not(feature = "failpoints"))]
const fn is_off(_: Guard) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    /// Returns the source code of the crates that have fail points, without this file.
    fn sources(folder: &Path, all: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("failpoint.rs") {
                all.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn the_page_lists_every_fail_point_and_every_guard() {
        let page = fs::read_to_string(root().join("docs/FAULTS.md")).unwrap();
        let names = |start: &str| {
            let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
            rows.map(|(name, _)| name).filter(|name| name.starts_with(start)).collect::<Vec<_>>()
        };
        let listed = [names("api."), names("scheduler."), names("trainer.")].concat();
        assert_eq!(listed, FailPoint::ALL.iter().map(|point| point.name()).collect::<Vec<_>>());
        assert_eq!(names("guard."), Guard::ALL.iter().map(|guard| guard.name()).collect::<Vec<_>>());
    }

    #[test]
    fn every_fail_point_and_every_guard_is_used() {
        let mut code = String::new();
        for room in ["api", "scheduler", "store", "trainer", "process"] {
            sources(&root().join(room).join("src"), &mut code);
        }
        for point in FailPoint::ALL {
            assert!(code.contains(&format!("FailPoint::{point:?}")), "{point:?} is used nowhere");
        }
        for guard in Guard::ALL {
            assert!(code.contains(&format!("Guard::{guard:?}")), "{guard:?} is used nowhere");
        }
    }
}
