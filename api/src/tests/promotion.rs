//! Promotion over HTTP: canaries, rollback, shadows and traffic, with a replica that answers with the ID of the adapter
//! that the request names.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_domain::serve::GenerateRequest;
use attune_store::{
    db,
    replica::{self, ServedBase},
    testing::{replicas, rows},
};
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{net::TcpListener, time::sleep};

use super::world::{Answer, World, trained};

/// The path of the alias in these tests.
const ALIAS: &str = "/v1/adapters/mail/aliases/prod";

/// The faults of the replica.
#[derive(Default)]
struct Faults {
    /// The adapter version that it cannot load.
    broken: Option<String>,
    /// The adapter version that it answers slowly.
    slow: Option<String>,
}

/// The time of a slow answer.
const SLOW: Duration = Duration::from_secs(3);

async fn generate(State(faults): State<Arc<Mutex<Faults>>>, Json(request): Json<GenerateRequest>) -> Response {
    let adapter = request.adapter.map(|adapter| adapter.id.to_string());
    let (is_broken, is_slow) = {
        let faults = faults.lock().unwrap();
        (faults.broken.is_some() && faults.broken == adapter, faults.slow.is_some() && faults.slow == adapter)
    };
    if is_slow {
        sleep(SLOW).await;
    }
    let events = if is_broken {
        vec![json!({"type": "failed", "code": "adapter_unavailable", "message": "broken"})]
    } else {
        vec![
            json!({"type": "started", "prompt_tokens": 3, "cached_tokens": 0, "echo": null, "adapter": adapter,
                "tier": "memory", "queued_ms": 1}),
            json!({"type": "piece", "choice": 0, "text": adapter, "tokens": []}),
            json!({"type": "finished", "choice": 0, "finish_reason": "stop"}),
            json!({"type": "done", "completion_tokens": 2}),
        ]
    };
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    Body::from(lines).into_response()
}

/// A world with versions of the adapter `mail`, a replica that serves them, and the alias `prod` of the first.
struct Stage {
    world: World,
    /// The IDs and the model names of the versions.
    versions: Vec<(String, String)>,
    faults: Arc<Mutex<Faults>>,
}

impl Stage {
    async fn new(pool: PgPool, versions: usize) -> Self {
        let world = World::new(pool).await;
        let mut made = Vec::new();
        for _ in 0..versions {
            let (_, id, model) = trained(&world).await;
            made.push((id, model));
        }
        let faults = Arc::<Mutex<Faults>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new().route("/generate", post(generate)).with_state(faults.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let version = world.get(&format!("/v1/adapters/{}", made[0].0), &world.key).await.json();
        serve_at(&world, &address, &version["quantization"]).await;
        let stage = Self { world, versions: made, faults };
        let made = stage.call(Method::PUT, "", Some(json!({"version": "1", "expected": null}))).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.text);
        stage
    }

    async fn call(&self, method: Method, end: &str, body: Option<Value>) -> Answer {
        self.world.call(method, &format!("{ALIAS}{end}"), &self.world.key, body).await
    }

    /// Makes a change that must succeed, and returns the alias.
    async fn change(&self, end: &str, body: Option<Value>) -> Value {
        let answer = self.call(Method::POST, end, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{end}: {}", answer.text);
        answer.json()
    }

    async fn ask(&self, user: Option<&str>) -> Answer {
        let mut body = json!({"model": "mail@prod", "messages": [{"role": "user", "content": "x"}]});
        if let Some(user) = user {
            body["user"] = user.into();
        }
        self.world.call(Method::POST, "/v1/chat/completions", &self.world.key, Some(body)).await
    }

    /// Returns the number of the version that answers, from 1. Everything that the response reports is of that version.
    async fn answered_by(&self, user: Option<&str>) -> usize {
        let answer = self.ask(user).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let number = self.reported(&answer);
        assert!(number.is_some(), "a wrong version is reported: {:?} {}", answer.headers, answer.text);
        number.unwrap_or_default()
    }

    /// Returns the number of the version that answered, if the header and the body report that one.
    fn reported(&self, answer: &Answer) -> Option<usize> {
        let body = answer.json();
        let said = body["choices"][0]["message"]["content"].as_str()?;
        let number = self.versions.iter().position(|(id, _)| id == said)?;
        let is_reported = answer.header("attune-adapter-version") == said && body["model"] == self.versions[number].1;
        is_reported.then_some(number + 1)
    }

    async fn alias(&self) -> Value {
        self.call(Method::GET, "", None).await.json()
    }

    async fn events(&self, kind: &str) -> i64 {
        let count = "select count(*) from outbox where type = $1";
        rows::number(&self.world.pool, count, kind).await.unwrap()
    }
}

/// Creates a ready replica of the base in this quantization, at this address.
async fn serve_at(world: &World, address: &str, quantization: &Value) {
    use attune_domain::spec::Quantization;
    let found = Quantization::ALL.into_iter().find(|known| {
        let (kind, double) = (quantization["type"].as_str(), quantization["double_quant"].as_bool());
        match kind {
            Some("nf4") => known.name() == if double == Some(true) { "nf4-double" } else { "nf4" },
            Some(kind) => known.name() == kind,
            None => known.name() == "none",
        }
    });
    let base = ServedBase::shared(world.seed.base_model_id, found.unwrap());
    let mut tx = db::platform(&world.pool).await.unwrap();
    let id = replica::ensure(&mut tx, base).await.unwrap().replica_id;
    replicas::ready(&mut tx, id, address, 3_600_000).await.unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn a_canary_answers_its_share_and_a_user_keeps_the_version(pool: PgPool) {
    let stage = Stage::new(pool, 2).await;
    let alias = stage.change("/canary", Some(json!({"version": "2", "percent": 30}))).await;
    assert_eq!((&alias["version"], &alias["canary"]["version"]), (&json!(1), &json!(2)), "{alias}");
    assert_eq!((&alias["canary"]["status"], &alias["canary"]["percent"]), (&json!("running"), &json!(30)));
    let users: Vec<String> = (0..200).map(|i| format!("user {i}")).collect();
    let mut first = BTreeMap::new();
    for user in &users {
        first.insert(user, stage.answered_by(Some(user)).await);
    }
    let share = first.values().filter(|version| **version == 2).count();
    // Five standard deviations of a binomial share.
    assert!((28..=92).contains(&share), "{share} of 200 instead of 60");
    for user in &users {
        assert_eq!(stage.answered_by(Some(user)).await, first[user], "{user} changed the version");
    }
    stage.change("/canary", Some(json!({"version": "2", "percent": 60}))).await;
    for user in users.iter().filter(|user| first[user] == 2) {
        assert_eq!(stage.answered_by(Some(user)).await, 2, "{user} left a share that grew");
    }
    let alias = stage.change("/promote", None).await;
    assert_eq!((&alias["version"], &alias["canary"]["status"]), (&json!(2), &json!("promoted")), "{alias}");
    assert_eq!(alias["previous_version"], stage.versions[0].0);
    assert_eq!(stage.answered_by(None).await, 2);
    assert_eq!((stage.events("adapter_canary.promoted").await, stage.events("adapter_alias.moved").await), (1, 2));
}

#[sqlx::test(migrations = false)]
async fn a_canary_that_fails_is_aborted_by_its_rule(pool: PgPool) {
    let stage = Stage::new(pool, 2).await;
    let rule = json!({"max_error_rate": 0.1, "min_requests": 10});
    stage.change("/canary", Some(json!({"version": "2", "percent": 50, "abort": rule}))).await;
    stage.faults.lock().unwrap().broken = Some(stage.versions[1].0.clone());
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(stage.ask(None).await.status != StatusCode::OK);
    }
    assert!((10..=50).contains(&failed), "{failed} of 60 instead of 30");
    assert_eq!(stage.alias().await["canary"]["status"], "running", "the counts are not written yet");
    stage.world.inference.write().await.unwrap();
    let canary = stage.alias().await["canary"].clone();
    assert_eq!((&canary["status"], &canary["observed"]["errors"]), (&json!("aborted"), &json!(failed)), "{canary}");
    assert!(canary["reason"].as_str().unwrap().contains("'max_error_rate', 0.1"), "{canary}");
    assert_eq!(canary["observed_stable"]["errors"], 0, "{canary}");
    for _ in 0..20 {
        assert_eq!(stage.answered_by(None).await, 1, "the stable version answers everything again");
    }
    assert_eq!(stage.events("adapter_canary.aborted").await, 1);
    stage.world.inference.write().await.unwrap();
    assert_eq!(stage.events("adapter_canary.aborted").await, 1);
}

#[sqlx::test(migrations = false)]
async fn a_rollback_returns_once_and_a_canary_excludes_other_moves(pool: PgPool) {
    let stage = Stage::new(pool, 3).await;
    for percent in [0, 101] {
        let refused = stage.call(Method::POST, "/canary", Some(json!({"version": "2", "percent": percent}))).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert!(refused.message().contains("from 1 to 99"), "{}", refused.text);
    }
    for (method, end, body, status) in [
        (Method::POST, "/rollback", None, StatusCode::CONFLICT),
        (Method::POST, "/promote", None, StatusCode::CONFLICT),
        (Method::POST, "/abort", None, StatusCode::CONFLICT),
        (Method::DELETE, "/shadow", None, StatusCode::NOT_FOUND),
        (Method::POST, "/canary", Some(json!({"version": "1", "percent": 5})), StatusCode::BAD_REQUEST),
        (Method::POST, "/canary", Some(json!({"version": "9", "percent": 5})), StatusCode::BAD_REQUEST),
    ] {
        let refused = stage.call(method, end, body).await;
        assert_eq!(refused.status, status, "{end}: {}", refused.text);
    }
    let canary = |version: &str| stage.call(Method::POST, "/canary", Some(json!({"version": version, "percent": 10})));
    let (one, other) = tokio::join!(canary("2"), canary("3"));
    let statuses = BTreeSet::from([one.status.as_u16(), other.status.as_u16()]);
    assert_eq!(statuses, BTreeSet::from([200, 409]), "{} {}", one.text, other.text);
    let moved = stage.call(Method::PUT, "", Some(json!({"version": "2"}))).await;
    assert_eq!(moved.status, StatusCode::CONFLICT, "{}", moved.text);
    let running = stage.alias().await["canary"]["model"].as_str().unwrap().to_owned();
    let deleted = stage.world.call(Method::DELETE, &format!("/v1/models/{running}"), &stage.world.key, None).await;
    assert_eq!(deleted.status, StatusCode::CONFLICT, "{}", deleted.text);
    assert_eq!(stage.change("/abort", None).await["canary"]["status"], "aborted");

    let moved = stage.call(Method::PUT, "", Some(json!({"version": "2"}))).await;
    assert_eq!(moved.json()["previous_version"], stage.versions[0].0, "{}", moved.text);
    let back = stage.change("/rollback", None).await;
    assert_eq!((&back["version"], &back["previous_version"]), (&json!(1), &Value::Null), "{back}");
    assert_eq!(stage.call(Method::POST, "/rollback", None).await.status, StatusCode::CONFLICT, "a second one in a row");
    assert_eq!(stage.answered_by(None).await, 1);
}

#[sqlx::test(migrations = false)]
async fn a_shadow_is_compared_and_charged_to_nobody(pool: PgPool) {
    let stage = Stage::new(pool, 2).await;
    let alias = stage.change("/shadow", Some(json!({"version": "2", "percent": 100}))).await;
    assert_eq!((&alias["shadow"]["version"], &alias["shadow"]["compared"]), (&json!(2), &json!(0)), "{alias}");
    for _ in 0..5 {
        assert_eq!(stage.answered_by(None).await, 1, "the shadow answers no caller");
    }
    let mut tries = 0;
    let shadow = loop {
        stage.world.inference.write().await.unwrap();
        let shadow = stage.alias().await["shadow"].clone();
        if shadow["compared"] == 5 {
            break shadow;
        }
        tries += 1;
        assert!(tries < 100, "{shadow}");
        sleep(Duration::from_millis(50)).await;
    };
    // The replica's texts are the adapters' IDs, so no two are equal; all have two tokens.
    assert_eq!(
        (&shadow["equal"], &shadow["errors"], &shadow["mean_length_difference"]),
        (&json!(0), &json!(0), &json!(0.0))
    );
    assert_eq!((&shadow["input_tokens"], &shadow["output_tokens"]), (&json!(15), &json!(10)));
    let charged = "select sum(requests)::bigint, sum(output_tokens)::bigint from usage";
    assert_eq!(rows::two_numbers(&stage.world.pool, charged).await.unwrap(), (5, 10));
    let ended = stage.call(Method::DELETE, "/shadow", None).await;
    assert!(ended.json()["shadow"]["ended_at"].is_i64(), "{}", ended.text);
}

#[sqlx::test(migrations = false)]
async fn limit_copies_to_a_shadow_at_the_same_time(pool: PgPool) {
    let stage = Stage::new(pool, 2).await;
    stage.faults.lock().unwrap().slow = Some(stage.versions[1].0.clone());
    stage.change("/shadow", Some(json!({"version": "2", "percent": 100}))).await;
    for _ in 0..20 {
        assert_eq!(stage.answered_by(None).await, 1);
    }
    stage.world.inference.write().await.unwrap();
    let shadow = stage.alias().await["shadow"].clone();
    assert_eq!((&shadow["skipped"], &shadow["compared"]), (&json!(12), &json!(0)), "{shadow}");
}

#[sqlx::test(migrations = false)]
async fn the_traffic_of_a_version_is_shown_with_its_cost(pool: PgPool) {
    let stage = Stage::new(pool, 2).await;
    for _ in 0..4 {
        stage.answered_by(None).await;
    }
    stage.faults.lock().unwrap().broken = Some(stage.versions[0].0.clone());
    assert_eq!(stage.ask(None).await.status, StatusCode::SERVICE_UNAVAILABLE);
    stage.world.inference.write().await.unwrap();
    let metrics = stage.world.get("/v1/adapters/mail/metrics?window=day", &stage.world.key).await.json();
    assert_eq!((&metrics["window"], metrics["data"].as_array().unwrap().len()), (&json!("day"), 1), "{metrics}");
    let version = &metrics["data"][0];
    assert_eq!((&version["version"], &version["requests"], &version["errors"]), (&json!(1), &json!(5), &json!(1)));
    assert_eq!((&version["input_tokens"], &version["output_tokens"]), (&json!(12), &json!(8)));
    assert_eq!(version["tiers"], json!({"memory": 4, "disk": 0, "store": 0}));
    assert!(version["ttft_ms"]["p95"].as_f64().unwrap() > 0.0 && version["queue_ms"]["p50"].is_f64(), "{version}");
    // The node costs 0.001 USD a second, and has run for less than an hour; 20 tokens were processed.
    let cost = version["usd_per_million_tokens"].as_f64().unwrap();
    assert!(cost > 0.0 && cost < 3.6 / 20.0 * 1e6, "{cost}");
    let refused = stage.world.get("/v1/adapters/mail/metrics?window=week", &stage.world.key).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
    let foreign = stage.world.get("/v1/adapters/mail/metrics", &stage.world.other.key).await;
    assert_eq!(foreign.status, StatusCode::NOT_FOUND, "{}", foreign.text);
}

/// Returns the number of requests that race: `make pool-test` sets `ATTUNE_PROMOTION_REQUESTS` to 100,000.
#[expect(clippy::disallowed_methods, reason = "a setting of this test alone")]
fn raced_requests() -> usize {
    env::var("ATTUNE_PROMOTION_REQUESTS").map_or(1200, |text| text.parse().expect("a number of requests"))
}

/// Requests race with canaries, promotions, rollbacks and moves.
#[sqlx::test(migrations = false)]
async fn no_answer_is_of_another_version_than_it_reports(pool: PgPool) {
    const ASKING: usize = 5;
    let requests = raced_requests();
    let stage = Arc::new(Stage::new(pool, 2).await);
    let asking = (0..ASKING).map(|_| {
        let stage = stage.clone();
        tokio::spawn(async move {
            let (mut wrong, mut seen) = (0, BTreeSet::new());
            for _ in 0..requests / ASKING {
                let answer = stage.ask(None).await;
                match stage.reported(&answer) {
                    Some(version) => drop(seen.insert(version)),
                    None => wrong += 1,
                }
            }
            (wrong, seen)
        })
    });
    let asking: Vec<_> = asking.collect();
    let mut rounds = 0;
    while asking.iter().any(|task| !task.is_finished()) {
        stage.change("/canary", Some(json!({"version": "2", "percent": 50}))).await;
        sleep(Duration::from_millis(20)).await;
        stage.change("/promote", None).await;
        sleep(Duration::from_millis(20)).await;
        stage.change("/rollback", None).await;
        let moved = stage.call(Method::PUT, "", Some(json!({"version": "2", "expected": "1"}))).await;
        assert_eq!(moved.status, StatusCode::OK, "{}", moved.text);
        stage.change("/rollback", None).await;
        rounds += 1;
    }
    let (mut wrong, mut seen) = (0, BTreeSet::new());
    for task in asking {
        let (more, versions) = task.await.unwrap();
        wrong += more;
        seen.extend(versions);
    }
    println!("{}", json!({"figure": "pool_wrong_versions", "value": wrong, "bar": 0, "at_most": true}));
    println!("{}", json!({"figure": "pool_raced_requests", "value": requests / ASKING * ASKING, "bar": requests}));
    assert_eq!((wrong, seen), (0, BTreeSet::from([1, 2])), "after {rounds} rounds");
}
