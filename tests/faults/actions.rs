//! The faults, one by one.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    clock,
    disk::Disk,
    processes,
    proxy::Mode,
    rig::{EPOCHS, Rig},
    uploads,
};

/// The duration of a fault that lasts.
const LASTS: Duration = Duration::from_secs(2);
/// The duration of a trainer's stop: longer than its lease, so that its run is lost and it continues as a zombie.
const ZOMBIE_AFTER: Duration = Duration::from_secs(10);
/// The time until a process has read a change of its clock.
const CLOCK_READ_AFTER: Duration = Duration::from_millis(1500);
/// The longest wait for a job that is about to publish.
const PUBLISHES_WITHIN: Duration = Duration::from_secs(3);

/// Ends a random session of the API or the scheduler, five times a second for two seconds.
const END_SESSIONS: &str = "do $$ begin
    for round in 1..10 loop
        perform pg_stat_clear_snapshot();
        perform pg_terminate_backend(pid) from (
            select pid from pg_stat_activity where usename = 'attune_login' order by random() limit 1) as session;
        perform pg_sleep(0.2);
    end loop;
end $$";

/// Keeps all connections of the pools waiting for two seconds.
const EXHAUST_POOLS: &str = "begin; lock table job in access exclusive mode; select pg_sleep(2); commit";

/// Returns the running job that is nearest to its end, as the API names it.
const NEAREST_TO_ITS_END: &str = "select 'ftjob-' || replace(job_id::text, '-', '') from job
    where state = 'running' and total_steps - steps_done < 40 order by total_steps - steps_done limit 1";

/// Returns the file of any job, as the API names it.
const A_FILE: &str = "select 'file-' || replace(training_file_id::text, '-', '') from job limit 1";
/// Returns the number of messages to the scheduler that are due later.
const LATE_MESSAGES: &str = "select count(*) from apalis.jobs where run_at > now() + interval '1 minute'";

/// A process of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// `attune-api`.
    Api,
    /// `attune-scheduler`.
    Scheduler,
    /// One of `attune-trainer`.
    Trainer,
    /// One of `attune-serving`.
    Serving,
}

impl Target {
    /// Returns the name of the program.
    const fn program(self) -> &'static str {
        match self {
            Self::Api => "attune-api",
            Self::Scheduler => "attune-scheduler",
            Self::Trainer => "attune-trainer",
            Self::Serving => "attune-serving",
        }
    }
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// SIGKILL.
    Kill(Target),
    /// SIGSTOP, and SIGCONT after a while.
    Stop(Target),
    /// The wall clock of all processes of a program is wrong by this offset for a while.
    SkewClock(Target, &'static str),
    /// SIGKILL to the API, which is storing the parts of a long file.
    KillDuringUpload,
    /// The object store fails.
    Store(Mode),
    /// Sessions of the database end.
    EndSessions,
    /// The database crashes and recovers.
    RestartDatabase,
    /// All connections of the pools wait.
    ExhaustPools,
    /// A user cancels a job that is about to publish.
    CancelWhilePublishing,
    /// The disk of the objects is full or, without a disk of the harness's own, a trainer can write no more files.
    FillDisk,
}

/// Performs a fault, and starts the programs that it ended. Returns the number of processes that it killed.
pub(crate) async fn perform(rig: &mut Rig, action: Action) -> Result<usize> {
    let killed = match action {
        Action::Kill(target) => return kill(rig, target).await,
        Action::SkewClock(target, offset) => skew_clock(rig, target, offset).await.map(|()| 0),
        Action::KillDuringUpload => uploads::cut_off(rig).await.map(usize::from),
        Action::Stop(target) => stop(rig, target).await.map(|()| 0),
        Action::Store(mode) => {
            rig.proxy.set(mode);
            tokio::time::sleep(LASTS).await;
            rig.proxy.set(Mode::Pass);
            Ok(0)
        }
        Action::EndSessions => rig.cluster.sql(END_SESSIONS).map(|_| 0),
        Action::RestartDatabase => rig.cluster.restart(Signal::SIGQUIT).map(|()| 0),
        Action::ExhaustPools => rig.cluster.sql(EXHAUST_POOLS).map(|_| 0),
        Action::CancelWhilePublishing => cancel_while_publishing(rig).await.map(|()| 0),
        Action::FillDisk => fill_disk(rig).await.map(|()| 0),
    };
    rig.keep_up()?;
    killed
}

async fn kill(rig: &mut Rig, target: Target) -> Result<usize> {
    let killed = match target {
        Target::Api => rig.api.kill()?,
        Target::Scheduler => rig.scheduler.kill()?,
        Target::Trainer | Target::Serving => {
            let id = process(rig, target).await?;
            id.is_some_and(|id| processes::signal(id, Signal::SIGKILL))
        }
    };
    rig.keep_up()?;
    Ok(usize::from(killed))
}

async fn stop(rig: &Rig, target: Target) -> Result<()> {
    let Some(id) = process(rig, target).await? else { return Ok(()) };
    processes::signal(id, Signal::SIGSTOP);
    tokio::time::sleep(if target == Target::Trainer { ZOMBIE_AFTER } else { LASTS }).await;
    processes::signal(id, Signal::SIGCONT);
    Ok(())
}

/// Skews a clock, and sets it right after a while. The object store refuses signatures that are more than 15 minutes
/// off, so this looks like an outage of it. While the API's clock is wrong, a user creates a job.
async fn skew_clock(rig: &Rig, target: Target, offset: &str) -> Result<()> {
    process(rig, target).await?; // starts a replica
    rig.set_clock(target.program(), offset)?;
    tokio::time::sleep(CLOCK_READ_AFTER).await;
    if target == Target::Api {
        let file = rig.cluster.sql(A_FILE)?;
        // The request may fail.
        drop(rig.submit(&file, EPOCHS).await);
    }
    tokio::time::sleep(LASTS).await;
    let late = rig.cluster.sql(LATE_MESSAGES)?;
    rig.set_clock(target.program(), clock::RIGHT)?;
    tokio::time::sleep(CLOCK_READ_AFTER).await;
    ensure!(late == "0", "{late} messages are due by the clock of {target:?}, not by the database's");
    Ok(())
}

/// Returns the ID of a process; `None`: there is none now.
async fn process(rig: &Rig, target: Target) -> Result<Option<i32>> {
    match target {
        Target::Api => Ok(rig.api.id()),
        Target::Scheduler => Ok(rig.scheduler.id()),
        Target::Trainer => Ok(rig.processes("attune-trainer")?.first().copied()),
        Target::Serving => {
            if rig.processes("attune-serving")?.is_empty() {
                // A request starts a replica. It may fail: other faults have not ended yet.
                drop(chat(rig).await);
            }
            Ok(rig.processes("attune-serving")?.first().copied())
        }
    }
}

/// Requests an answer of the base model; returns the status.
pub(crate) async fn chat(rig: &Rig) -> Result<u16> {
    Ok(rig.call(Method::POST, "/v1/chat/completions", Some(chat_body())).await?.0)
}

/// Returns a short chat with the base model.
pub(crate) fn chat_body() -> Value {
    json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]})
}

async fn cancel_while_publishing(rig: &Rig) -> Result<()> {
    let job = rig.cluster.sql(NEAREST_TO_ITS_END)?;
    if job.is_empty() {
        return Ok(());
    }
    let begun = std::time::Instant::now();
    let id = job.trim_start_matches("ftjob-");
    let trained = format!("select steps_done >= total_steps from job where job_id = '{id}'");
    while rig.cluster.sql(&trained)? != "t" && begun.elapsed() < PUBLISHES_WITHIN {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The answer is either that it is cancelled, or that it has ended.
    drop(rig.call(Method::POST, &format!("/v1/fine_tuning/jobs/{job}/cancel"), None).await);
    Ok(())
}

async fn fill_disk(rig: &Rig) -> Result<()> {
    if let Some(disk) = &rig.disk {
        let filler = disk.fill()?;
        tokio::time::sleep(LASTS).await;
        return Disk::free(&filler);
    }
    if let Some(id) = process(rig, Target::Trainer).await? {
        // The trainer may have ended meanwhile.
        let _ = Command::new("prlimit").args(["--fsize=4096:", "--pid", &id.to_string()]).output()?;
    }
    Ok(())
}
