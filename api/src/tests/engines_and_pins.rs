//! The engines and the pinned adapters of deployments, and replicas that are busy.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use attune_domain::{
    bytes::Bytes,
    id::{ProjectId, ReplicaId},
    offer::{Offer, OfferDevice},
    spec::Quantization,
};
use attune_store::{
    adapters::adapter,
    db,
    pools::deployment,
    replica::{self, ServedBase},
    runs::offer,
    testing::replicas,
};
use axum::{
    Router,
    http::{Method, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

use super::world::{Answer, World, trained};

const PATH: &str = "/v1/deployments";

async fn create(world: &World, key: &str, body: Value) -> Answer {
    world.call(Method::POST, PATH, key, Some(body)).await
}

/// Creates a ready replica at this address.
async fn ready(world: &World, base: ServedBase, address: &str) -> ReplicaId {
    let mut tx = db::platform(&world.pool).await.unwrap();
    let id = replica::start(&mut tx, base, None).await.unwrap();
    replicas::ready(&mut tx, id, address, 0).await.unwrap();
    tx.commit().await.unwrap();
    id
}

#[sqlx::test(migrations = false)]
async fn a_deployment_has_an_engine_and_a_device_of_its_own(pool: PgPool) {
    let world = World::new(pool).await;
    let made = create(&world, &world.key, json!({"model": "tiny", "quantization": "none", "engine": "vllm"})).await;
    assert_eq!((made.status, &made.json()["engine"]), (StatusCode::OK, &json!("vllm")), "{}", made.text);
    let other = create(&world, &world.other.key, json!({"model": "tiny", "quantization": "none"})).await;
    assert_eq!((other.status, &other.json()["engine"]), (StatusCode::OK, &json!("attune")), "{}", other.text);
    assert_eq!(other.json()["device"], "auto");
    let int8 = create(&world, &world.other.key, json!({"model": "tiny", "quantization": "int8"})).await;
    assert_eq!((int8.status, &int8.json()["engine"]), (StatusCode::OK, &json!("attune")), "another pool");
    let refused = create(&world, &world.key, json!({"model": "tiny", "quantization": "int8", "engine": "lorax"})).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("quantization")));

    let shared = ServedBase::as_imported(world.seed.base_model_id);
    let own = pool_of(&world, world.seed.project_id, Quantization::None).await;
    let theirs = pool_of(&world, world.other.project, Quantization::None).await;
    assert!(own != shared && theirs != shared && own != theirs, "{own:?} {theirs:?}");
    let mut conn = world.pool.acquire().await.unwrap();
    for (base, engine) in [(own, "vllm"), (theirs, "attune"), (shared, "attune")] {
        let id = ready(&world, base, "127.0.0.1:9").await;
        let token = replica::get(&mut conn, id).await.unwrap().token;
        assert_eq!(world.get("/internal/replica/spec", &token).await.json()["engine"], engine);
    }

    // The engine can be changed, if machines can have replicas of the new one.
    let path = format!("{PATH}/{}", made.json()["id"].as_str().unwrap());
    let change = async |body: Value| world.call(Method::POST, &path, &world.key, Some(body)).await;
    let changed = change(json!({"engine": "attune", "device": "cpu"})).await.json();
    assert_eq!((&changed["engine"], &changed["device"]), (&json!("attune"), &json!("cpu")), "{changed}");
    let refused = change(json!({"engine": "vllm"})).await;
    assert!(refused.message().contains("'device': vLLM requires a GPU"), "{}", refused.message());
}

/// Returns the pool that answers a project's requests of the base model.
async fn pool_of(world: &World, project: ProjectId, quantization: Quantization) -> ServedBase {
    let mut tx = db::tenant(&world.pool, project).await.unwrap();
    deployment::pool_of(&mut tx, project, world.seed.base_model_id, quantization).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn a_deployment_that_no_machine_can_hold_is_refused_with_every_reason(pool: PgPool) {
    let world = World::new(pool).await;
    let device = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_000) };
    let large = Offer::cpu("local", "large", Bytes::mib(16_000), 2);
    let offers = [
        Offer::cpu("local", "small", Bytes::mib(100), 2),
        Offer { name: "gpu".into(), device, ..large.clone() },
        Offer { name: "cheap".into(), spot: true, ..large.clone() },
    ];
    let publish = async |offers: &[Offer]| {
        let mut tx = db::platform(&world.pool).await.unwrap();
        offer::publish(&mut tx, "local", offers).await.unwrap();
        tx.commit().await.unwrap();
    };
    publish(&offers).await;
    let body = |device: &str| json!({"model": "tiny", "quantization": "none", "device": device});
    for (device, param, reason) in [
        ("auto", "model", "gpu: the device cuda is not in this build"),
        ("cpu", "device", "gpu has the device NVIDIA-L4, and device is cpu"),
    ] {
        let refused = create(&world, &world.key, body(device)).await;
        let error = refused.json()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!("no_offer"), &json!(param)), "{error}");
        for reason in [reason, "small has", "cheap is a spot machine"] {
            assert!(refused.message().contains(reason), "{}", refused.message());
        }
    }
    publish(&[&offers[..], &[large]].concat()).await;
    let made = create(&world, &world.key, body("cpu")).await;
    assert_eq!((made.status, &made.json()["device"]), (StatusCode::OK, &json!("cpu")), "{}", made.text);
    let path = format!("{PATH}/{}", made.json()["id"].as_str().unwrap());
    let refused = world.call(Method::POST, &path, &world.key, Some(json!({"device": "cuda"}))).await;
    assert_eq!(refused.json()["error"]["param"], "device", "{}", refused.text);
    assert!(refused.message().contains("large has the device cpu, and device is cuda"), "{}", refused.message());
}

#[sqlx::test(migrations = false)]
async fn a_replica_is_sent_the_adapters_that_the_project_pins(pool: PgPool) {
    let world = World::new(pool).await;
    let (_, id, _) = trained(&world).await;
    let mut conn = world.pool.acquire().await.unwrap();
    let version = adapter::list(&mut conn, world.seed.project_id, None, None, 1).await.unwrap().remove(0);
    let quantization = version.quantization.name();
    let another = if quantization == "none" { "int8" } else { "none" };
    let body = |quantization: &str, pin: &str| {
        let pins = [pin];
        json!({"model": "tiny", "quantization": quantization, "pinned_adapters": pins})
    };
    for (key, body, why) in [
        (&world.key, body(another, &id), "is served over its base in"),
        (&world.key, body(quantization, "nothing"), "the project has no adapter 'nothing'"),
        (&world.other.key, body(quantization, &id), "the project has no adapter"),
    ] {
        let refused = create(&world, key, body).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!("pinned_adapters"))
        );
        assert!(refused.message().contains(why), "{}", refused.message());
    }
    let made = create(&world, &world.key, body(quantization, &id)).await;
    assert_eq!((made.status, &made.json()["pinned_adapters"]), (StatusCode::OK, &json!([id])), "{}", made.text);

    let base = pool_of(&world, world.seed.project_id, version.quantization).await;
    let replica_id = ready(&world, base, "127.0.0.1:9").await;
    let token = replica::get(&mut conn, replica_id).await.unwrap().token;
    let report = async |resident: Value| {
        let body = json!({"address": null, "active_requests": 0, "resident_adapters": resident, "failed": null});
        world.call(Method::POST, "/internal/replica/reports", &token, Some(body)).await.json()
    };
    let reply = report(json!([])).await;
    assert_eq!((&reply["pinned"], &reply["prefetch"][0]["id"]), (&json!([id]), &json!(id)), "{reply}");
    assert!(reply["prefetch"][0]["files"][0]["url"].as_str().unwrap().starts_with("http"), "{reply}");
    let reply = report(json!([id])).await;
    assert_eq!((&reply["pinned"], &reply["prefetch"]), (&json!([id]), &json!([])), "{reply}");

    let path = format!("{PATH}/{}", made.json()["id"].as_str().unwrap());
    let renamed = world.call(Method::POST, &path, &world.key, Some(json!({"name": "d"}))).await.json();
    assert_eq!(renamed["pinned_adapters"], json!([id]), "unchanged");
    let changed = world.call(Method::POST, &path, &world.key, Some(json!({"pinned_adapters": []}))).await.json();
    assert_eq!(changed["pinned_adapters"], json!([]));
    assert_eq!(report(json!([])).await["pinned"], json!([]));
}

#[sqlx::test(migrations = false)]
async fn limit_a_deployment_pins_at_most_32_adapters(pool: PgPool) {
    let world = World::new(pool).await;
    let pins = |count: usize| json!({"model": "tiny", "pinned_adapters": vec!["mail"; count]});
    let refused = create(&world, &world.key, pins(33)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
    assert_eq!(refused.message(), "Invalid 'pinned_adapters': 33 adapters. Pin at most 32.");
    let unknown = create(&world, &world.key, pins(32)).await;
    assert!(unknown.message().contains("the project has no adapter 'mail'"), "{}", unknown.message());
}

/// Starts a replica that answers each request with these lines, and returns the number of its requests.
async fn answers_with(world: &World, lines: &'static str) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let generate = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { lines }
    };
    let router = Router::new().route("/generate", post(generate));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let quantization = world.inference.serving.base_quantization;
    ready(world, ServedBase::shared(world.seed.base_model_id, quantization), &address).await;
    count
}

const BUSY: &str = "{\"type\":\"failed\",\"code\":\"replica_busy\",\"message\":\"full\"}\n";

const ANSWER: &str = concat!(
    "{\"type\":\"started\",\"prompt_tokens\":3,\"cached_tokens\":0,\"echo\":null}\n",
    "{\"type\":\"piece\",\"choice\":0,\"text\":\"yes\",\"tokens\":[]}\n",
    "{\"type\":\"finished\",\"choice\":0,\"finish_reason\":\"stop\"}\n",
    "{\"type\":\"done\",\"completion_tokens\":1}\n"
);

async fn chat(world: &World) -> Answer {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}]});
    world.call(Method::POST, "/v1/chat/completions", &world.key, Some(body)).await
}

#[sqlx::test(migrations = false)]
async fn a_request_that_a_busy_replica_refuses_is_sent_to_another_one(pool: PgPool) {
    let world = World::new(pool).await;
    let busy = [answers_with(&world, BUSY).await, answers_with(&world, BUSY).await];
    let refused = chat(&world).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    assert!(refused.message().contains("overloaded"), "{}", refused.text);
    assert_eq!(busy.each_ref().map(|count| count.load(Ordering::SeqCst)), [1, 1], "each is asked once");

    let free = answers_with(&world, ANSWER).await;
    for number in 1..=5 {
        let answer = chat(&world).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "yes");
        assert_eq!(free.load(Ordering::SeqCst), number);
    }
}
