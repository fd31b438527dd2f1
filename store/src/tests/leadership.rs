//! Leadership: one leader, and no write of an earlier one.

use std::time::Duration;

use attune_domain::job::JobState;
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::time::{sleep, timeout};

use crate::{
    error::StoreError,
    jobs::job,
    leadership::{Leadership, Term},
    testing::{queued_job, seed},
};

async fn take(options: &PgConnectOptions) -> Option<Leadership> {
    Leadership::try_take_with(options).await.unwrap()
}

/// Tries until the leadership is free.
async fn taken(options: &PgConnectOptions) -> Leadership {
    for _ in 0..100 {
        if let Some(leadership) = take(options).await {
            return leadership;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("the leadership is not free");
}

async fn is_deposed(term: Term, pool: &PgPool) -> bool {
    matches!(term.begin(pool).await, Err(StoreError::Deposed))
}

#[sqlx::test(migrations = false)]
async fn one_scheduler_leads_and_each_leader_has_a_higher_term(pool: PgPool) {
    seed(&pool).await.unwrap();
    let options = (*pool.connect_options()).clone();
    let mut first = take(&options).await.unwrap();
    assert!(take(&options).await.is_none());
    assert!(first.renew().await.unwrap());
    let term = first.term();
    drop(first);
    let mut second = taken(&options).await;
    assert_eq!(second.term().number(), term.number() + 1);
    assert!(second.renew().await.unwrap());
}

#[sqlx::test(migrations = false)]
async fn a_deposed_leader_writes_nothing_and_learns_it(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let options = (*pool.connect_options()).clone();
    let mut first = take(&options).await.unwrap();
    let mut tx = first.term().begin(&pool).await.unwrap();
    let job_id = queued_job(&mut tx, seed).await.unwrap();
    tx.commit().await.unwrap();
    // As after a restart of the database: the lock is free, and another scheduler was faster.
    sqlx::query("select pg_advisory_unlock_all()").execute(first.connection()).await.unwrap();
    let second = taken(&options).await;
    assert!(is_deposed(first.term(), &pool).await);
    assert!(!first.renew().await.unwrap());
    let mut tx = second.term().begin(&pool).await.unwrap();
    assert_eq!(job::load(&mut tx, job_id).await.unwrap().state, JobState::Queued);
}

#[sqlx::test(migrations = false)]
async fn a_new_leader_waits_for_the_transactions_of_the_previous_one(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let options = (*pool.connect_options()).clone();
    let first = take(&options).await.unwrap();
    let (term, mut open) = (first.term(), first.term().begin(&pool).await.unwrap());
    drop(first);
    let next = tokio::spawn(async move { taken(&options).await });
    sleep(Duration::from_millis(300)).await;
    assert!(!next.is_finished(), "the previous leader's transaction is open");
    queued_job(&mut open, seed).await.unwrap();
    open.commit().await.unwrap();
    let next = timeout(Duration::from_secs(5), next).await.unwrap().unwrap();
    assert!(is_deposed(term, &pool).await && next.term() != term);
}

#[sqlx::test(migrations = false)]
async fn a_leader_without_a_sign_of_life_loses_its_connection(pool: PgPool) {
    seed(&pool).await.unwrap();
    let options = (*pool.connect_options()).clone();
    let mut suspended = take(&options).await.unwrap();
    sqlx::query("update leadership set seen_at = now() - interval '19 s'").execute(&pool).await.unwrap();
    assert!(take(&options).await.is_none());
    assert!(suspended.renew().await.unwrap(), "19 s are not long enough");
    sqlx::query("update leadership set seen_at = now() - interval '21 s'").execute(&pool).await.unwrap();
    let next = taken(&options).await;
    assert!(suspended.renew().await.is_err(), "its connection was ended");
    assert!(is_deposed(suspended.term(), &pool).await && !is_deposed(next.term(), &pool).await);
}
