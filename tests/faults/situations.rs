//! The situations that fail points need and that an undisturbed life of jobs on this machine does not have: spent
//! budgets, wrong measures, a trainer that cannot be launched, preemption, a node and a replica without a use. Any of
//! them may fail to come about, since the API or the scheduler is killed; they are created again in the next round.

use std::{fs, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    invariants::digits,
    processes,
    rig::Rig,
    storm::{ALL_ENDED, ROWS},
    users,
};

/// The epochs of each job, of six steps.
pub(crate) const EPOCHS: u32 = 10;
/// The duration of a situation: longer than until a waiting job's message is sent again, shorter than a lease.
const LASTS: Duration = Duration::from_secs(6);
/// The longest time until a job is paused, runs or has ended.
const STEP_WITHIN: Duration = Duration::from_secs(20);

/// Spends the budget of all projects.
const SPEND: &str = "insert into budget (project_id, monthly_micro_usd) select project_id, 0 from project
    on conflict (project_id) do nothing";
/// Makes the paused job fit into any room.
const SMALL: &str = "update job set need_bytes = 1, expected_seconds = 1 where state = 'paused'";
/// Leaves as good as no room: a node without a use, which the reconciler releases soon, holds the rest of the machine.
const NO_ROOM: &str = "insert into node (node_id, provider, offer, memory)
    select gen_random_uuid(), provider, name, memory - 1048576 - coalesce(
        (select sum(node.memory) from node where released_at is null and node.provider = offer.provider), 0)
    from offer where provider = 'local'";
/// Makes the paused job need more memory than any machine has, until it is measured again.
const TOO_LARGE: &str = "update job set need_bytes = 1::bigint << 55 where state = 'paused'";
/// Adds a base model with more embeddings than any machine has memory for, and a replica of it.
const GIANT: &str = "insert into base_model (base_model_id, project_id, name, digest, architecture)
        select gen_random_uuid(), project_id, 'giant', digest,
            jsonb_set(architecture, '{vocab_size}', '1000000000000')
        from base_model where name = 'tiny' and not exists (select from base_model where name = 'giant');
    insert into replica (replica_id, base_model_id, state, token, quantization, pushed_at)
        select gen_random_uuid(), base_model_id, 'wanted', gen_random_uuid()::text, 'none', now() - interval '1 minute'
        from base_model where name = 'giant' and not exists (
            select from replica where replica.base_model_id = base_model.base_model_id and state <> 'ended')";
/// The condition that both places are taken and a job waits.
const IS_FULL: &str = "(select count(*) filter (where state in ('provisioning', 'running')) >= 2
        and count(*) filter (where state = 'queued' and need_bytes is not null) > 0 from job)";
/// Lets the jobs that run end late and be stopped for the ones that wait.
const PREEMPT: &str = "update run set step_ms = step_ms + 1000000000 where state <> 'ended';
    update job set preemptible = true, priority = 'low', expected_seconds = 1000000
        where state in ('provisioning', 'running');
    update job set preemptible = false, priority = 'high', preemptions = 0, pushed_at = now() - interval '1 minute'
        where state = 'queued'";
/// Ends the delays before further attempts.
const NO_DELAY: &str = "update job set retry_at = null where state = 'queued';
    update export set next_try_at = now() where state = 'queued'";

/// Creates each situation once, and waits until all jobs have ended.
pub(crate) async fn create_all(rig: &mut Rig, acknowledged: &mut Vec<String>) -> Result<()> {
    note("a replica too large", rig.cluster.sql(GIANT).map(drop));
    note("a spent budget", spend_budget(rig, acknowledged).await);
    rig.cluster.sql("delete from budget")?;
    note("no room", resume_measured(rig, acknowledged, &format!("{SMALL}; {NO_ROOM}")).await);
    note("no room for an export", export_without_room(rig).await);
    note("a job too large", resume_measured(rig, acknowledged, TOO_LARGE).await);
    let programs = rig.path("bin");
    let (program, away) = (programs.join("attune-trainer"), programs.join("away"));
    fs::rename(&program, &away)?;
    note("a failed launch", submitted_for_a_while(rig, acknowledged).await);
    fs::rename(&away, &program)?;
    rig.cluster.sql(NO_DELAY)?;
    note("preemption", preempt(rig, acknowledged).await);
    // An orderly stop returns the checks of files in progress.
    note("a stop", rig.scheduler.stop());
    drop(rig.until(ALL_ENDED, STEP_WITHIN).await);
    Ok(())
}

fn note(situation: &str, created: Result<()>) {
    if let Err(why) = created {
        println!("{situation}: {why:#}");
    }
}

/// Creates a job; returns its ID.
async fn submit(rig: &mut Rig, acknowledged: &mut Vec<String>) -> Result<String> {
    rig.ready().await?;
    let file = rig.upload(ROWS).await?;
    let job = rig.submit(&file, EPOCHS).await?;
    acknowledged.push(job.clone());
    Ok(job)
}

/// Keeps the programs up for the duration of a situation.
async fn last(rig: &mut Rig) {
    drop(rig.until("false", LASTS).await);
}

/// Creates a job, and keeps the programs up for the duration of a situation.
async fn submitted_for_a_while(rig: &mut Rig, acknowledged: &mut Vec<String>) -> Result<()> {
    submit(rig, acknowledged).await?;
    last(rig).await;
    Ok(())
}

/// Spends the budget while a job waits; the caller removes the budget.
async fn spend_budget(rig: &mut Rig, acknowledged: &mut Vec<String>) -> Result<()> {
    rig.cluster.sql(SPEND)?;
    let job = submit(rig, acknowledged).await?;
    let paused = format!("(select state = 'paused' from job where job_id = '{}')", digits(&job));
    rig.until(&paused, STEP_WITHIN).await
}

/// Pauses a new job, changes its measures, and resumes it on a machine without other jobs.
async fn resume_measured(rig: &mut Rig, acknowledged: &mut Vec<String>, change: &str) -> Result<()> {
    rig.until(ALL_ENDED, STEP_WITHIN).await?;
    let job = submit(rig, acknowledged).await?;
    // Its files must be checked before it is paused: otherwise a resume checks them first.
    let queued = format!("(select token_facts is not null from job where job_id = '{}')", digits(&job));
    rig.until(&queued, STEP_WITHIN).await?;
    rig.change(&job, "pause").await?;
    let paused = format!("(select state = 'paused' from job where job_id = '{}')", digits(&job));
    rig.until(&paused, STEP_WITHIN).await?;
    rig.cluster.sql(change)?;
    rig.change(&job, "resume").await?;
    last(rig).await;
    Ok(())
}

/// Requests an export on a machine without room and without other jobs.
async fn export_without_room(rig: &mut Rig) -> Result<()> {
    rig.until(ALL_ENDED, STEP_WITHIN).await?;
    rig.ready().await?;
    rig.cluster.sql(NO_ROOM)?;
    users::export(rig).await?;
    last(rig).await;
    Ok(())
}

/// Lets jobs of a high priority wait for ones that hang and may be preempted; then these continue.
async fn preempt(rig: &mut Rig, acknowledged: &mut Vec<String>) -> Result<()> {
    for _ in 0..4 {
        submit(rig, acknowledged).await?;
    }
    let full = rig.until(IS_FULL, STEP_WITHIN).await;
    let trainers = rig.processes("attune-trainer")?;
    for &id in &trainers {
        processes::signal(id, Signal::SIGSTOP);
    }
    let changed = rig.cluster.sql(PREEMPT);
    last(rig).await;
    for id in trainers {
        processes::signal(id, Signal::SIGCONT);
    }
    changed.and(full.map(|()| String::new())).map(drop)
}
