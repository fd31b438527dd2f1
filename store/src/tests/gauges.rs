//! Counts over rows.

use attune_domain::{bytes::Bytes, job::Priority};
use sqlx::PgPool;

use crate::{
    gauges::{self, Count, Waiting},
    testing::{claimed_run, neighbor, new_job, queued_job, seed},
};

#[sqlx::test(migrations = false)]
async fn jobs_are_counted_by_state_need_and_project(pool: PgPool) {
    let busy = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let calm = neighbor(&mut conn, busy, "calm").await.unwrap();
    assert_eq!(gauges::read(&mut conn, 9).await.unwrap(), gauges::Gauges::default());
    new_job(&mut conn, busy).await.unwrap();
    let (first, second) = (queued_job(&mut conn, busy).await.unwrap(), queued_job(&mut conn, busy).await.unwrap());
    let running = queued_job(&mut conn, calm).await.unwrap();
    claimed_run(&mut conn, running).await.unwrap();
    let age = sqlx::query(
        "update job set need_bytes = 7, priority = 'high', queued_at = now() - interval '1 hour' where job_id = $1",
    );
    age.bind(first.uuid()).execute(&mut *conn).await.unwrap();
    let unmeasured = sqlx::query("update job set need_bytes = null where job_id = $1").bind(second.uuid());
    unmeasured.execute(&mut *conn).await.unwrap();

    let found = gauges::read(&mut conn, 1).await.unwrap();
    let count = |state: &str, count| Count { state: state.into(), count };
    assert_eq!(found.jobs, [count("provisioning", 1), count("queued", 2), count("validating", 1)]);
    assert_eq!((found.runs, found.replicas), (vec![count("launching", 1)], Vec::new()));
    let of_busy = [count("queued", 2), count("validating", 1)].map(|count| (busy.project_id, count));
    assert_eq!(found.projects, of_busy, "the project with the most jobs alone");
    let [Waiting { priority: Priority::High, need: Some(Bytes(7)), jobs: 1, oldest_seconds }, other] =
        &found.waiting[..]
    else {
        panic!("{:?}", found.waiting)
    };
    assert!((3600.0..3700.0).contains(oldest_seconds), "{oldest_seconds}");
    assert_eq!((other.priority, other.need, other.jobs), (Priority::Normal, None, 1));
    assert_eq!((found.deliveries_due, found.deliveries_later), (0, 0));
    assert!(gauges::read(&mut conn, 0).await.unwrap().projects.is_empty());
}
