//! A run from its first request to its last event.
//!
//! The network belongs to tokio, the tensors to one thread of their own. That thread is the run's edge: whatever goes
//! wrong behind it, a panic of libtorch too, becomes the run's last event.

use std::{
    any::Any,
    path::{Path, PathBuf},
    time::Duration,
};

use attune_domain::run::{CONTRACT_VERSION, RemoteFile, RunEvent, RunSpec};
use attune_node::{Cache, Folder, NodeError, Platform, fetch, http_client};
use backon::Retryable;
use reqwest::Client;
use tokio::runtime::Handle;

use crate::{
    config::Config,
    error::{TrainerError, in_full, without_frames},
    memory,
    publish::publish,
    report::{Reporter, Voice, patience},
    setup::Session,
    train::train,
};

/// How long a run that was taken away may take to leave in good order.
const GRACE: Duration = Duration::from_secs(10);

/// What the phases need beside tensors.
pub struct Link {
    /// For blobs.
    pub platform: Platform,
    /// For events and stops.
    pub voice: Voice,
    /// The run's fence.
    pub run_lease: i64,
    /// A folder for what is written on the way; it goes with the run.
    pub scratch: PathBuf,
    /// For requests from the tensors' thread.
    pub network: Handle,
}

/// What was brought to this node.
pub struct Fetched {
    /// A Hugging Face folder.
    pub base: Folder,
    /// Where the base's packed weights are, or will be.
    pub packed_base: PathBuf,
    /// JSONL.
    pub training_file: PathBuf,
    /// JSONL.
    pub validation_file: Option<PathBuf>,
    /// The checkpoint's files, if the run goes on from one.
    pub checkpoint: Option<PathBuf>,
    /// The adapter's files, if the job continues from one and this run does not go on from a checkpoint.
    pub continue_from: Option<PathBuf>,
}

/// Runs the run. `true`: the platform has taken the last event.
///
/// # Errors
/// There is no run for this token, or the platform was not reached: nobody can be told but the log.
pub async fn run(config: Config) -> Result<bool, TrainerError> {
    let platform = Platform::new(http_client()?, &config.api_url, config.token);
    let spec = fetch_spec(&platform).await?;
    tracing::info!(job.id = %spec.job_id, run.id = %spec.run_id, "run {} of job {}", spec.run_id, spec.job_id);
    let heartbeat = Duration::from_secs(spec.heartbeat_seconds.max(1));
    let reporter = Reporter::start(platform.clone(), spec.run_lease, heartbeat);
    let voice = reporter.voice().clone();
    let outcome = tokio::select! {
        () = ended_long_ago(&voice) => Err(TrainerError::Ended),
        outcome = phases(platform, spec, voice.clone(), &config.cache_dir) => outcome,
    };
    let last = match outcome {
        Ok(published) => published,
        Err(why) => {
            tracing::error!(%why, "the run ends");
            let Some(last) = why.last_event() else { return Ok(false) };
            last
        }
    };
    Ok(reporter.finish(last).await)
}

/// The tensors' thread sees by itself that the run was ended; it is not waited for without end.
async fn ended_long_ago(voice: &Voice) {
    voice.ended().await;
    tokio::time::sleep(GRACE).await;
}

async fn fetch_spec(platform: &Platform) -> Result<RunSpec, NodeError> {
    (|| platform.get("/internal/run/spec"))
        .retry(patience(Duration::from_secs(10)))
        .when(NodeError::is_passing)
        .notify(|why, _| tracing::warn!(%why, "the run's spec did not come; asking again"))
        .await
}

async fn phases(platform: Platform, spec: RunSpec, voice: Voice, cache_dir: &Path) -> Result<RunEvent, TrainerError> {
    if spec.version != CONTRACT_VERSION {
        return Err(TrainerError::ContractVersion { theirs: spec.version });
    }
    let cache = Cache::open(cache_dir)?;
    let scratch = cache.scratch()?;
    let fetched = tokio::select! {
        () = voice.stop_asked() => return Err(TrainerError::Stopped { step: spec.resume.as_ref().map_or(0, |r| r.step) }),
        fetched = bring(&platform, &spec, &cache, scratch.path()) => fetched?,
    };
    let link = Link {
        platform,
        voice,
        run_lease: spec.run_lease,
        scratch: scratch.path().to_owned(),
        network: Handle::current(),
    };
    let predicted = spec.plan.predicted_peak;
    let working = tokio::task::spawn_blocking(move || work(spec, &fetched, &link));
    let outcome = working.await.unwrap_or_else(|fault| match fault.try_into_panic() {
        Ok(panic) => Err(TrainerError::Internal(format!("the trainer panicked: {}", words_of(&*panic)))),
        Err(fault) => Err(TrainerError::Internal(fault.to_string())),
    });
    outcome.map_err(|why| match why {
        TrainerError::Model(refusal) if refusal.is_out_of_memory() => {
            tracing::error!(refusal = without_frames(&refusal.to_string()), "libtorch got no memory");
            TrainerError::OutOfMemory { predicted, available: memory::available(), peak: memory::peak() }
        }
        other => other,
    })
}

/// Everything that the run reads, onto this node.
async fn bring(platform: &Platform, spec: &RunSpec, cache: &Cache, scratch: &Path) -> Result<Fetched, TrainerError> {
    let client = platform.client();
    let base = cache.folder(client, "base", &spec.base_digest, &spec.base).await?;
    let folder = |name: &str| {
        let path = scratch.join(name);
        std::fs::create_dir_all(&path).map_err(TrainerError::io(&path)).map(|()| path)
    };
    let training_file = fetch(client, &spec.training_file, &folder("training")?).await?;
    let validation_file = match &spec.validation_file {
        Some(file) => Some(fetch(client, file, &folder("validation")?).await?),
        None => None,
    };
    let packed_base = cache.packed_base(&spec.base_digest, spec.train.quantization)?;
    let mut fetched =
        Fetched { base, packed_base, training_file, validation_file, checkpoint: None, continue_from: None };
    match (&spec.resume, &spec.continue_from) {
        (Some(resume), _) => {
            let there = fetch_all(client, &resume.files, folder("resume")?).await;
            fetched.checkpoint = Some(there.map_err(|why| match is_damage(&why) {
                true => TrainerError::Checkpoint(in_full(&why)),
                false => why.into(),
            })?);
        }
        (None, Some(first)) => {
            fetched.continue_from = Some(fetch_all(client, &first.files, folder("continue_from")?).await?);
        }
        (None, None) => {}
    }
    Ok(fetched)
}

/// The object is gone or another one, and will be the next time.
const fn is_damage(why: &NodeError) -> bool {
    matches!(why, NodeError::Changed { .. } | NodeError::Refused { status: 404, .. })
}

async fn fetch_all(client: &Client, files: &[RemoteFile], into: PathBuf) -> Result<PathBuf, NodeError> {
    for file in files {
        fetch(client, file, &into).await?;
    }
    Ok(into)
}

/// The tensors' thread.
fn work(spec: RunSpec, fetched: &Fetched, link: &Link) -> Result<RunEvent, TrainerError> {
    let mut session = Session::set_up(spec, fetched, &link.scratch)?;
    train(&mut session, link)?;
    publish(session, fetched, link)
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}
