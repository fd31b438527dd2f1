//! `Idempotency-Key` on every operation that creates something: a repeated request creates nothing, and gets the first
//! one's response.

use attune_domain::access::Role;
use attune_store::{db, testing};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::{Answer, World};
use crate::{policy, router, routes};

async fn keyed(world: &World, path: &str, bearer: &str, key: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {bearer}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
    world.call_with(Method::POST, path, &headers, Some(body.clone())).await
}

#[sqlx::test(migrations = false)]
async fn administration_is_done_once(pool: PgPool) {
    let world = World::new(pool).await;
    let keys = format!("/v1/organization/projects/{}/api_keys", world.seed.project_id);
    let user = json!({"issuer": world.issuer.url, "subject": "new", "role": "viewer"});
    for (n, (path, body)) in [
        ("/v1/organization/projects", json!({"name": "second"})),
        ("/v1/organization/users", user),
        (keys.as_str(), json!({"name": "mine"})),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key-{n}");
        let first = keyed(&world, path, &world.key, &key, &body).await;
        assert_eq!(first.status, StatusCode::OK, "{path}: {}", first.text);
        let again = keyed(&world, path, &world.key, &key, &body).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::OK, "true"), "{}", again.text);
        assert_eq!(again.text, first.text, "{path}");
        let theirs = keyed(&world, path, &world.other.key, &key, &body).await;
        assert_eq!(theirs.header("idempotent-replayed"), "", "another organization's key is another key");
    }
    let listed = world.get(&keys, &world.key).await.json();
    assert_eq!(listed["data"].as_array().unwrap().iter().filter(|key| key["name"] == "mine").count(), 1, "{listed}");
}

#[sqlx::test(migrations = false)]
async fn a_secret_is_returned_again_to_the_same_bearer_and_is_stored_nowhere_in_clear(pool: PgPool) {
    let world = World::new(pool).await;
    let path = "/v1/webhook_endpoints";
    let body = json!({"url": "https://hooks.example/attune"});
    let first = keyed(&world, path, &world.key, "once", &body).await;
    let secret = first.json()["secret"].as_str().unwrap().to_owned();
    assert_eq!(keyed(&world, path, &world.key, "once", &body).await.json()["secret"], secret);

    let colleague = world.person("carla", Role::Admin).await;
    let refused = keyed(&world, path, &colleague, "once", &body).await;
    assert_eq!(refused.json()["error"]["code"], "idempotency_answer_sealed", "{}", refused.text);
    assert!(!refused.text.contains(&secret));

    let mut tx = db::platform(&world.pool).await.unwrap();
    let kept = testing::kept_answers(&mut tx).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert!(!kept[0].windows(8).any(|part| part == &secret.as_bytes()[..8]), "sealed");
}

/// Every operation that creates something accepts a key; other tests cover the behavior after that.
#[sqlx::test(migrations = false)]
async fn everything_that_is_made_takes_a_key(pool: PgPool) {
    let world = World::new(pool).await;
    let mut asked = 0;
    for (path, item) in &router::document().paths.paths {
        for (method, operation) in policy::operations(item) {
            let declared = routes::POLICIES.iter().copied().flatten();
            let answers = declared.filter(|policy| policy.is_never_stored).any(|policy| policy.operation == operation);
            if method != Method::POST || answers {
                continue;
            }
            let answer = keyed(&world, path, &world.key, "once", &json!({})).await;
            let supported = !answer.text.contains("idempotency_not_supported");
            assert!(supported, "{operation}: {}", answer.text);
            asked += 1;
        }
    }
    assert!(asked >= 25, "{asked}");
}
