//! The `Provider` implementation. A process is a Slurm job: its name is the handle, and its comment names the platform
//! and the provider, so that several platforms can share a cluster and an account.
//!
//! The jobs continue when the scheduler stops. The next one finds them by their comment, and holds no state of its own
//! but the jobs that were stopped and that Slurm still lists.

use std::{
    collections::HashSet,
    os::unix::fs::MetadataExt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attune_domain::offer::Offer;
use futures::future::BoxFuture;

use super::{
    accounting::Record,
    command::Commands,
    job::{Answer, Job, Limits, Status},
    script::Template,
};
use crate::{
    config::slurm::{NOTICE_SECONDS, SlurmConfig, SlurmOffer},
    error::{CommandError, ProviderError},
    providers::{
        provider::{Launch, Process, Provider},
        slots::{self, is_slot_of},
    },
};

/// The age of the oldest job that is searched for in the cluster's accounting.
const RECORD_DAYS: u32 = 30;

/// The Slurm provider.
pub(crate) struct Slurm {
    config: SlurmConfig,
    api_url: String,
    /// The comment of the provider's jobs.
    comment: String,
    /// The user of this process, whose jobs these are.
    user: u32,
    commands: Commands,
    memory: Mutex<Memory>,
}

struct LastAnswer {
    requested: Instant,
    received: Instant,
    jobs: Result<Vec<Job>, CommandError>,
}

#[derive(Default)]
struct Memory {
    /// The last answer of `squeue`.
    answer: Option<LastAnswer>,
    /// The time of the last submission or cancellation: an answer that was requested before may lack it.
    changed: Option<Instant>,
    /// The IDs of jobs that were stopped: once ended, they are not listed.
    stopped: HashSet<u64>,
}

impl Memory {
    /// Returns whether an answer that was requested at this time is the newest, and has the last change.
    fn is_current(&self, requested: Instant) -> bool {
        let is_newer = self.answer.as_ref().is_none_or(|answer| answer.requested < requested);
        is_newer && self.changed.is_none_or(|changed| changed < requested)
    }

    /// Forgets the answer, after a change.
    fn change(&mut self) {
        (self.answer, self.changed) = (None, Some(Instant::now()));
    }
}

impl Slurm {
    /// Creates the provider from the configuration. The cluster need not be reachable.
    ///
    /// # Errors
    /// The user of this process cannot be determined.
    pub(crate) fn new(config: &SlurmConfig, api_url: &str) -> std::io::Result<Self> {
        let user = std::fs::metadata("/proc/self")?.uid();
        let (folder, slurm_conf) = (config.commands_dir.clone(), config.slurm_conf.clone());
        Ok(Self {
            api_url: api_url.to_owned(),
            comment: format!("attune {} {api_url}", config.name),
            user,
            commands: Commands::new(folder, slurm_conf, config.command_seconds),
            memory: Mutex::default(),
            config: config.clone(),
        })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last answer if it is recent.
    fn recent(&self) -> Option<Result<Vec<Job>, CommandError>> {
        let memory = self.memory();
        let LastAnswer { received, jobs, .. } = memory.answer.as_ref()?;
        (received.elapsed() < Duration::from_secs(self.config.poll_seconds)).then(|| jobs.clone())
    }

    /// Returns the jobs of this provider, from the last answer if that is recent.
    async fn jobs(&self) -> Result<Vec<Job>, CommandError> {
        if let Some(answer) = self.recent() {
            return answer;
        }
        self.ask().await
    }

    /// Queries Slurm, and keeps the answer, unless a newer one is known or a job was changed meanwhile.
    async fn ask(&self) -> Result<Vec<Job>, CommandError> {
        let requested = Instant::now();
        let jobs = self.query().await;
        let mut memory = self.memory();
        if memory.is_current(requested) {
            memory.answer = Some(LastAnswer { requested, received: Instant::now(), jobs: jobs.clone() });
        }
        jobs
    }

    async fn query(&self) -> Result<Vec<Job>, CommandError> {
        let output = self.commands.run("squeue", &["--json".into(), "--states=all".into()], "").await?;
        let answer: Answer = serde_json::from_slice(&output)
            .map_err(|why| CommandError::Unreadable { command: "squeue".into(), why: why.to_string() })?;
        let is_ours = |job: &Job| job.user_id == Some(self.user) && job.comment.as_deref() == Some(&self.comment);
        let jobs: Vec<_> = answer.jobs.into_iter().filter(is_ours).collect();
        self.memory().stopped.retain(|id| jobs.iter().any(|job| job.job_id == *id));
        Ok(jobs)
    }

    /// Returns the ends that the cluster's accounting has of jobs of these names.
    async fn accounted(&self, names: &[String]) -> Result<Vec<Process>, CommandError> {
        let arguments = [
            "--json".to_owned(),
            format!("--user={}", self.user),
            format!("--name={}", names.join(",")),
            format!("--starttime=now-{RECORD_DAYS}days"),
        ];
        let output = self.commands.run("sacct", &arguments, "").await?;
        let record: Record = serde_json::from_slice(&output)
            .map_err(|why| CommandError::Unreadable { command: "sacct".into(), why: why.to_string() })?;
        let jobs = record.jobs.into_iter().map(Job::from);
        let ended = jobs.filter_map(|job| match job.status(self.limits()) {
            Status::Ended(ended) => Some(Process { handle: job.name?, pending: None, ended: Some(ended) }),
            Status::Pending(_) | Status::Running => None,
        });
        Ok(ended.filter(|process| names.contains(&process.handle)).collect())
    }

    const fn limits(&self) -> Limits {
        Limits { minutes: self.config.time_limit_minutes, notice_seconds: NOTICE_SECONDS }
    }

    /// Returns the port of the metrics of a replica in a slot: one of its own, since the slots may share a machine.
    fn metrics_port(&self, slot: &str) -> Option<u16> {
        let offers = &self.config.offers;
        let at = offers.iter().position(|offer| is_slot_of(slot, &offer.name))?;
        let before: u32 = offers[..at].iter().map(|offer| offer.slots).sum();
        let port = u32::from(self.config.metrics_port?) + before + slots::number(slot)?.checked_sub(1)?;
        port.try_into().ok()
    }

    async fn submit(&self, launch: &Launch) -> Result<String, CommandError> {
        let Some(offer) = self.config.offers.iter().find(|offer| is_slot_of(&launch.resources.offer, &offer.name))
        else {
            let message = format!("the configuration has no offer `{}` any more", launch.resources.offer);
            return Err(CommandError::Failed { command: "sbatch".into(), status: "no start".into(), message });
        };
        let template = Template {
            api_url: &self.api_url,
            work_dir: &self.config.work_dir,
            binaries: &self.config.binaries_dir,
            prefix: &self.config.command_prefix,
            listen_ip: self.config.listen_ip,
            metrics_port: self.metrics_port(&launch.resources.offer),
        };
        let submitted = self.commands.run("sbatch", &self.options(launch, offer), &template.script(launch)).await;
        // Also after an error: the cluster may have accepted the job.
        self.memory().change();
        let id = String::from_utf8_lossy(&submitted?).trim().to_owned();
        tracing::info!(handle = launch.name, slurm.id = id, offer = offer.name, "submitted {}", launch.program.name());
        Ok(launch.name.clone())
    }

    fn options(&self, launch: &Launch, offer: &SlurmOffer) -> Vec<String> {
        let config = &self.config;
        let optional = [("account", config.account.clone()), ("qos", config.qos.clone()), ("gres", offer.gres())];
        let optional = optional.into_iter().filter_map(|(key, value)| Some(format!("--{key}={}", value?)));
        let mut options = vec![
            "--parsable".to_owned(),
            format!("--job-name={}", launch.name),
            format!("--comment={}", self.comment),
            format!("--partition={}", config.partition),
            "--nodes=1".into(),
            "--ntasks=1".into(),
            format!("--cpus-per-task={}", offer.threads),
            format!("--mem={}M", offer.memory_bytes >> 20),
            format!("--time={}", config.time_limit_minutes),
            "--no-requeue".into(),
            format!("--signal=B:TERM@{NOTICE_SECONDS}"),
            "--chdir=/".into(),
            "--input=/dev/null".into(),
            "--output=/dev/null".into(),
            "--error=/dev/null".into(),
        ];
        options.extend(optional);
        options
    }

    async fn cancel(&self, handle: &str) -> Result<(), CommandError> {
        let named = |jobs: Vec<Job>| -> Vec<Job> {
            jobs.into_iter().filter(|job| job.name.as_deref() == Some(handle)).collect()
        };
        let mut jobs = named(self.jobs().await?);
        if jobs.is_empty() {
            jobs = named(self.ask().await?);
        }
        for job in jobs {
            let is_stopped = self.memory().stopped.contains(&job.job_id);
            if !is_stopped && !matches!(job.status(self.limits()), Status::Ended(_)) {
                self.cancel_job(job.job_id).await?;
            }
            self.memory().stopped.insert(job.job_id);
        }
        self.memory().change();
        Ok(())
    }

    /// Cancels a job. One that has ended since the last answer is no error.
    async fn cancel_job(&self, id: u64) -> Result<(), CommandError> {
        let Err(error) = self.commands.run("scancel", &[id.to_string()], "").await else { return Ok(()) };
        let is_active = |job: &Job| job.job_id == id && !matches!(job.status(self.limits()), Status::Ended(_));
        if self.ask().await?.iter().any(is_active) { Err(error) } else { Ok(()) }
    }

    /// Returns the process of a job; `None`: it was stopped, and has ended.
    fn process(&self, job: &Job, stopped: &HashSet<u64>) -> Option<Process> {
        let handle = job.name.clone()?;
        match job.status(self.limits()) {
            Status::Pending(reason) => Some(Process { handle, pending: Some(reason), ended: None }),
            Status::Running => Some(Process { handle, pending: None, ended: None }),
            Status::Ended(_) if stopped.contains(&job.job_id) => None,
            Status::Ended(ended) => Some(Process { handle, pending: None, ended: Some(ended) }),
        }
    }
}

impl SlurmOffer {
    /// Returns an offer for each slot.
    fn slots(&self, provider: &str) -> impl Iterator<Item = Offer> + use<> {
        slots::slots(self.settings().offer(provider), self.slots)
    }
}

fn unlisted(cause: CommandError) -> ProviderError {
    ProviderError { action: "listing the Slurm jobs".into(), cause: cause.into() }
}

impl Provider for Slurm {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn outlives_scheduler(&self) -> bool {
        true
    }

    fn answer_limit(&self) -> Duration {
        // The command has its own limit, whose error says more.
        Duration::from_secs(self.config.command_seconds + 5)
    }

    fn configured_offers(&self) -> Vec<Offer> {
        self.config.offers.iter().flat_map(|offer| offer.slots(&self.config.name)).collect()
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        Box::pin(async {
            self.jobs().await.map_err(unlisted)?;
            Ok(self.configured_offers())
        })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        Box::pin(async move {
            let failed = |cause: CommandError| ProviderError {
                action: format!("starting {}", launch.program.name()),
                cause: cause.into(),
            };
            self.submit(&launch).await.map_err(failed)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        Box::pin(async {
            let jobs = self.jobs().await.map_err(unlisted)?;
            let memory = self.memory();
            Ok(jobs.iter().filter_map(|job| self.process(job, &memory.stopped)).collect())
        })
    }

    fn recorded(&self, handles: Vec<String>) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        Box::pin(async move {
            let failed = |cause: CommandError| ProviderError {
                action: "reading Slurm's accounting".into(),
                cause: cause.into(),
            };
            self.accounted(&handles).await.map_err(failed)
        })
    }

    fn stop(&self, handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        let handle = handle.to_owned();
        Box::pin(async move {
            let failed =
                |cause: CommandError| ProviderError { action: format!("stopping {handle}"), cause: cause.into() };
            self.cancel(&handle).await.map_err(failed)
        })
    }
}
