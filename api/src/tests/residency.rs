//! The residency of adapter versions: prefetches over HTTP, and a replica that reports over HTTP too.

use attune_store::{
    adapters::adapter,
    db,
    replica::{self, ServedBase},
    testing::replicas,
};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::{World, trained};

/// Launches a replica of the version's base, and returns its token.
async fn launched(world: &World, version: &str) -> String {
    let mut tx = db::platform(&world.pool).await.unwrap();
    let version = adapter::find(&mut tx, world.seed.project_id, version).await.unwrap();
    let base = ServedBase::shared(version.base_model_id, version.quantization);
    let replica = replica::ensure(&mut tx, base).await.unwrap();
    replica::place(&mut tx, replica.replica_id, &replicas::placement(0)).await.unwrap();
    tx.commit().await.unwrap();
    replica.token
}

async fn report(world: &World, token: &str, report: Value) -> Value {
    let answer = world.call(Method::POST, "/internal/replica/reports", token, Some(report)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

#[sqlx::test(migrations = false)]
async fn a_prefetch_reaches_the_replicas_and_residency_shows_what_they_report(pool: PgPool) {
    let world = World::new(pool).await;
    let (_, id, model) = trained(&world).await;
    let (residency, prefetch) = (format!("/v1/adapters/{id}/residency"), format!("/v1/adapters/{id}/prefetch"));
    let view = world.get(&residency, &world.key).await.json();
    let nowhere = json!({"object": "adapter.residency", "adapter_version": id, "model": model,
        "prefetched_until": null, "replicas": []});
    assert_eq!(view, nowhere);

    let bad = world.call(Method::POST, &prefetch, &world.key, Some(json!({"seconds": 1}))).await;
    assert_eq!((bad.status, &bad.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("seconds")));
    let view = world.call(Method::POST, &prefetch, &world.key, Some(json!({}))).await.json();
    assert!(view["prefetched_until"].is_number(), "{view}");
    assert_eq!(world.get(&residency, &world.key).await.json(), view);

    let token = launched(&world, &id).await;
    let mut state = json!({"address": "127.0.0.1:9", "active_requests": 0, "resident_adapters": [], "failed": null});
    let reply = report(&world, &token, state.clone()).await;
    assert_eq!((&reply["pinned"], &reply["prefetch"][0]["id"]), (&json!([id]), &json!(id)));
    let replicas = world.get(&residency, &world.key).await.json()["replicas"].clone();
    assert_eq!((&replicas[0]["tier"], &replicas[0]["status"]), (&json!("store"), &json!("ready")));

    state["disk_adapters"] = json!([{"id": id, "bytes": 9}]);
    report(&world, &token, state.clone()).await;
    let replicas = world.get(&residency, &world.key).await.json()["replicas"].clone();
    assert_eq!((&replicas[0]["tier"], &replicas[0]["bytes"]), (&json!("disk"), &json!(9)));

    state["resident_adapters"] = json!([id]);
    state["adapter_states"] =
        json!([{"id": id, "bytes": 7, "requests": 2, "idle_seconds": 5, "load_ms": 30, "loaded_from": "disk"}]);
    let reply = report(&world, &token, state).await;
    assert_eq!((&reply["pinned"], &reply["prefetch"]), (&json!([id]), &json!([])));
    let found = world.get(&residency, &world.key).await.json()["replicas"][0].clone();
    assert_eq!((&found["tier"], &found["bytes"], &found["requests"]), (&json!("memory"), &json!(7), &json!(2)));
    assert_eq!((&found["load_ms"], &found["loaded_from"]), (&json!(30), &json!("disk")));
    assert_eq!(found["reported_at"].as_i64().unwrap() - found["last_used_at"].as_i64().unwrap(), 5);

    assert_eq!(world.get(&residency, &world.other.key).await.status, StatusCode::NOT_FOUND);
    let foreign = world.call(Method::POST, &prefetch, &world.other.key, Some(json!({}))).await;
    assert_eq!(foreign.status, StatusCode::NOT_FOUND, "{}", foreign.text);
}
