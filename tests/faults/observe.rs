//! Reads the facts: rows by SQL, objects from the object store's folder, deliveries from the receiver. First the
//! collector runs, over content whose grace period is over.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use attune_store::{
    config::{DatabaseConfig, ObjectStoreConfig},
    db,
    files::objects::Objects,
    sweep,
};
use attune_tests::{object_store::CREDENTIALS, sha256};

use crate::{
    cluster::Cluster,
    facts::{Facts, Object},
    rig::Rig,
};

/// The most passes of the collector.
const MOST_PASSES: usize = 5;
/// The time limit of each kind of content in a pass of the collector.
const KIND_PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait for trainers and idle replicas to exit.
const QUIET_WITHIN: Duration = Duration::from_secs(40);

const JOBS: &str = "select replace(job_id::text, '-', '') as job, state, error_message as error from job";

const VERSIONS: &str = "select replace(job_id::text, '-', '') as job, files from adapter_version
    where job_id is not null and deleted_at is null";

const STEPS: &str = "select replace(job_id::text, '-', '') as job, (data ->> 'step')::bigint as step,
        data ->> 'train_loss' as loss
    from job_event where type = 'metrics' and data ->> 'train_loss' is not null";

/// The runs. A checkpoint that was deleted meanwhile counts as the job's beginning.
const RUNS: &str = "select replace(run.job_id::text, '-', '') as job, run.steps,
        job.total_steps - coalesce(checkpoint.step, 0) as most
    from run join job using (job_id) left join checkpoint on checkpoint_id = resume_id where total_steps is not null";

const USAGE: &str = "select replace(job_id::text, '-', '') as job, sum(trained_tokens)::bigint as tokens from usage
    where job_id is not null group by job_id";

const ENDS: &str = "select replace(data ->> 'id', 'ftjob-', '') as job, type as kind from outbox
    where type in ('fine_tuning.job.succeeded', 'fine_tuning.job.failed', 'fine_tuning.job.cancelled')";

/// Nodes that no active run, replica or export uses.
const NODES: &str = "select string_agg(node_id::text, ' ') from node where released_at is null
    and not exists (select from run where run.node_id = node.node_id and run.state <> 'ended')
    and not exists (select from replica where replica.node_id = node.node_id and replica.state <> 'ended')
    and not exists (select from export where export.node_id = node.node_id and export.state = 'running')";

/// Digests that rows name, as the collector sees them.
const NAMED: &str = "select sha256 from base_model_file
    union select sha256 from file where deleted_at is null
    union select rows_sha256 from file where deleted_at is null and rows_sha256 is not null
    union select file ->> 'sha256' from checkpoint, jsonb_array_elements(files) as file
    union select file ->> 'sha256' from adapter_version, jsonb_array_elements(files) as file where deleted_at is null";

/// Ends all grace periods of content that rows state, and the time of unfinished uploads.
const AGE: &str = "update loose_blob set delete_after = now() - interval '1 second';
    update upload set expires_at = now() - interval '1 second', claimed_until = null where status = 'pending'";

/// An age at which content in use is stored or named, and other content is left over: two days.
const OLD: Duration = Duration::from_secs(2 * 24 * 3600);

/// The condition that all events are delivered.
const DELIVERED: &str = "not exists (select from outbox where relayed_at is null)
    and not exists (select from webhook_delivery where state = 'pending')";

/// The longest wait for deliveries: a killed scheduler's leases end after a minute.
const DELIVERED_WITHIN: Duration = Duration::from_secs(100);

/// Waits until the platform is quiet, runs the collector, and reads all facts.
pub(crate) async fn facts(rig: &mut Rig) -> Result<Facts> {
    let begun = Instant::now();
    // Trainers that published are still exiting, and replicas end when they are idle.
    while !processes(rig)?.is_empty() && begun.elapsed() < QUIET_WITHIN {
        rig.keep_up()?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A violation is found below.
    drop(rig.until(DELIVERED, DELIVERED_WITHIN).await);
    collect(rig).await?;
    let mut facts = Facts { processes: processes(rig)?, deliveries: rig.receiver.deliveries(), ..rows(&rig.cluster)? };
    objects(&rig.objects(), &mut facts)?;
    Ok(facts)
}

/// Reads the facts that are rows.
pub(crate) fn rows(cluster: &Cluster) -> Result<Facts> {
    let lines = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    Ok(Facts {
        jobs: cluster.rows(JOBS)?,
        versions: cluster.rows(VERSIONS)?,
        steps: cluster.rows(STEPS)?,
        runs: cluster.rows(RUNS)?,
        usage: cluster.rows(USAGE)?,
        ends: cluster.rows(ENDS)?,
        named: lines(cluster.sql(NAMED)?).into_iter().collect(),
        nodes: lines(cluster.sql(NODES)?),
        ..Facts::default()
    })
}

fn processes(rig: &Rig) -> Result<Vec<i32>> {
    Ok([rig.processes("attune-trainer")?, rig.processes("attune-serving")?].concat())
}

/// Runs the collector at least twice: one kind creates work for another.
async fn collect(rig: &Rig) -> Result<()> {
    let database = DatabaseConfig { url: rig.cluster.url("attune_login").into(), owner_url: None, max_connections: 2 };
    let objects = Objects::new(&ObjectStoreConfig {
        endpoint: Some(rig.proxy.url.clone()),
        region: "us-east-1".into(),
        bucket: "attune".into(),
        access_key_id: CREDENTIALS.0.into(),
        secret_access_key: CREDENTIALS.1.to_owned().into(),
        path_style: true,
    });
    let pool = db::connect_as_platform(&database)?;
    age(&rig.objects())?;
    let mut passes = 0;
    let mut left = String::new();
    // The scheduler's own pass may hold rows.
    while passes < 2 || (left != "0" && passes < MOST_PASSES) {
        rig.cluster.sql(AGE)?;
        drop(sweep::pass(&pool, &objects, KIND_PATIENCE).await);
        left = rig.cluster.sql("select count(*) from loose_blob")?;
        passes += 1;
    }
    pool.close().await;
    ensure!(left == "0", "the collector left {left} entries");
    Ok(())
}

/// Returns the files of unfinished multipart uploads, which `s3s-fs` keeps next to the buckets, and of objects that
/// have no digest yet.
fn rest_of_uploads(root: &Path) -> Result<Vec<PathBuf>> {
    let paths = |folder: &Path| fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>();
    let mut found = paths(root)?;
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".upload")));
    let staged = root.join("attune").join("upload");
    if staged.exists() {
        found.extend(paths(&staged)?);
    }
    Ok(found)
}

/// Makes the rest of uploads as old as no request is.
fn age(root: &Path) -> Result<()> {
    let old = SystemTime::now().checked_sub(OLD).context("the clock is right")?;
    for path in rest_of_uploads(root)? {
        fs::File::options().write(true).open(path)?.set_modified(old)?;
    }
    Ok(())
}

/// Reads the objects of the bucket, and the rest of uploads, from the server's folder.
fn objects(root: &Path, into: &mut Facts) -> Result<()> {
    let blobs = root.join("attune").join("blob");
    for entry in fs::read_dir(blobs)? {
        let entry = entry?;
        let content = fs::read(entry.path())?;
        let object = Object { sha256: sha256(&content), bytes: content.len() as u64 };
        into.objects.insert(entry.file_name().to_string_lossy().into_owned(), object);
    }
    let rest = rest_of_uploads(root)?;
    into.uploads = rest.iter().map(|path| path.display().to_string()).collect();
    Ok(())
}
