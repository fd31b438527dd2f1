//! The controls: each invariant is broken as soon as its guard is removed, by a change of rows or objects here.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use attune_tests::{figure, sha256};
use serde_json::json;

use crate::{
    facts::Expected,
    invariants::{self, Invariant, digits},
    observe,
    rig::{EPOCHS, Leases, Rig},
    storm::{ALL_ENDED, ENDS_WITHIN, ROWS},
    uploads,
};

/// Loses the messages of all jobs, and the repair that sends them again.
const LOSE_MESSAGES: &str = "delete from apalis.jobs; update job set pushed_at = now() + interval '1 day'
    where finished_at is null";
/// Restores that repair.
const REPAIR_MESSAGES: &str = "update job set pushed_at = now() - interval '1 day' where finished_at is null";

/// Lets a job have two versions: that of another job, too.
const TWO_VERSIONS: &str = "alter table adapter_version drop constraint adapter_version_job_key;
    create table kept_owner as select adapter_version_id, job_id from adapter_version;
    update adapter_version set job_id = (select min(job_id::text)::uuid from kept_owner)";
/// Returns each version to its job.
const ONE_VERSION: &str = "update adapter_version set job_id = kept_owner.job_id from kept_owner
        where kept_owner.adapter_version_id = adapter_version.adapter_version_id;
    drop table kept_owner;
    alter table adapter_version add constraint adapter_version_job_key unique (job_id)";

/// Adds a node that neither a run nor a replica uses, of a provider that the reconciler leaves alone.
const ORPHAN_NODE: &str = "insert into node (node_id, provider, offer, memory)
    values (gen_random_uuid(), 'another', 'a machine', 1)";
/// Removes it again.
const NO_ORPHAN_NODE: &str = "delete from node where provider = 'another'";

/// Lets the scheduler believe that each event was relayed.
const NO_RELAY: &str = "create function relayed() returns trigger language plpgsql as
        'begin new.relayed_at := now(); return new; end';
    create trigger relayed before insert on outbox for each row execute function relayed()";
/// Restores the relay of later events.
const RELAY: &str = "drop trigger relayed on outbox; drop function relayed";

/// A platform with two jobs that ended undisturbed, and the invariants whose controls failed as wanted.
struct Controls {
    rig: Rig,
    file: String,
    expected: Expected,
    noticed: BTreeSet<Invariant>,
}

impl Controls {
    async fn start() -> Self {
        let mut rig = Rig::start(Leases::Short).await.unwrap();
        let file = rig.upload(ROWS).await.unwrap();
        let reference = rig.submit(&file, EPOCHS).await.unwrap();
        let other = rig.submit(&file, EPOCHS).await.unwrap();
        rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
        let expected = Expected { reference: digits(&reference).to_owned(), acknowledged: vec![reference, other] };
        Self { rig, file, expected, noticed: BTreeSet::new() }
    }

    /// Returns the invariants that are broken now.
    async fn broken(&mut self) -> Vec<Invariant> {
        let facts = observe::facts(&mut self.rig).await.unwrap();
        invariants::broken(&facts, &self.expected).into_keys().collect()
    }

    /// Checks that exactly these invariants are broken now.
    async fn assert_broken(&mut self, wanted: &[Invariant]) {
        assert_eq!(self.broken().await, wanted);
        self.noticed.extend(wanted);
    }

    fn sql(&self, statement: &str) {
        self.rig.cluster.sql(statement).unwrap();
    }

    /// Returns the file of an object that an adapter version names.
    fn published(&self) -> PathBuf {
        let query = "select file ->> 'sha256' from adapter_version, jsonb_array_elements(files) as file
            where file ->> 'name' = 'adapter_model.safetensors' limit 1";
        self.object(&self.rig.cluster.sql(query).unwrap())
    }

    fn object(&self, digest: &str) -> PathBuf {
        self.rig.objects().join("attune").join("blob").join(digest)
    }

    /// A version whose content is damaged is not whole, and a second version of a job is one too many.
    async fn versions(&mut self) {
        let path = self.published();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        self.assert_broken(&[Invariant::OneWholeVersion]).await;
        fs::write(&path, whole).unwrap();
        self.sql(TWO_VERSIONS);
        self.assert_broken(&[Invariant::OneWholeVersion]).await;
        self.sql(ONE_VERSION);
    }

    /// Content that was not recorded before it was stored is never collected, nor is a node of an unknown provider.
    async fn leftovers(&mut self) {
        let content = b"content without a record";
        let path = self.object(&sha256(content));
        fs::write(&path, content).unwrap();
        self.assert_broken(&[Invariant::NothingIsLeft]).await;
        fs::remove_file(path).unwrap();
        self.sql(ORPHAN_NODE);
        self.assert_broken(&[Invariant::NothingIsLeft]).await;
        self.sql(NO_ORPHAN_NODE);
    }

    /// A multipart upload whose API was killed is left over if the object store does not list it.
    async fn unlisted_upload(&mut self) {
        assert!(uploads::cut_off(&mut self.rig).await.unwrap());
        self.rig.ready().await.unwrap();
        // The list reads these files.
        let metadata = fs::read_dir(self.rig.objects()).unwrap().map(|entry| entry.unwrap().path());
        let metadata: Vec<PathBuf> =
            metadata.filter(|path| path.to_string_lossy().ends_with(".metadata.json")).collect();
        let listed: Vec<_> = metadata.iter().filter(|path| path.to_string_lossy().contains(".upload-")).collect();
        assert_eq!(listed.len(), 1, "one upload is unfinished: {metadata:?}");
        let hidden = self.rig.objects().join("hidden");
        fs::rename(listed[0], &hidden).unwrap();
        self.assert_broken(&[Invariant::NothingIsLeft]).await;
        fs::rename(hidden, listed[0]).unwrap();
        self.assert_broken(&[]).await;
    }

    /// A job without a message, and without the repair that sends it again, does not end.
    async fn lost_message(&mut self) {
        self.rig.scheduler.kill().unwrap();
        let job = self.rig.submit(&self.file, EPOCHS).await.unwrap();
        self.expected.acknowledged.push(job);
        self.sql(LOSE_MESSAGES);
        self.rig.ready().await.unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        self.assert_broken(&[Invariant::JobsEnd]).await;
        self.sql(REPAIR_MESSAGES);
        self.rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
    }

    /// A job that trains with another seed than it was created with, that forgot its charges, and whose events are not
    /// relayed.
    async fn disturbed_job(&mut self) {
        self.rig.scheduler.kill().unwrap();
        let job = self.rig.submit(&self.file, EPOCHS).await.unwrap();
        let id = digits(&job).to_owned();
        self.expected.acknowledged.push(job.clone());
        self.sql(&format!("update job set spec = jsonb_set(spec, '{{seed}}', '8') where job_id = '{id}'"));
        self.sql(NO_RELAY);
        self.rig.ready().await.unwrap();
        let trains = format!("exists (select from job where job_id = '{id}' and steps_done >= 15)");
        self.rig.until(&trains, ENDS_WITHIN).await.unwrap();
        self.rig.change(&job, "pause").await.unwrap();
        let paused =
            format!("exists (select from job where job_id = '{id}' and state = 'paused' and charged_tokens > 0)");
        self.rig.until(&paused, ENDS_WITHIN).await.unwrap();
        self.sql(&format!("update job set charged_tokens = 0 where job_id = '{id}'"));
        self.rig.change(&job, "resume").await.unwrap();
        self.rig.until(ALL_ENDED, ENDS_WITHIN).await.unwrap();
        self.sql(RELAY);
        self.assert_broken(&[Invariant::CurveIsKept, Invariant::StepsCountOnce, Invariant::EndsAreDelivered]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_invariant_is_broken_without_its_guard() {
    let mut controls = Controls::start().await;
    controls.assert_broken(&[]).await;
    controls.versions().await;
    controls.leftovers().await;
    controls.unlisted_upload().await;
    controls.assert_broken(&[]).await;
    controls.lost_message().await;
    controls.assert_broken(&[]).await;
    controls.disturbed_job().await;
    let (noticed, all) = (controls.noticed.len(), invariants::ALL.len());
    figure(&json!({"figure": "faults_controls_failed", "value": noticed, "bar": all}).to_string());
    assert_eq!(noticed, all, "{:?}", controls.noticed);
}
