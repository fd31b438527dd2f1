//! The draft models of deployments, and the types of their keys and values.

use attune_domain::{architecture::Architecture, bytes::Bytes, digest::Sha256, run::Blob, spec::Quantization};
use attune_store::{
    adapters::base_model::{self, NewBaseModel},
    db,
    files::objects::blob_key,
    pools::deployment,
    replica,
    testing::{objects_at, replicas},
};
use attune_tests::object_store;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Digest;
use sqlx::PgPool;

use super::world::{Answer, World};

const PATH: &str = "/v1/deployments";

/// Imports a base of the first project with this number of blocks and these tokens.
async fn import(world: &World, name: &str, layers: u64, vocab: Value) {
    let mut tx = db::tenant(&world.pool, world.seed.project_id).await.unwrap();
    let tiny = base_model::get(&mut tx, world.seed.base_model_id).await.unwrap();
    let architecture = Architecture { num_hidden_layers: layers, ..tiny.architecture };
    let tokenizer = json!({"name": name, "model": {"vocab": vocab, "merges": []}}).to_string().into_bytes();
    let sha256 = Sha256::from_digest(sha2::Sha256::digest(&tokenizer).into());
    let files = [Blob { name: "tokenizer.json".into(), sha256, bytes: Bytes(tokenizer.len() as u64) }];
    world.objects.put(&blob_key(sha256), tokenizer).await.unwrap();
    let new = NewBaseModel { name, architecture: &architecture, files: &files, origin: None, license: None };
    base_model::insert(&mut tx, Some(world.seed.project_id), &new).await.unwrap();
    tx.commit().await.unwrap();
}

async fn create(world: &World, fields: Value) -> Answer {
    let mut body = json!({"model": "large", "quantization": "none"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    world.call(Method::POST, PATH, &world.key, Some(body)).await
}

/// Returns the spec of a new replica of the project's deployment.
async fn spec(world: &World) -> Value {
    let project = world.seed.project_id;
    let mut tx = db::tenant(&world.pool, project).await.unwrap();
    let base = base_model::by_name(&mut tx, project, "large").await.unwrap().unwrap();
    let pool = deployment::pool_of(&mut tx, project, base.base_model_id, Quantization::None).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = db::platform(&world.pool).await.unwrap();
    let id = replica::start(&mut tx, pool, None).await.unwrap();
    replica::place(&mut tx, id, &replicas::placement(0)).await.unwrap();
    let token = replica::get(&mut tx, id).await.unwrap().token;
    tx.commit().await.unwrap();
    world.get("/internal/replica/spec", &token).await.json()
}

#[sqlx::test(migrations = false)]
async fn a_draft_model_is_a_smaller_base_with_the_same_tokens(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects_at(&object_store::serve(folder.path()).await.unwrap());
    objects.ensure_bucket().await.unwrap();
    let world = World::with_objects(pool, objects).await;
    let vocab = json!({"a": 0, "b": 1});
    import(&world, "large", 8, vocab.clone()).await;
    import(&world, "small", 1, vocab).await;
    // The same tokens, written in another order, and a token more.
    import(&world, "reordered", 1, json!({"b": 1, "a": 0, "c": 2})).await;
    import(&world, "swapped", 1, json!({"a": 1, "b": 0})).await;
    for (draft, reason) in [
        ("nothing", "the project has no base model 'nothing'"),
        ("large", "'large' cannot draft for 'large': it has"),
        ("swapped", "its vocabulary differs: the base does not have 'b' (0, in the base 1)"),
        ("reordered", "its vocabulary differs: the base does not have 'c' (2)"),
    ] {
        let refused = create(&world, json!({"draft_model": draft})).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["param"]), (StatusCode::BAD_REQUEST, &json!("draft_model")), "{error}");
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    let other = create(&world, json!({"draft_model": "small", "engine": "vllm"})).await;
    assert!(other.message().contains("vLLM replicas have no draft model"), "{}", other.text);

    let made = create(&world, json!({"draft_model": "small", "kv_cache_dtype": "int8"})).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.text);
    let view = made.json();
    assert_eq!((&view["draft_model"], &view["kv_cache_dtype"]), (&json!("small"), &json!("int8")));
    let sent = spec(&world).await;
    assert_eq!(sent["kv_cache_dtype"], "int8");
    assert_eq!(sent["draft"]["base"][0]["name"], "tokenizer.json", "{sent}");
    assert!(sent["draft"]["base_digest"] != sent["base_digest"]);

    let path = format!("{PATH}/{}", view["id"].as_str().unwrap());
    let change = async |body: Value| world.call(Method::POST, &path, &world.key, Some(body)).await;
    assert_eq!(change(json!({"name": "d"})).await.json()["draft_model"], "small", "unchanged");
    let refused = change(json!({"draft_model": "swapped"})).await;
    assert!(refused.message().contains("its vocabulary differs"), "{}", refused.text);
    let changed = change(json!({"draft_model": null, "kv_cache_dtype": "auto"})).await.json();
    assert_eq!((&changed["draft_model"], &changed["kv_cache_dtype"]), (&json!(null), &json!("auto")), "{changed}");
    let sent = spec(&world).await;
    assert_eq!((&sent["draft"], &sent["kv_cache_dtype"]), (&json!(null), &json!("auto")));
    assert_eq!(change(json!({"draft_model": "small"})).await.json()["draft_model"], "small");
}
