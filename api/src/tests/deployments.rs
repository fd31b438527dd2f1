//! Deployments: their bounds, their refusals, and their isolation.

use attune_store::testing::rows;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::{Answer, World};

const PATH: &str = "/v1/deployments";

async fn create(world: &World, key: &str, body: Value) -> Answer {
    world.call(Method::POST, PATH, key, Some(body)).await
}

#[sqlx::test(migrations = false)]
async fn a_deployment_is_created_changed_and_deleted(pool: PgPool) {
    let world = World::new(pool).await;
    let made = create(&world, &world.key, json!({"model": "tiny", "quantization": "nf4", "min_replicas": 2})).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.text);
    let view = made.json();
    assert_eq!(
        (&view["name"], &view["quantization"], &view["max_replicas"]),
        (&json!("tiny"), &json!("nf4"), &json!(2))
    );
    assert_eq!(
        (&view["replicas"]["ready"], &view["idle"], &view["suspended"]),
        (&json!(0), &json!(false), &json!(false))
    );
    let path = format!("{PATH}/{}", view["id"].as_str().unwrap());

    let body = json!({"name": "evening", "max_replicas": 4, "cooldown_seconds": 60});
    let changed = world.call(Method::POST, &path, &world.key, Some(body)).await.json();
    assert_eq!((&changed["name"], &changed["min_replicas"]), (&json!("evening"), &json!(2)));
    assert_eq!((&changed["max_replicas"], &changed["cooldown_seconds"]), (&json!(4), &json!(60)));
    let bad = world.call(Method::POST, &path, &world.key, Some(json!({"min_replicas": 5}))).await;
    assert_eq!((bad.status, &bad.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("min_replicas")));
    assert_eq!(world.get(&path, &world.key).await.json(), changed);

    assert_eq!(world.get(&path, &world.other.key).await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.get(PATH, &world.other.key).await.json()["data"], json!([]));
    let deleted = world.call(Method::DELETE, &path, &world.key, None).await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (StatusCode::OK, &json!(true)));
    assert_eq!(world.get(&path, &world.key).await.status, StatusCode::NOT_FOUND);
}

#[sqlx::test(migrations = false)]
async fn what_cannot_be_deployed_is_refused(pool: PgPool) {
    let world = World::new(pool).await;
    let unknown = create(&world, &world.key, json!({"model": "nothing"})).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    for (fields, param) in [
        (json!({"model": "tiny", "quantization": "fp4"}), "quantization"),
        (json!({"model": "tiny", "min_replicas": 2, "max_replicas": 1}), "min_replicas"),
        (json!({"model": "tiny", "max_replicas": 33}), "max_replicas"),
    ] {
        let refused = create(&world, &world.key, fields).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert_eq!(refused.json()["error"]["param"], param);
    }
    assert_eq!(create(&world, &world.key, json!({"model": "tiny"})).await.status, StatusCode::OK);
    let twice = create(&world, &world.key, json!({"model": "tiny"})).await;
    assert_eq!(twice.status, StatusCode::CONFLICT);
    assert!(twice.message().contains("has a deployment of 'tiny' in none"), "{}", twice.message());
    // Another project has its own.
    let theirs = create(&world, &world.other.key, json!({"model": "tiny"})).await;
    assert_eq!(theirs.status, StatusCode::OK, "{}", theirs.text);
}

#[sqlx::test(migrations = false)]
async fn limit_a_project_has_at_most_fifty_deployments(pool: PgPool) {
    let world = World::new(pool).await;
    let made = "with made as (
             insert into base_model (base_model_id, name, digest, architecture)
             select gen_random_uuid(), 'copy-' || number, digest, architecture
             from base_model, generate_series(1, 50) as number where base_model.name = 'tiny'
             returning base_model_id),
         deployed as (
             insert into deployment (deployment_id, project_id, base_model_id, quantization, name, min_replicas,
                 max_replicas)
             select gen_random_uuid(), $1, base_model_id, 'none', 'd', 0, 1 from made returning deployment_id)
         insert into deployment_use (deployment_id) select deployment_id from deployed";
    rows::change_project(&world.pool, made, world.seed.project_id).await.unwrap();
    let one_more = create(&world, &world.key, json!({"model": "tiny"})).await;
    assert_eq!(one_more.status, StatusCode::CONFLICT, "{}", one_more.text);
    assert!(one_more.message().contains("50 deployments"), "{}", one_more.message());
}
