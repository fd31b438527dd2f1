//! Dispatch, `queued → provisioning`: facts → memory → offer → node, run and lease in one transaction → launch.
//!
//! The message is only a wake-up: the rows are the queue of waiting jobs, and the oldest goes first. A job that must
//! wait holds the younger ones back, so that a large job does not starve.

use attune_domain::{
    bytes::Bytes,
    id::JobId,
    job::JobEvent,
    memory::Workload,
    offer::{self, Offer, Refusal, place, place_again},
    run::Plan,
};
use attune_process::error_chain::chain;
use attune_store::{
    adapters::base_model,
    error::StoreError,
    ids,
    jobs::{
        checkpoint,
        job::{self, Job, JobError, Step},
        job_event::{self, Level},
        job_pause,
        loss::{self, Blame, Loss},
        waiting,
    },
    queue::DispatchJob,
    runs::{
        node::{self, NewNode},
        run::{self, NewRun, Run},
    },
    tenancy::money,
};
use serde_json::json;
use sqlx::PgConnection;

use super::{Handle, plan_words};
use crate::{
    app::{self, App},
    error::SchedulerError,
    providers::provider::{Launch, Program, Resources},
    reconciler,
};

/// The `code` of the event that warns of another plan.
const PLAN_CHANGED: &str = "plan_changed";

/// The maximum number of jobs dispatched per message; the reconciler sends another message for the rest.
const JOBS_AT_ONCE: i64 = 20;

impl Handle for DispatchJob {
    async fn handle(self, app: App) -> Result<(), SchedulerError> {
        let _placing = app.placing.lock().await;
        let waiting = job::waiting(&mut *app.single().await?, JOBS_AT_ONCE).await?;
        for job_id in waiting {
            if !dispatch(&app, job_id).await? {
                break;
            }
        }
        Ok(())
    }
}

/// The placement decision for a queued job.
enum Decision {
    /// Place it on this offer. `changed`: the warning if the plan differs from the one that the job began with.
    Place { plan: Plan, offer: Offer, message: String, changed: Option<String> },
    /// Fail it: it will never fit.
    Refuse(JobError),
    /// Wait. `for_plan`: another plan than the one that the job began with might fit.
    Wait { refusals: Vec<Refusal>, reason: String, for_plan: bool },
}

/// Returns whether the next job may be dispatched.
#[tracing::instrument(skip(app), fields(job.id = %job_id))]
async fn dispatch(app: &App, job_id: JobId) -> Result<bool, SchedulerError> {
    let mut tx = app.begin().await?;
    let job = job::load(&mut tx, job_id).await?;
    if let Some((reason, why)) = money::exhausted(&mut tx, &job).await? {
        return match job_pause::pause_for(&mut tx, &job, reason, &why).await {
            Ok(()) => Ok(tx.commit().await.map(|()| true)?),
            Err(StoreError::Illegal(_)) => Ok(true),
            Err(error) => Err(error.into()),
        };
    }
    let architecture = base_model::get(&mut tx, job.base_model_id).await?.architecture;
    let offers = app::offers(app, &mut tx).await?;
    let work = Workload { architecture: &architecture, train: &job.spec, longest_row: longest_row(&job) };
    let kept = run::last_plan(&mut tx, job_id).await?;
    let claimed = match decide(work, kept.as_ref(), &offers) {
        Decision::Place { plan, offer, message, changed } => {
            if let Some(warning) = changed {
                warn_of_change(&mut tx, job_id, &warning, (kept.as_ref(), &plan)).await?;
            }
            claim(app, &mut tx, &job, (plan, offer, message)).await
        }
        Decision::Refuse(error) => {
            let step = Step::failure(JobEvent::RunFailed, error);
            job::step(&mut tx, job_id, &step).await.map(|_| None)
        }
        Decision::Wait { refusals, reason, for_plan } => {
            tracing::debug!(reason, "has to wait");
            match for_plan {
                true => waiting::for_plan(&mut tx, job_id, &reason).await?,
                false => waiting::note(&mut tx, job_id, &reason).await?,
            }
            tx.commit().await?;
            if refusals.iter().any(|reason| matches!(reason, Refusal::Crowded { .. })) {
                reconciler::stop_idle_replicas(app).await?;
            }
            return Ok(false);
        }
    };
    match claimed {
        Ok(claimed) => {
            tx.commit().await?;
            match claimed {
                Some(claimed) => launch(app, claimed).await,
                None => Ok(true),
            }
        }
        // It was cancelled meanwhile.
        Err(StoreError::Illegal(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn longest_row(job: &Job) -> u64 {
    let longest = job
        .token_facts
        .as_ref()
        .map(|facts| facts.training.longest_row.max(facts.validation.map_or(0, |validation| validation.longest_row)));
    longest.unwrap_or_else(|| job.spec.trainer.max_length.into()).max(1)
}

/// Decides without I/O. A job that was trained before with the plan `kept` continues with that plan and waits for it,
/// so that its adapter equals that of an undisturbed job. Where no offer can ever hold that plan it gets another one,
/// and a warning.
fn decide(work: Workload<'_>, kept: Option<&Plan>, offers: &[Offer]) -> Decision {
    let Some(kept) = kept else { return decide_anew(work, offers) };
    match place_again(work, kept, offers) {
        offer::Decision::Now { offer, plan, estimate } => {
            let message = format!(
                "Training on {}: {} of memory predicted ({}); {}, as before",
                offer.name,
                estimate.peak,
                estimate.breakdown(),
                plan_words::cut(&plan)
            );
            Decision::Place { plan, offer: offer.clone(), message, changed: None }
        }
        offer::Decision::Later(refusals) => {
            let reason = format!(
                "The job waits for memory to resume with its original plan ({}): {}",
                plan_words::cut(kept),
                plan_words::listed(&refusals)
            );
            Decision::Wait { refusals, reason, for_plan: true }
        }
        offer::Decision::Never { smallest, refusals } => match decide_anew(work, offers) {
            Decision::Place { plan, offer, message, .. } => {
                let changed = Some(format!(
                    "The job cannot resume with its original plan ({}), which needs {}: {}. It resumes with {}. \
                     The adapter will not be bit-identical to that of an undisturbed job",
                    plan_words::cut(kept),
                    smallest.peak,
                    plan_words::listed(&refusals),
                    plan_words::cut(&plan)
                ));
                Decision::Place { plan, offer, message, changed }
            }
            other => other,
        },
    }
}

/// Decides for a job without a plan. No I/O.
fn decide_anew(work: Workload<'_>, offers: &[Offer]) -> Decision {
    match place(work, offers) {
        offer::Decision::Now { offer, plan, estimate } => {
            let message = format!(
                "Training on {}: {} of memory predicted ({}); {}",
                offer.name,
                estimate.peak,
                estimate.breakdown(),
                plan_words::chosen(work, &plan)
            );
            Decision::Place { plan, offer: offer.clone(), message, changed: None }
        }
        offer::Decision::Never { smallest, refusals } => {
            let reasons = plan_words::listed(&refusals);
            let (asked, param) = plan_words::asked_for(work.train);
            let message = format!(
                "The job{asked} needs at least {} of memory ({}), but {}",
                smallest.peak,
                smallest.breakdown(),
                if reasons.is_empty() { "there is no machine" } else { &reasons }
            );
            let param = param.map(str::to_owned);
            Decision::Refuse(JobError { code: "insufficient_memory".into(), message, param })
        }
        offer::Decision::Later(refusals) => {
            let reason = format!("The job waits for a machine: {}", plan_words::listed(&refusals));
            Decision::Wait { refusals, reason, for_plan: false }
        }
    }
}

/// Adds an event, before the step that claims the job, that the result may differ from an undisturbed run's.
async fn warn_of_change(
    tx: &mut PgConnection,
    job: JobId,
    warning: &str,
    (before, after): (Option<&Plan>, &Plan),
) -> Result<(), StoreError> {
    let data = json!({ "code": PLAN_CHANGED, "before": before.map(shown), "after": shown(after) });
    job_event::message_with(tx, job, Level::Warn, warning, &data).await
}

fn shown(plan: &Plan) -> serde_json::Value {
    json!({ "micro_batch_size": plan.micro_batch_size, "gradient_checkpointing": plan.checkpointing })
}

/// A claimed run, and the launch of its trainer once the transaction is committed.
struct Claimed {
    run: Run,
    /// The name of the provider to launch at.
    provider: String,
    launch: Launch,
}

async fn claim(
    app: &App,
    tx: &mut PgConnection,
    job: &Job,
    (plan, offer, message): (Plan, Offer, String),
) -> Result<Option<Claimed>, StoreError> {
    let token = ids::secret();
    let resume_id = checkpoint::newest(tx, job.job_id).await?.map(|checkpoint| checkpoint.checkpoint_id);
    let memory = plan.predicted_peak.max(Bytes(1));
    let resources = Resources { offer: offer.name.clone(), memory, threads: plan.threads };
    let node = NewNode {
        provider: offer.provider.clone(),
        offer: offer.name,
        memory,
        micro_usd_per_hour: offer.micro_usd_per_hour,
    };
    let new = NewRun {
        job_id: job.job_id,
        node,
        plan,
        resume_id,
        token_hash: ids::hash(&token),
        heartbeat_seconds: app.leases.heartbeat_seconds,
        message,
    };
    let run = run::create(tx, &new).await?;
    let launch = Launch { program: Program::Trainer, name: run.run_id.to_string(), token: token.into(), resources };
    Ok(Some(Claimed { run, provider: offer.provider, launch }))
}

/// Launches the trainer of a committed run. If it cannot be started, the run is lost immediately. Returns whether it
/// was started.
async fn launch(app: &App, claimed: Claimed) -> Result<bool, SchedulerError> {
    let Claimed { run, provider, launch } = claimed;
    match app.providers.launch(&provider, launch).await {
        Ok(handle) => {
            node::launched(&mut *app.single().await?, run.node_id, &handle).await?;
            Ok(true)
        }
        Err(error) => {
            tracing::error!(run.id = %run.run_id, error = chain(&error), "a trainer could not be launched");
            let reason = format!("The trainer could not be launched: {}", chain(&error));
            let blame = match error.is_passing() {
                true => Blame::Circumstances,
                false => Blame::Job { max_attempts: app.leases.max_attempts },
            };
            let mut tx = app.begin().await?;
            loss::lost(&mut tx, run.run_id, &Loss::new(reason, blame)).await?;
            tx.commit().await?;
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        spec::{
            Auto, Requested, TrainSpec,
            request::{Hyperparameters, TrainerFields},
        },
    };

    use super::*;

    const SMOLLM2: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "tie_word_embeddings": true}"#;

    fn decided(memory: u64, reserved: u64, free_slots: usize) -> Decision {
        asked(&Requested::default(), memory, reserved, free_slots)
    }

    fn asked(asked: &Requested, memory: u64, reserved: u64, free_slots: usize) -> Decision {
        let offer = offer(Bytes::mib(memory), Bytes::mib(reserved), free_slots);
        with_work(asked, |work| decide(work, None, &[offer]))
    }

    /// Decides for a job that began with `kept`, on a machine with a free slot.
    fn again(kept: &Plan, memory: Bytes, reserved: Bytes) -> Decision {
        with_work(&Requested::default(), |work| decide(work, Some(kept), &[offer(memory, reserved, 1)]))
    }

    fn offer(memory: Bytes, reserved: Bytes, free_slots: usize) -> Offer {
        let (provider, name) = ("local".into(), "this machine".into());
        Offer { provider, name, memory, reserved, free_slots, threads: 2, micro_usd_per_hour: 0 }
    }

    fn with_work<T>(asked: &Requested, then: impl FnOnce(Workload<'_>) -> T) -> T {
        let architecture = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let train = TrainSpec::check(asked, 360, 8192).unwrap();
        then(Workload { architecture: &architecture, train: &train, longest_row: 200 })
    }

    #[test]
    fn a_machine_with_room_gets_the_job_with_its_prediction() {
        let Decision::Place { plan, message, .. } = decided(16_000, 0, 1) else { panic!("not placed") };
        assert_eq!((plan.micro_batch_size, plan.checkpointing, plan.threads), (5, false, 2));
        assert!(message.starts_with("Training on this machine: 1.") && message.contains("activations"), "{message}");
    }

    #[test]
    fn with_less_room_the_plan_saves_memory() {
        let Decision::Place { plan, .. } = decided(16_000, 15_000, 1) else { panic!("not placed") };
        assert!(plan.checkpointing);
    }

    #[test]
    fn a_machine_that_is_too_small_fails_the_job_with_the_terms() {
        let Decision::Refuse(error) = decided(500, 0, 1) else { panic!("not refused") };
        assert_eq!(error.code, "insufficient_memory");
        assert!(error.message.contains("embeddings 108.0 MiB"), "{}", error.message);
        assert!(error.message.contains("too little memory"), "{}", error.message);
    }

    #[test]
    fn what_was_requested_is_obeyed_or_refused_by_name() {
        let hyperparameters = Hyperparameters { batch_size: Auto(Some(64)), ..Hyperparameters::default() };
        let trainer = TrainerFields {
            micro_batch_size: Some(Auto(Some(64))),
            gradient_checkpointing: Some(Auto(Some(false))),
            ..TrainerFields::default()
        };
        let by_hand = Requested { hyperparameters, trainer, ..Requested::default() };
        let Decision::Place { plan, message, .. } = asked(&by_hand, 64_000, 0, 1) else { panic!("not placed") };
        assert_eq!((plan.micro_batch_size, plan.checkpointing), (64, false));
        assert!(
            message.ends_with("micro_batch_size 64 (requested), gradient_checkpointing false (requested)"),
            "{message}"
        );

        let Decision::Refuse(error) = asked(&by_hand, 8_000, 0, 1) else { panic!("not refused") };
        let named =
            "The job with trainer.micro_batch_size 64 and trainer.gradient_checkpointing false, as requested, needs";
        assert!(error.message.starts_with(named), "{}", error.message);
        assert_eq!(error.param.as_deref(), Some("trainer.micro_batch_size"));
        // The same job fits when the planner may choose.
        let open = Requested { hyperparameters, ..Requested::default() };
        assert!(matches!(asked(&open, 8_000, 0, 1), Decision::Place { .. }));
    }

    #[test]
    fn a_machine_that_is_busy_lets_the_job_wait() {
        assert!(matches!(decided(16_000, 0, 0), Decision::Wait { for_plan: false, .. }));
        assert!(matches!(decided(16_000, 15_900, 1), Decision::Wait { for_plan: false, .. }));
    }

    #[test]
    fn case_15_a_plan_is_kept_waited_for_and_changed_only_with_a_warning() {
        let Decision::Place { plan: kept, .. } = decided(16_000, 0, 1) else { panic!("not placed") };
        let peak = kept.predicted_peak;
        // With more memory, or exactly enough, nothing changes, whatever plan a new job would get.
        for (memory, reserved) in [(Bytes::mib(64_000), Bytes(0)), (Bytes(peak.0 + 5), Bytes(5))] {
            let Decision::Place { plan, message, changed, .. } = again(&kept, memory, reserved) else { panic!() };
            assert_eq!((&plan, changed), (&kept, None));
            assert!(message.ends_with("micro_batch_size 5, gradient_checkpointing false, as before"), "{message}");
        }
        // Another process holds one byte too many: the job waits, though a smaller plan would fit.
        let Decision::Wait { reason, for_plan: true, .. } =
            again(&kept, Bytes::mib(16_000), Bytes((16_000 << 20) - peak.0 + 1))
        else {
            panic!("not waiting")
        };
        let said = "(micro_batch_size 5, gradient_checkpointing false): this machine has 1 B too little memory free";
        assert!(reason.ends_with(said), "{reason}");
        // There will never be enough: the job gets a smaller plan, with a warning.
        let Decision::Place { plan, changed: Some(warning), .. } = again(&kept, Bytes(peak.0 - 1), Bytes(0)) else {
            panic!("no warning")
        };
        assert!(plan.predicted_peak < peak && plan != kept);
        assert!(warning.contains("will not be bit-identical") && warning.contains("1 B too little"), "{warning}");
        // The smaller plan is then kept in turn.
        let Decision::Place { plan: next, changed: None, .. } = again(&plan, Bytes::mib(16_000), Bytes(0)) else {
            panic!("not kept")
        };
        assert_eq!(next, plan);
    }
}
