//! Promotion: canaries, rollback, shadows, and the traffic by which canaries are evaluated.

use std::time::Duration;

use attune_domain::{
    id::{AdapterCanaryId, AdapterVersionId, ProjectId},
    traffic::canary::{AbortReason, AbortRule, Verdict},
    traffic::latency::Latencies,
};
use sqlx::{PgConnection, PgPool};

use super::adapter::imported;
use crate::{
    adapters::{
        adapter::{self, AdapterVersion, Needed},
        adapter_alias::{self, Outcome, Rollback},
        adapter_canary::{self, CanaryState, Share, Start},
        adapter_shadow::{self, Comparisons},
        adapter_traffic::{self, Traffic, TrafficKey},
        alias_route,
    },
    db,
    testing::{Seed, seed},
};

const RULE: AbortRule = AbortRule { max_error_rate: 0.1, max_latency_ratio: 2.0, min_requests: 10 };

/// Imports `count` versions of `house`, and lets `prod` name the first.
async fn house(conn: &mut PgConnection, seed: Seed, count: usize) -> Vec<AdapterVersion> {
    let mut versions = Vec::new();
    for digit in ['1', '2', '3'].into_iter().take(count) {
        versions.push(imported(conn, seed, "house", digit).await);
    }
    let moved = adapter_alias::set(conn, seed.project_id, "prod", &versions[0], Some(None)).await.unwrap();
    assert_eq!(moved, Outcome::Moved);
    versions
}

async fn start(conn: &mut PgConnection, project: ProjectId, to: &AdapterVersion, percent: u8) -> Start {
    adapter_canary::start(conn, project, "prod", to, Share { percent, rule: RULE }).await.unwrap()
}

async fn running(conn: &mut PgConnection, project: ProjectId) -> AdapterCanaryId {
    let last = adapter_canary::last(conn, project, "house", Some("prod")).await.unwrap();
    assert_eq!(last[0].state, CanaryState::Running);
    last[0].adapter_canary_id
}

fn traffic(requests: u64, errors: u64, ms: u64) -> Traffic {
    let mut first_token = Latencies::default();
    (0..requests - errors).for_each(|_| first_token.record(Duration::from_millis(ms)));
    Traffic {
        requests,
        errors,
        input_tokens: 10 * requests,
        output_tokens: requests,
        first_token,
        ..Traffic::default()
    }
}

fn key(seed: Seed, version: AdapterVersionId, canary: Option<AdapterCanaryId>) -> TrafficKey {
    TrafficKey { adapter_version_id: version, adapter_canary_id: canary, project_id: seed.project_id }
}

#[sqlx::test(migrations = false)]
async fn only_a_promotion_moves_an_alias_with_a_canary_and_a_rollback_returns_once(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (conn, project) = (&mut *conn, seed.project_id);
    let versions = house(conn, seed, 3).await;
    let ids: Vec<_> = versions.iter().map(|version| version.adapter_version_id).collect();
    let adapter = versions[0].adapter_id;
    assert_eq!(adapter_alias::roll_back(conn, project, adapter, "prod").await.unwrap(), Rollback::Nothing);
    assert!(!adapter_canary::promote(conn, project, adapter, "prod").await.unwrap());
    assert_eq!(start(conn, project, &versions[0], 10).await, Start::Stable);
    assert_eq!(start(conn, project, &versions[1], 10).await, Start::Running);
    let first = running(conn, project).await;
    assert_eq!(start(conn, project, &versions[1], 20).await, Start::Running, "a larger share of the same canary");
    assert_eq!(running(conn, project).await, first);
    assert_eq!(start(conn, project, &versions[2], 10).await, Start::Other(ids[1]));
    let moved = adapter_alias::set(conn, project, "prod", &versions[2], None).await.unwrap();
    assert_eq!(moved, Outcome::Canary(ids[1]));
    assert_eq!(adapter_alias::roll_back(conn, project, adapter, "prod").await.unwrap(), Rollback::Canary(ids[1]));
    let deleted = adapter::delete(conn, project, "house@2").await.unwrap();
    assert_eq!(deleted, Some(Needed::Trial("house@prod".into())));

    assert!(adapter_canary::promote(conn, project, adapter, "prod").await.unwrap());
    let alias = adapter_alias::list(conn, project, "house", None).await.unwrap().remove(0);
    assert_eq!((alias.adapter_version_id, alias.previous), (ids[1], Some(ids[0])));
    assert_eq!(adapter_alias::roll_back(conn, project, adapter, "prod").await.unwrap(), Rollback::Moved);
    let alias = adapter_alias::list(conn, project, "house", None).await.unwrap().remove(0);
    assert_eq!((alias.adapter_version_id, alias.previous), (ids[0], None));
    assert_eq!(adapter_alias::roll_back(conn, project, adapter, "prod").await.unwrap(), Rollback::Nothing);

    adapter_alias::set(conn, project, "prod", &versions[2], None).await.unwrap();
    assert_eq!(adapter::delete(conn, project, "house@1").await.unwrap(), None, "a previous version may be deleted");
    assert_eq!(adapter_alias::roll_back(conn, project, adapter, "prod").await.unwrap(), Rollback::Nothing);
    let route = alias_route::find(conn, project, "house@prod").await.unwrap().unwrap();
    assert_eq!((route.stable, route.previous, route.canary), (ids[2], None, None));
}

#[sqlx::test(migrations = false)]
async fn of_two_who_start_a_canary_at_once_one_is_refused(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let versions = house(&mut conn, seed, 3).await;
    drop(conn);
    let started = async |to: &AdapterVersion| {
        let mut tx = pool.begin().await.unwrap();
        adapter_alias::lock(&mut tx, seed.project_id, "house").await.unwrap();
        let outcome = start(&mut tx, seed.project_id, to, 10).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        tx.commit().await.unwrap();
        outcome
    };
    let (a, b) = tokio::join!(started(&versions[1]), started(&versions[2]));
    let refused = [a, b].into_iter().filter(|outcome| matches!(outcome, Start::Other(_))).count();
    assert_eq!((refused, a == Start::Running || b == Start::Running), (1, true), "{a:?} {b:?}");
}

#[sqlx::test(migrations = false)]
async fn a_canary_is_evaluated_by_its_own_traffic_over_all_processes(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (conn, project) = (&mut *conn, seed.project_id);
    let versions = house(conn, seed, 2).await;
    let (stable, canary) = (versions[0].adapter_version_id, versions[1].adapter_version_id);
    start(conn, project, &versions[1], 50).await;
    let id = running(conn, project).await;
    // Requests to the version itself are no requests of the canary.
    adapter_traffic::add(conn, &[(key(seed, canary, None), traffic(50, 50, 1))]).await.unwrap();
    adapter_traffic::add(conn, &[(key(seed, stable, Some(id)), traffic(20, 0, 10))]).await.unwrap();
    assert_eq!(adapter_canary::evaluate(conn, id).await.unwrap(), Verdict::Continue);
    adapter_traffic::add(conn, &[(key(seed, canary, Some(id)), traffic(6, 0, 100))]).await.unwrap();
    assert_eq!(adapter_canary::evaluate(conn, id).await.unwrap(), Verdict::Continue, "too few");
    adapter_traffic::add(conn, &[(key(seed, canary, Some(id)), traffic(6, 0, 100))]).await.unwrap();
    let verdict = adapter_canary::evaluate(conn, id).await.unwrap();
    let Verdict::Abort(AbortReason::Latency { ratio, .. }) = verdict else { panic!("{verdict:?}") };
    assert!((7.0..14.0).contains(&ratio), "{ratio}");
    let last = adapter_canary::last(conn, project, "house", None).await.unwrap().remove(0);
    assert_eq!(last.state, CanaryState::Aborted);
    assert!(last.reason.unwrap().contains("'max_latency_ratio', 2."));
    assert_eq!(adapter_canary::evaluate(conn, id).await.unwrap(), Verdict::Continue, "it has ended");
    let observed = adapter_traffic::of_canaries(conn, &[id]).await.unwrap();
    assert_eq!((observed[&(id, canary)].requests, observed[&(id, stable)].requests), (12, 20));
    assert_eq!(start(conn, project, &versions[1], 50).await, Start::Running, "a new one, without earlier requests");
    let second = running(conn, project).await;
    assert_eq!(adapter_canary::evaluate(conn, second).await.unwrap(), Verdict::Continue);
}

#[sqlx::test(migrations = false)]
async fn the_traffic_of_versions_adds_up_and_is_swept(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let first = house(&mut conn, seed, 2).await[0].adapter_version_id;
    let mut tx = db::platform(&pool).await.unwrap();
    for _ in 0..3 {
        adapter_traffic::add(&mut tx, &[(key(seed, first, None), traffic(4, 1, 50))]).await.unwrap();
    }
    let busiest = adapter_traffic::busiest(&mut tx, 5).await.unwrap();
    assert_eq!(busiest.iter().map(|version| version.traffic.requests).collect::<Vec<_>>(), [12]);
    assert!(adapter_traffic::busiest(&mut tx, 0).await.unwrap().is_empty());
    tx.commit().await.unwrap();
    let mut tx = db::tenant(&pool, seed.project_id).await.unwrap();
    let found = adapter_traffic::of_adapter(&mut tx, seed.project_id, "house", 60).await.unwrap();
    assert_eq!((found.len(), found[0].adapter_version_id, found[0].version), (1, first, 1));
    let sums = &found[0].traffic;
    assert_eq!((sums.errors, sums.input_tokens, sums.output_tokens, sums.first_token.count()), (3, 120, 12, 9));
    assert_eq!(found[0].micro_usd_per_million_tokens, None, "no replica");
    tx.commit().await.unwrap();

    sqlx::query("update adapter_traffic set minute = minute - interval '47 hours'").execute(&mut *conn).await.unwrap();
    assert_eq!(adapter_traffic::sweep(&mut conn).await.unwrap().gone, 0);
    sqlx::query("update adapter_traffic set minute = minute - interval '2 hours'").execute(&mut *conn).await.unwrap();
    assert_eq!(adapter_traffic::sweep(&mut conn).await.unwrap().gone, 1);
}

#[sqlx::test(migrations = false)]
async fn a_shadow_counts_and_ends_with_its_alias(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (conn, project) = (&mut *conn, seed.project_id);
    let versions = house(conn, seed, 3).await;
    for (version, percent) in [(&versions[1], 10), (&versions[2], 100)] {
        adapter_shadow::start(conn, project, "prod", version, percent).await.unwrap();
    }
    let route = alias_route::find(conn, project, "house@prod").await.unwrap().unwrap();
    let shadow = route.shadow("any").unwrap();
    assert_eq!(shadow.version, versions[2].adapter_version_id, "the second in place of the first");
    assert_eq!(route.version("any"), versions[0].adapter_version_id);
    let counts = Comparisons { compared: 2, equal: 1, answered_tokens: 7, shadow_tokens: 9, ..Comparisons::default() };
    for _ in 0..2 {
        adapter_shadow::add(conn, &[(shadow.id, counts)]).await.unwrap();
    }
    let last = adapter_shadow::last(conn, project, "house", Some("prod")).await.unwrap().remove(0);
    assert_eq!((last.counts.compared, last.counts.equal, last.counts.shadow_tokens), (4, 2, 18));
    let deleted = adapter::delete(conn, project, "house@3").await.unwrap();
    assert_eq!(deleted, Some(Needed::Trial("house@prod".into())));
    start(conn, project, &versions[1], 10).await;
    adapter_alias::remove(conn, project, versions[0].adapter_id, "prod").await.unwrap();
    assert!(alias_route::find(conn, project, "house@prod").await.unwrap().is_none());
    for version in ["house@2", "house@3"] {
        assert_eq!(adapter::delete(conn, project, version).await.unwrap(), None, "{version}");
    }
}
