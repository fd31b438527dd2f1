//! Batches and their workers: projects take turns, and a batch that fails repeatedly is not retried indefinitely.

use std::collections::HashMap;

use attune_domain::{
    batch::{BatchEndpoint, BatchEvent, BatchState, Defect},
    id::{BatchId, FileId, ProjectId},
    offer::ReplicaKind,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    batches::{
        batch::{self, Batch, BatchEnd, NewBatch},
        batch_answer::{self, BatchResult},
        batch_capacity::{self, PoolCapacity},
        batch_queue::{self, Claimed, Claims},
    },
    db,
    error::StoreError,
    jobs::unfinished::{self, Kind},
    pools::{
        deployment::{self, Bounds},
        pool_load,
    },
    replica::ServedBase,
    tenancy::tenant,
    testing::{new_job, rows, seed},
};

const STALE: f64 = 12.0;

async fn new_batch(pool: &PgPool, project: ProjectId, input_file_id: FileId) -> BatchId {
    let new = NewBatch {
        input_file_id,
        endpoint: BatchEndpoint::Responses,
        completion_window: "24h".into(),
        metadata: None,
        output_expires_seconds: None,
    };
    batch::insert(&mut pool.acquire().await.unwrap(), project, &new).await.unwrap().batch_id
}

async fn claim_of(pool: &PgPool, worker: Uuid, claims: Claims) -> Option<Claimed> {
    let mut tx = db::platform(pool).await.unwrap();
    let claimed = batch_queue::claim(&mut tx, worker, STALE, claims).await.unwrap();
    tx.commit().await.unwrap();
    claimed
}

async fn claim(pool: &PgPool, worker: Uuid) -> Option<Batch> {
    claim_of(pool, worker, Claims::All).await.map(|claimed| claimed.batch)
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
    let export = "insert into export (export_id, project_id, model_name, base_model_id, quantization, shape,
             adapter_files, spec)
         select gen_random_uuid(), $1, 'ft:tiny', $2, 'none', '{}', '[]', '{}'";
    let inserted = sqlx::query(export).bind(seed.project_id.uuid()).bind(seed.base_model_id.uuid());
    inserted.execute(&pool).await.unwrap();
    for kind in [Kind::Jobs, Kind::Batches, Kind::Exports] {
        admit(kind, 2).await.unwrap();
        admit(kind, 0).await.unwrap();
        let refused = admit(kind, 1).await;
        assert!(matches!(refused, Err(StoreError::TooManyUnfinished { most: 1, .. })), "{refused:?}");
    }
    sqlx::query("update batch set state = 'completed'").execute(&pool).await.unwrap();
    sqlx::query("update job set state = 'cancelled'").execute(&pool).await.unwrap();
    sqlx::query("update export set state = 'failed'").execute(&pool).await.unwrap();
    admit(Kind::Exports, 1).await.unwrap();
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
    let answer = BatchResult { line: 1, is_error: false, answer: "{}".into() };
    assert!(batch_answer::answer(&mut conn, id, worker, &answer).await.unwrap());
    assert!(!batch_answer::answer(&mut conn, id, worker, &answer).await.unwrap());
    assert_eq!(batch_queue::broke_off(&mut conn, id, worker).await.unwrap(), Some(1));
}

#[sqlx::test(migrations = false)]
async fn a_worker_that_is_lost_counts_as_an_attempt_without_progress(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = new_batch(&pool, seed.project_id, seed.file_id).await;
    let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
    assert_eq!(claim_of(&pool, first, Claims::All).await.unwrap().failures, 0);
    rows::execute(&pool, "update batch set heartbeat_at = now() - interval '1 minute'").await.unwrap();
    assert_eq!(claim_of(&pool, second, Claims::All).await.unwrap().failures, 1);
    let mut conn = pool.acquire().await.unwrap();
    assert!(matches!(batch_queue::beat(&mut conn, id, first).await, Err(StoreError::Stale)));
    // One that releases the batch does not count.
    batch_queue::give_back(&mut conn, id, second).await.unwrap();
    assert!(claim(&pool, first).await.is_none(), "there is a pause after a lost worker");
    rows::execute(&pool, "update batch set next_try_at = now()").await.unwrap();
    assert_eq!(claim_of(&pool, first, Claims::All).await.unwrap().failures, 1);
}

#[sqlx::test(migrations = false)]
async fn batches_that_only_have_to_be_ended_are_claimed_separately(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let worker = Uuid::from_u128(1);
    let cancelled = new_batch(&pool, seed.project_id, seed.file_id).await;
    let mut conn = pool.acquire().await.unwrap();
    claim(&pool, worker).await.unwrap();
    batch_queue::broke_off(&mut conn, cancelled, worker).await.unwrap();
    batch_queue::give_back(&mut conn, cancelled, worker).await.unwrap();
    let ending = || claim_of(&pool, worker, Claims::Ending);
    assert!(ending().await.is_none());
    batch::cancel(&mut conn, seed.project_id, cancelled).await.unwrap();
    assert_eq!(ending().await.unwrap().batch.batch_id, cancelled, "a cancellation ends the pause");
    let late = new_batch(&pool, seed.project_id, seed.file_id).await;
    assert!(ending().await.is_none());
    rows::execute(&pool, "update batch set expires_at = now() - interval '1 second'").await.unwrap();
    assert_eq!(ending().await.unwrap().batch.batch_id, late);
}

#[sqlx::test(migrations = false)]
async fn a_batch_that_fails_keeps_its_counts_and_its_reason(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = new_batch(&pool, seed.project_id, seed.file_id).await;
    let worker = Uuid::from_u128(1);
    claim(&pool, worker).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    for (line, is_error) in [(1, false), (2, true)] {
        let answer = BatchResult { line, is_error, answer: "{}".into() };
        assert!(batch_answer::answer(&mut conn, id, worker, &answer).await.unwrap());
    }
    let why = Defect::of_file("model_unavailable", "no replica");
    let end =
        BatchEnd { event: BatchEvent::GivenUp, output: Some(seed.file_id), errors: None, defect: Some(why.clone()) };
    assert!(matches!(batch::finish(&mut conn, id, Uuid::from_u128(2), &end).await, Err(StoreError::Stale)));
    batch::finish(&mut conn, id, worker, &end).await.unwrap();
    let ended = batch::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!((ended.state, ended.defects, ended.output_file_id), (BatchState::Failed, vec![why], Some(seed.file_id)));
    assert_eq!((ended.total, ended.completed, ended.failed), (2, 1, 1));
}

#[sqlx::test(migrations = false)]
async fn live_requests_and_deployments_bound_what_batches_may_use(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let base = ServedBase::as_imported(seed.base_model_id);
    let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut conn = pool.acquire().await.unwrap();
    let capacity = PoolCapacity { ready: 0, target_concurrency: 8, live_requests: 0.0 };
    assert_eq!(batch_capacity::of_pool(&mut conn, base, own, 8).await.unwrap(), capacity);
    for (process, requests) in [(own, 7.0), (other, 2.5)] {
        pool_load::write(&mut conn, process, &[(base, requests)]).await.unwrap();
    }
    let bounds = Bounds {
        name: "d".into(),
        min_replicas: 0,
        max_replicas: 1,
        target_concurrency: Some(3),
        cooldown_seconds: None,
        pinned_adapters: Vec::new(),
    };
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let made =
        deployment::insert(&mut tx, seed.project_id, base, ReplicaKind::default(), &bounds).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    for base in [base, made.base] {
        crate::replica::ensure(&mut conn, base).await.unwrap();
    }
    rows::execute(&pool, "update replica set state = 'ready'").await.unwrap();
    let capacity = PoolCapacity { ready: 1, target_concurrency: 8, live_requests: 2.5 };
    assert_eq!(batch_capacity::of_pool(&mut conn, base, own, 8).await.unwrap(), capacity);
    let capacity = PoolCapacity { ready: 1, target_concurrency: 3, live_requests: 0.0 };
    assert_eq!(batch_capacity::of_pool(&mut conn, made.base, own, 8).await.unwrap(), capacity);
}
