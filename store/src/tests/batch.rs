//! Batches and their workers: projects take turns, and a batch that fails repeatedly is not retried indefinitely.

use std::collections::HashMap;

use attune_domain::{
    batch::{BatchState, Defect},
    id::{BatchId, FileId, ProjectId},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    batches::{
        batch::{self, Batch, NewBatch},
        batch_queue,
    },
    db,
    error::StoreError,
    jobs::unfinished::{self, Kind},
    tenancy::tenant,
    testing::{new_job, seed},
};

const STALE: f64 = 12.0;

async fn new_batch(pool: &PgPool, project: ProjectId, input_file_id: FileId) -> BatchId {
    let new = NewBatch {
        input_file_id,
        endpoint: "/v1/completions".into(),
        completion_window: "24h".into(),
        metadata: None,
        output_expires_seconds: None,
    };
    batch::insert(&mut pool.acquire().await.unwrap(), project, &new).await.unwrap().batch_id
}

async fn claim(pool: &PgPool, worker: Uuid) -> Option<Batch> {
    let mut tx = db::platform(pool).await.unwrap();
    let claimed = batch_queue::claim(&mut tx, worker, STALE).await.unwrap();
    tx.commit().await.unwrap();
    claimed
}

#[sqlx::test(migrations = false)]
async fn attack_a25_projects_take_turns_at_the_workers(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    for _ in 0..6 {
        new_batch(&pool, seed.project_id, seed.file_id).await;
    }
    let workers: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
    let mut held = HashMap::new();
    for worker in &workers {
        held.insert(*worker, claim(&pool, *worker).await.unwrap());
    }
    assert!(held.values().all(|batch| batch.project_id == seed.project_id), "nobody else waits");
    let waits = |project| {
        let pool = pool.clone();
        async move { batch_queue::others_wait(&mut pool.acquire().await.unwrap(), project, STALE).await.unwrap() }
    };
    assert!(!waits(seed.project_id).await);

    let theirs = new_batch(&pool, other, seed.file_id).await;
    assert!(waits(seed.project_id).await, "a batch of a project without a worker waits");
    let first = &held[&workers[0]];
    batch_queue::give_back(&mut conn, first.batch_id, workers[0]).await.unwrap();
    assert_eq!(claim(&pool, workers[0]).await.unwrap().batch_id, theirs, "the free worker goes to the other project");
    assert!(!waits(seed.project_id).await && !waits(other).await);
    batch_queue::give_back(&mut conn, held[&workers[1]].batch_id, workers[1]).await.unwrap();
    let next = claim(&pool, workers[1]).await.unwrap();
    assert!(held.values().all(|batch| batch.batch_id != next.batch_id), "the one that has waited longest comes next");
}

#[sqlx::test(migrations = false)]
async fn attack_a04_a_batch_that_breaks_off_waits_and_can_be_abandoned(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = new_batch(&pool, seed.project_id, seed.file_id).await;
    let worker = Uuid::from_u128(1);
    let mut conn = pool.acquire().await.unwrap();
    for failures in 1..=3 {
        assert_eq!(claim(&pool, worker).await.map(|batch| batch.batch_id), Some(id));
        assert_eq!(batch_queue::broke_off(&mut conn, id, worker).await.unwrap(), Some(failures));
        assert_eq!(batch_queue::broke_off(&mut conn, id, Uuid::from_u128(2)).await.unwrap(), None, "not its worker");
        if failures < 3 {
            batch_queue::give_back(&mut conn, id, worker).await.unwrap();
            assert!(claim(&pool, worker).await.is_none(), "there is a pause");
            sqlx::query("update batch set next_try_at = now()").execute(&mut *conn).await.unwrap();
        }
    }
    let why = Defect::of_file("batch_failed", "it broke off");
    assert!(matches!(batch::give_up(&mut conn, id, Uuid::from_u128(2), &why).await, Err(StoreError::Stale)));
    batch::give_up(&mut conn, id, worker, &why).await.unwrap();
    let ended = batch::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((ended.state, ended.defects), (BatchState::Failed, vec![why]));
    assert!(claim(&pool, worker).await.is_none());
}

#[sqlx::test(migrations = false)]
async fn limit_a_project_has_at_most_so_much_unfinished_work(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let admit = |kind, most| {
        let pool = pool.clone();
        async move {
            let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
            unfinished::admit(&mut tx, seed.project_id, kind, most).await
        }
    };
    new_batch(&pool, seed.project_id, seed.file_id).await;
    new_job(&mut pool.acquire().await.unwrap(), seed).await.unwrap();
    for kind in [Kind::Jobs, Kind::Batches] {
        admit(kind, 2).await.unwrap();
        admit(kind, 0).await.unwrap();
        let refused = admit(kind, 1).await;
        assert!(matches!(refused, Err(StoreError::TooManyUnfinished { most: 1, .. })), "{refused:?}");
    }
    sqlx::query("update batch set state = 'completed'").execute(&pool).await.unwrap();
    sqlx::query("update job set state = 'cancelled'").execute(&pool).await.unwrap();
    admit(Kind::Jobs, 1).await.unwrap();
    admit(Kind::Batches, 1).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn a_second_answer_to_a_line_is_not_kept_and_an_answer_ends_a_row_of_failures(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = new_batch(&pool, seed.project_id, seed.file_id).await;
    let worker = Uuid::from_u128(1);
    claim(&pool, worker).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    batch_queue::broke_off(&mut conn, id, worker).await.unwrap();
    let answer = batch::BatchResult { line: 1, is_error: false, answer: "{}".into() };
    assert!(batch::answer(&mut conn, id, worker, &answer).await.unwrap());
    assert!(!batch::answer(&mut conn, id, worker, &answer).await.unwrap());
    assert_eq!(batch_queue::broke_off(&mut conn, id, worker).await.unwrap(), Some(1));
}
