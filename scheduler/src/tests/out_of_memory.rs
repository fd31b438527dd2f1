//! A trainer that its provider reports as out of memory: the job's next run has the ladder's plan, and is no attempt.

use attune_domain::{job::JobState, run::process::EndCause};
use attune_store::{jobs::job_event, runs::run};
use sqlx::PgPool;

use super::{House, Remembers};
use crate::providers::provider::Ended;

#[sqlx::test(migrations = false)]
async fn a_job_whose_trainers_run_out_of_memory_is_placed_with_smaller_plans_until_none_is_left(pool: PgPool) {
    let house = House::new(pool, Remembers::default()).await;
    let id = house.queued().await;
    let mut conn = house.app.pool.acquire().await.unwrap();
    let mut plans = Vec::new();
    loop {
        house.dispatch(id).await;
        let job = house.job(id).await;
        assert_eq!(job.state, JobState::Provisioning, "{:?} after {plans:?}", job.waiting_reason);
        let run = run::get(&mut conn, job.run_id.unwrap()).await.unwrap();
        plans.push((run.plan.micro_batch_size, run.plan.checkpointing));
        let message = "attune-trainer ended (signal: 9): the kernel killed it because memory ran out".into();
        house.provider.end_with(&run.run_id.to_string(), Ended { message, cause: EndCause::OutOfMemory });
        house.reconcile().await;
        if house.job(id).await.state != JobState::Queued {
            break;
        }
    }
    assert_eq!(plans, [(4, false), (4, true), (2, true), (1, true)]);
    let job = house.job(id).await;
    let error = job.error.unwrap();
    assert_eq!((job.state, job.attempts, error.code.as_str()), (JobState::Failed, 4, "out_of_memory"));
    assert_eq!(job.barren_attempts, 0, "more runs than the job has attempts");
    assert_eq!((house.active_nodes().await, house.provider.handles().len()), (0, 0));
    let events = job_event::following(&mut conn, house.seed.project_id, id, 0, 100).await.unwrap();
    let coded = |code: &str| {
        let with_code = |data: &serde_json::Value| data["code"] == code;
        events.iter().filter(|event| event.data.as_ref().is_some_and(with_code)).count()
    };
    assert_eq!((coded("out_of_memory"), coded("plan_changed")), (3, 0));
}
