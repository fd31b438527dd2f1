//! Events and deliveries: the recipients of an event, and no loss with two schedulers or a crash.

use attune_domain::{
    event::EventType,
    id::{ProjectId, WebhookEndpointId},
    job::JobState,
};
use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::PgPool;

use crate::{
    db,
    error::StoreError,
    ids,
    tenancy::tenant,
    testing::{Seed, seed},
    webhooks::{
        outbox,
        seal::SealKey,
        webhook_delivery::{self, Wanted, WebhookDelivery},
        webhook_endpoint::{self, Change, MOST_PER_PROJECT, NewEndpoint},
        webhook_queue::{self, Bounds, Claim, Next, Outcome},
    },
};

const BOUNDS: Bounds = Bounds { attempts: 64, per_endpoint: 4, per_project: 16, lease_seconds: 60.0 };
const SUCCEEDED: EventType = EventType::Job(JobState::Succeeded);

fn key() -> SealKey {
    SealKey::new(&"k".repeat(32).into()).unwrap()
}

async fn endpoint(pool: &PgPool, project: ProjectId, types: &[&str]) -> WebhookEndpointId {
    let event_types = types.iter().map(|&name| name.into()).collect();
    let new = NewEndpoint { url: "https://hooks.example/".into(), description: String::new(), event_types };
    let mut conn = pool.acquire().await.unwrap();
    let made = webhook_endpoint::insert(&mut conn, &key(), project, &new).await.unwrap();
    made.unwrap().0.webhook_endpoint_id
}

async fn happen(pool: &PgPool, project: ProjectId, event: EventType) {
    outbox::push(&mut pool.acquire().await.unwrap(), project, event, &json!({ "id": "ftjob-1" })).await.unwrap();
}

async fn relay(pool: &PgPool) -> usize {
    let mut tx = db::platform(pool).await.unwrap();
    let relayed = webhook_queue::relay(&mut tx, 1000).await.unwrap();
    tx.commit().await.unwrap();
    relayed
}

async fn claim(pool: &PgPool) -> Vec<Claim> {
    let mut tx = db::platform(pool).await.unwrap();
    let claims = webhook_queue::claim(&mut tx, BOUNDS).await.unwrap();
    tx.commit().await.unwrap();
    claims
}

async fn settle(pool: &PgPool, claim: &Claim, status: u16, next: Next) {
    let error = (next != Next::Delivered).then(|| format!("it answered {status}"));
    let excerpt = Some("a\0b".into());
    let outcome = Outcome { status_code: Some(status), latency_ms: 12, response_excerpt: excerpt, error };
    webhook_queue::settle(&mut pool.acquire().await.unwrap(), claim, &outcome, next).await.unwrap();
}

async fn deliveries(pool: &PgPool, seed: Seed, endpoint: WebhookEndpointId) -> Vec<WebhookDelivery> {
    let wanted = Wanted { limit: 100, ..Wanted::default() };
    let mut conn = pool.acquire().await.unwrap();
    webhook_delivery::list(&mut conn, seed.project_id, endpoint, &wanted).await.unwrap()
}

/// Makes leases expire and delays end.
async fn pass_an_hour(pool: &PgPool) {
    let passed = "update webhook_delivery set leased_until = leased_until - interval '1 hour',
        next_attempt_at = next_attempt_at - interval '1 hour'";
    sqlx::query(passed).execute(pool).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn an_event_goes_to_each_endpoint_of_its_project_that_listens(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    let all = endpoint(&pool, seed.project_id, &["*"]).await;
    let some = endpoint(&pool, seed.project_id, &["fine_tuning.job.failed", "fine_tuning.job.succeeded"]).await;
    let others = endpoint(&pool, seed.project_id, &["fine_tuning.job.failed"]).await;
    let asleep = endpoint(&pool, seed.project_id, &["*"]).await;
    let off = Change { enabled: Some(false), ..Change::default() };
    webhook_endpoint::update(&mut conn, seed.project_id, asleep, &off).await.unwrap();
    let strangers = endpoint(&pool, other, &["*"]).await;

    happen(&pool, seed.project_id, SUCCEEDED).await;
    assert_eq!((relay(&pool).await, relay(&pool).await), (1, 0));
    for (id, count) in [(all, 1), (some, 1), (others, 0), (asleep, 0)] {
        assert_eq!(deliveries(&pool, seed, id).await.len(), count);
    }
    let wanted = Wanted { limit: 9, ..Wanted::default() };
    assert!(webhook_delivery::list(&mut conn, other, strangers, &wanted).await.unwrap().is_empty());
    let mine = deliveries(&pool, seed, all).await.remove(0);
    assert_eq!((mine.event.kind.as_str(), mine.state.as_str()), ("fine_tuning.job.succeeded", "pending"));
    let stolen = webhook_delivery::get(&mut conn, other, all, mine.webhook_delivery_id).await;
    assert!(matches!(stolen, Err(StoreError::NotFound(_))), "{stolen:?}");
    assert!(webhook_endpoint::get(&mut conn, other, all).await.is_err());
    assert!(webhook_endpoint::delete(&mut conn, other, all).await.is_err());
    assert!(webhook_endpoint::rotate(&mut conn, &key(), (other, all), 0).await.is_err());
}

#[sqlx::test(migrations = false)]
async fn attack_a19_slow_endpoints_of_one_project_do_not_hold_up_another(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap().project_id;
    for _ in 0..20 {
        endpoint(&pool, seed.project_id, &["*"]).await;
    }
    for _ in 0..10 {
        happen(&pool, seed.project_id, SUCCEEDED).await;
    }
    relay(&pool).await;
    let slow = claim(&pool).await;
    assert_eq!(slow.len(), 16, "one project has its places and no more");
    endpoint(&pool, other, &["*"]).await;
    happen(&pool, other, SUCCEEDED).await;
    relay(&pool).await;
    let claims = claim(&pool).await;
    assert_eq!(claims.iter().map(|claim| claim.project_id).collect::<Vec<_>>(), [other]);
}

#[sqlx::test(migrations = false)]
async fn limit_two_schedulers_share_what_is_due_and_keep_to_the_endpoints_bound(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let ids = [endpoint(&pool, seed.project_id, &["*"]).await, endpoint(&pool, seed.project_id, &["*"]).await];
    for _ in 0..10 {
        happen(&pool, seed.project_id, SUCCEEDED).await;
    }
    let (one, other) = tokio::join!(relay(&pool), relay(&pool));
    assert_eq!(one + other, 10);
    let rounds = tokio::join!(claim(&pool), claim(&pool), claim(&pool));
    let claims: Vec<Claim> = [rounds.0, rounds.1, rounds.2].concat();
    let mut taken: Vec<_> = claims.iter().map(|claim| claim.webhook_delivery_id).collect();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), claims.len(), "a delivery was claimed twice");
    for id in ids {
        let at_once = claims.iter().filter(|claim| claim.webhook_endpoint_id == id).count();
        assert!((1..=4).contains(&at_once), "{at_once}");
    }
    let mut delivered = 0;
    let mut open = claims;
    while !open.is_empty() {
        for claim in &open {
            settle(&pool, claim, 200, Next::Delivered).await;
        }
        delivered += open.len();
        open = claim(&pool).await;
    }
    assert_eq!(delivered, 20);
    for id in ids {
        assert!(deliveries(&pool, seed, id).await.iter().all(|d| d.state == "delivered" && d.attempts.len() == 1));
    }
}

#[sqlx::test(migrations = false)]
async fn what_a_dead_scheduler_held_is_tried_again_under_the_same_id(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    happen(&pool, seed.project_id, SUCCEEDED).await;
    relay(&pool).await;
    let first = claim(&pool).await.remove(0);
    assert!(claim(&pool).await.is_empty(), "it is leased");
    pass_an_hour(&pool).await;
    let second = claim(&pool).await.remove(0);
    assert_eq!((first.number, second.number, second.failures), (1, 2, 0));
    assert_eq!(first.event.event_id, second.event.event_id);
    // The first scheduler was not dead: it writes its own attempt's row and nothing else.
    settle(&pool, &first, 500, Next::GivenUp).await;
    let delivery = deliveries(&pool, seed, id).await.remove(0);
    assert_eq!((delivery.state.as_str(), delivery.attempts[0].status_code), ("pending", Some(500)));
    settle(&pool, &second, 204, Next::Delivered).await;
    let delivery = deliveries(&pool, seed, id).await.remove(0);
    assert_eq!((delivery.state.as_str(), delivery.next_attempt_at), ("delivered", None));
    assert_eq!(delivery.attempts[1].response_excerpt.as_deref(), Some("a\u{fffd}b"));
}

#[sqlx::test(migrations = false)]
async fn an_attempt_that_was_cut_off_says_so(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    happen(&pool, seed.project_id, SUCCEEDED).await;
    relay(&pool).await;
    claim(&pool).await;
    pass_an_hour(&pool).await;
    claim(&pool).await;
    let attempts = deliveries(&pool, seed, id).await.remove(0).attempts;
    assert!(attempts[0].error.as_deref().unwrap().contains("interrupted"), "{attempts:?}");
    assert!(attempts[0].ended_at.is_some() && attempts[1].ended_at.is_none());
}

#[sqlx::test(migrations = false)]
async fn a_failure_waits_and_a_replay_begins_again(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    happen(&pool, seed.project_id, SUCCEEDED).await;
    relay(&pool).await;
    settle(&pool, &claim(&pool).await[0], 500, Next::Again(300.0)).await;
    assert!(claim(&pool).await.is_empty(), "it waits");
    pass_an_hour(&pool).await;
    let second = claim(&pool).await.remove(0);
    assert_eq!((second.number, second.failures), (2, 1));
    settle(&pool, &second, 500, Next::GivenUp).await;
    pass_an_hour(&pool).await;
    assert!(claim(&pool).await.is_empty(), "it was given up");
    let delivery = deliveries(&pool, seed, id).await.remove(0);
    assert_eq!(delivery.state, "failed");
    let of = delivery.webhook_delivery_id;
    assert_eq!(webhook_delivery::replay(&mut conn, seed.project_id, id, of).await.unwrap().state, "pending");
    let third = claim(&pool).await.remove(0);
    assert_eq!((third.number, third.failures, third.event.event_id), (3, 0, second.event.event_id));
    let stranger: ProjectId = ids::id();
    assert!(webhook_delivery::replay(&mut conn, stranger, id, of).await.is_err());
}

#[sqlx::test(migrations = false)]
async fn an_endpoint_that_is_gone_is_disabled_and_what_waits_still_waits(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    for _ in 0..5 {
        happen(&pool, seed.project_id, SUCCEEDED).await;
    }
    relay(&pool).await;
    settle(&pool, &claim(&pool).await[0], 410, Next::Gone).await;
    let gone = webhook_endpoint::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(gone.disabled_reason.as_deref(), Some("gone"));
    pass_an_hour(&pool).await;
    assert!(claim(&pool).await.is_empty());
    let on = Change { enabled: Some(true), ..Change::default() };
    let back = webhook_endpoint::update(&mut conn, seed.project_id, id, &on).await.unwrap();
    assert_eq!(back.disabled_reason, None);
    assert_eq!(claim(&pool).await.len(), 4);
}

#[sqlx::test(migrations = false)]
async fn an_attempt_that_was_overtaken_does_not_disable_its_endpoint(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    happen(&pool, seed.project_id, SUCCEEDED).await;
    relay(&pool).await;
    let first = claim(&pool).await.remove(0);
    pass_an_hour(&pool).await;
    let second = claim(&pool).await.remove(0);
    settle(&pool, &first, 410, Next::Gone).await;
    let delivery = deliveries(&pool, seed, id).await.remove(0);
    assert_eq!((delivery.state.as_str(), delivery.attempts[0].status_code), ("pending", Some(410)));
    let mut conn = pool.acquire().await.unwrap();
    let endpoint = webhook_endpoint::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(endpoint.disabled_reason, None);
    settle(&pool, &second, 410, Next::Gone).await;
    let endpoint = webhook_endpoint::get(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(endpoint.disabled_reason.as_deref(), Some("gone"));
}

#[sqlx::test(migrations = false)]
async fn a_rotated_secret_signs_in_addition_to_the_new_one_for_a_while(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    let of = (seed.project_id, id);
    let secrets = async |overlap: u32| {
        let mut conn = pool.acquire().await.unwrap();
        let (view, new) = webhook_endpoint::rotate(&mut conn, &key(), of, overlap).await.unwrap();
        assert_eq!(view.previous_secret_until.is_some(), overlap > 0);
        webhook_delivery::test(&mut conn, seed.project_id, id).await.unwrap();
        let claim = claim(&pool).await.remove(0);
        let found = claim.secrets(&key()).unwrap();
        assert_eq!(found[0].expose_secret(), new.expose_secret());
        settle(&pool, &claim, 200, Next::Delivered).await;
        found.iter().map(|secret| secret.expose_secret().to_owned()).collect::<Vec<_>>()
    };
    let both = secrets(60).await;
    let later = secrets(60).await;
    assert_eq!((both.len(), later.len()), (2, 2));
    assert_eq!(later[1], both[0]);
    assert_eq!(secrets(0).await.len(), 1);
    secrets(60).await;
    sqlx::query("update webhook_endpoint set previous_secret_until = now()").execute(&mut *conn).await.unwrap();
    webhook_delivery::test(&mut conn, seed.project_id, id).await.unwrap();
    assert_eq!(claim(&pool).await[0].secrets(&key()).unwrap().len(), 1);
    let kept: Vec<u8> = sqlx::query_scalar("select secret from webhook_endpoint").fetch_one(&pool).await.unwrap();
    assert!(!kept.windows(6).any(|part| part == b"whsec_"), "the secret lies open");
}

#[sqlx::test(migrations = false)]
async fn what_the_key_before_sealed_is_sealed_again(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let id = endpoint(&pool, seed.project_id, &["*"]).await;
    let (_, secret) = webhook_endpoint::rotate(&mut conn, &key(), (seed.project_id, id), 60).await.unwrap();
    let new = "n".repeat(32);
    let both = SealKey::with_previous(&new.clone().into(), &["k".repeat(32).into()]).unwrap();
    assert_eq!(webhook_endpoint::reseal(&mut conn, &both).await.unwrap(), 1);
    assert_eq!(webhook_endpoint::reseal(&mut conn, &both).await.unwrap(), 0, "once");
    webhook_delivery::test(&mut conn, seed.project_id, id).await.unwrap();
    let claim = claim(&pool).await.remove(0);
    let found = claim.secrets(&SealKey::new(&new.into()).unwrap()).unwrap();
    assert_eq!((found.len(), found[0].expose_secret()), (2, secret.expose_secret()));
    assert!(claim.secrets(&key()).is_err(), "the key before opens nothing any more");
    // Under a key that opens no secret, nothing is lost.
    let stranger = SealKey::new(&"s".repeat(32).into()).unwrap();
    assert_eq!(webhook_endpoint::reseal(&mut conn, &stranger).await.unwrap(), 0);
}

#[sqlx::test(migrations = false)]
async fn a_project_has_so_many_endpoints_and_old_events_are_forgotten(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    for _ in 0..MOST_PER_PROJECT {
        endpoint(&pool, seed.project_id, &["*"]).await;
    }
    let new = NewEndpoint { url: "https://a/".into(), description: String::new(), event_types: vec!["*".into()] };
    assert!(webhook_endpoint::insert(&mut conn, &key(), seed.project_id, &new).await.unwrap().is_none());
    happen(&pool, seed.project_id, SUCCEEDED).await;
    relay(&pool).await;
    assert_eq!(webhook_queue::sweep(&mut conn).await.unwrap().gone, 0);
    sqlx::query("update outbox set created_at = now() - interval '31 days'").execute(&mut *conn).await.unwrap();
    assert_eq!(webhook_queue::sweep(&mut conn).await.unwrap().gone, 1);
    let left: i64 = sqlx::query_scalar("select count(*) from webhook_delivery").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
}
