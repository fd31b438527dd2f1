//! Reads the facts: rows by SQL, objects from the object store's folder, deliveries from the receiver. First the
//! collector runs, over content whose grace period is over.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use attune_store::{
    config::{DatabaseConfig, ObjectStoreConfig},
    db,
    files::objects::Objects,
    sweep,
};
use attune_tests::{object_store::CREDENTIALS, sha256};

use crate::{
    facts::{Facts, Object},
    rig::Rig,
};

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

const USAGE: &str = "select replace(job_id::text, '-', '') as job, sum(trained_tokens)::bigint as tokens from usage
    where job_id is not null group by job_id";

const ENDS: &str = "select replace(data ->> 'id', 'ftjob-', '') as job, type as kind from outbox
    where type in ('fine_tuning.job.succeeded', 'fine_tuning.job.failed', 'fine_tuning.job.cancelled')";

/// Nodes that no active run and no active replica uses.
const NODES: &str = "select string_agg(node_id::text, ' ') from node where released_at is null
    and not exists (select from run where run.node_id = node.node_id and run.state <> 'ended')
    and not exists (select from replica where replica.node_id = node.node_id and replica.state <> 'ended')";

/// Digests that rows name, as the collector sees them.
const NAMED: &str = "select sha256 from base_model_file
    union select sha256 from file where deleted_at is null
    union select rows_sha256 from file where deleted_at is null and rows_sha256 is not null
    union select file ->> 'sha256' from checkpoint, jsonb_array_elements(files) as file
    union select file ->> 'sha256' from adapter_version, jsonb_array_elements(files) as file where deleted_at is null";

/// Ends all grace periods of content.
const AGE: &str = "update loose_blob set delete_after = now() - interval '1 second'";

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
    let cluster = &rig.cluster;
    let lines = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut facts = Facts {
        jobs: cluster.rows(JOBS)?,
        versions: cluster.rows(VERSIONS)?,
        steps: cluster.rows(STEPS)?,
        usage: cluster.rows(USAGE)?,
        ends: cluster.rows(ENDS)?,
        named: lines(cluster.sql(NAMED)?).into_iter().collect(),
        nodes: lines(cluster.sql(NODES)?),
        processes: processes(rig)?,
        deliveries: rig.receiver.deliveries(),
        ..Facts::default()
    };
    objects(&rig.objects(), &mut facts)?;
    Ok(facts)
}

fn processes(rig: &Rig) -> Result<Vec<i32>> {
    Ok([rig.processes("attune-trainer")?, rig.processes("attune-serving")?].concat())
}

/// Runs the collector twice: one kind creates work for another.
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
    for _ in 0..2 {
        rig.cluster.sql(AGE)?;
        drop(sweep::pass(&pool, &objects, KIND_PATIENCE).await);
    }
    pool.close().await;
    let left = rig.cluster.sql("select count(*) from loose_blob")?;
    ensure!(left == "0", "the collector left {left} entries");
    Ok(())
}

/// Reads the objects of the bucket, and the files of unfinished multipart uploads, from the server's folder.
fn objects(root: &Path, into: &mut Facts) -> Result<()> {
    let blobs = root.join("attune").join("blob");
    for entry in fs::read_dir(blobs)? {
        let entry = entry?;
        let content = fs::read(entry.path())?;
        let object = Object { sha256: sha256(&content), bytes: content.len() as u64 };
        into.objects.insert(entry.file_name().to_string_lossy().into_owned(), object);
    }
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(".upload") {
            into.uploads.push(name);
        }
    }
    Ok(())
}
