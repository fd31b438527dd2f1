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

use attune_domain::{bytes::Bytes, offer::Offer};
use futures::future::BoxFuture;

use super::{
    command::Commands,
    job::{Answer, Job, Limits, Status},
    script::Template,
};
use crate::{
    config::slurm::{NOTICE_SECONDS, SlurmConfig, SlurmOffer},
    error::{CommandError, ProviderError},
    providers::provider::{Launch, Process, Provider},
};

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

#[derive(Default)]
struct Memory {
    /// The last answer of `squeue`, and its time.
    answer: Option<(Instant, Result<Vec<Job>, CommandError>)>,
    /// The IDs of jobs that were stopped: once ended, they are not listed.
    stopped: HashSet<u64>,
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
        let (at, answer) = self.memory().answer.clone()?;
        (at.elapsed() < Duration::from_secs(self.config.poll_seconds)).then_some(answer)
    }

    /// Returns the jobs of this provider, from the last answer if that is recent.
    async fn jobs(&self) -> Result<Vec<Job>, CommandError> {
        if let Some(answer) = self.recent() {
            return answer;
        }
        let answer = self.query().await;
        self.memory().answer = Some((Instant::now(), answer.clone()));
        answer
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

    const fn limits(&self) -> Limits {
        Limits { minutes: self.config.time_limit_minutes, notice_seconds: NOTICE_SECONDS }
    }

    async fn submit(&self, launch: &Launch) -> Result<String, CommandError> {
        let Some(offer) = self.config.offers.iter().find(|offer| offer.is_named(&launch.resources.offer)) else {
            let message = format!("the configuration has no offer `{}` any more", launch.resources.offer);
            return Err(CommandError::Failed { command: "sbatch".into(), status: "no start".into(), message });
        };
        let template = Template {
            api_url: &self.api_url,
            work_dir: &self.config.work_dir,
            binaries: &self.config.binaries_dir,
            prefix: &self.config.command_prefix,
            listen_ip: self.config.listen_ip,
        };
        let submitted = self.commands.run("sbatch", &self.options(launch, offer), &template.script(launch)).await;
        // Also after an error: the cluster may have accepted the job.
        self.memory().answer = None;
        let id = String::from_utf8_lossy(&submitted?).trim().to_owned();
        tracing::info!(handle = launch.name, slurm.id = id, offer = offer.name, "submitted {}", launch.program.name());
        Ok(launch.name.clone())
    }

    fn options(&self, launch: &Launch, offer: &SlurmOffer) -> Vec<String> {
        let config = &self.config;
        let optional = [("account", &config.account), ("qos", &config.qos), ("gres", &offer.gres)];
        let optional = optional.into_iter().filter_map(|(key, value)| Some(format!("--{key}={}", value.as_ref()?)));
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
        let jobs = self.query().await?;
        for job in jobs.iter().filter(|job| job.name.as_deref() == Some(handle)) {
            if !matches!(job.status(self.limits()), Status::Ended(_)) {
                self.commands.run("scancel", &[job.job_id.to_string()], "").await?;
            }
            self.memory().stopped.insert(job.job_id);
        }
        self.memory().answer = None;
        Ok(())
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
    /// Returns whether `name` is that of one of its slots.
    fn is_named(&self, name: &str) -> bool {
        name == self.name || name.rsplit_once('/').is_some_and(|(offer, _)| offer == self.name)
    }

    /// Returns an offer for each slot: a slot is a machine of its own, so its memory is not shared with the others'.
    fn slots(&self, provider: &str, is_reachable: bool) -> impl Iterator<Item = Offer> {
        (1..=self.slots).map(move |slot| Offer {
            provider: provider.to_owned(),
            name: if self.slots == 1 { self.name.clone() } else { format!("{}/{slot}", self.name) },
            memory: self.memory(),
            // Nothing is free at a cluster that does not answer, but it will be: jobs wait, and do not fail.
            reserved: if is_reachable { Bytes(0) } else { self.memory() },
            free_slots: usize::from(is_reachable),
            threads: self.threads,
            micro_usd_per_hour: self.micro_usd_per_hour(),
        })
    }
}

impl Provider for Slurm {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn outlives_scheduler(&self) -> bool {
        true
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        Box::pin(async {
            let is_reachable = self.jobs().await.is_ok();
            Ok(self.config.offers.iter().flat_map(|offer| offer.slots(&self.config.name, is_reachable)).collect())
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
            let failed =
                |cause: CommandError| ProviderError { action: "listing the Slurm jobs".into(), cause: cause.into() };
            let jobs = self.jobs().await.map_err(failed)?;
            let memory = self.memory();
            Ok(jobs.iter().filter_map(|job| self.process(job, &memory.stopped)).collect())
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
