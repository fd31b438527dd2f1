//! `If-Match` on every object that can be changed: a change with the current version succeeds, one with an earlier
//! version is refused.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::{Answer, World, trained};

/// An object, and changes of it.
struct Case {
    path: String,
    /// A change that does not delete the object.
    written: (Method, String, Value),
    /// The change that has a condition.
    last: (Method, String, Option<Value>),
}

impl Case {
    fn new(path: &str, written: (Method, &str, Value), last: (Method, &str, Option<Value>)) -> Self {
        let at = |end: &str| format!("{path}{end}");
        Self {
            path: path.to_owned(),
            written: (written.0, at(written.1), written.2),
            last: (last.0, at(last.1), last.2),
        }
    }
}

async fn made(world: &World, path: &str, body: Value) -> String {
    let answer = world.call(Method::POST, path, &world.key, Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// Returns one case of each kind that needs no object store; the adapters are inserted into the database.
async fn cases(world: &World) -> Vec<Case> {
    let (_, adapter, model) = trained(world).await;
    let (_, newer, _) = trained(world).await;
    let job = json!({"model": "tiny", "training_file": world.seed.file_id.to_string()});
    let job = made(world, "/v1/fine_tuning/jobs", job).await;
    let upload = json!({"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"});
    let upload = made(world, "/v1/uploads", upload).await;
    let hook = made(world, "/v1/webhook_endpoints", json!({"url": "https://hooks.example/attune"})).await;
    let project = made(world, "/v1/organization/projects", json!({"name": "conditioned"})).await;
    let project = format!("/v1/organization/projects/{project}");
    let key = made(world, &format!("{project}/api_keys"), json!({"name": "x"})).await;
    let user = json!({"issuer": world.issuer.url, "subject": "new", "role": "viewer"});
    let user = made(world, "/v1/organization/users", user).await;
    let role = |name: &str| json!({ "role": name });
    made(world, &format!("{project}/users"), json!({"user_id": user, "role": "viewer"})).await;
    let alias = format!("/v1/adapters/{model}/aliases/prod");
    world.call(Method::PUT, &alias, &world.key, Some(json!({ "version": adapter }))).await;
    let moved = json!({ "version": newer });
    let (post, delete) = (Method::POST, Method::DELETE);
    let cap = json!({"compute": {"max_price_usd": 5}});
    let cancelled = json!({});
    vec![
        Case::new(
            &format!("/v1/fine_tuning/jobs/{job}"),
            (post.clone(), "/pause", json!({})),
            (post.clone(), "", Some(cap)),
        ),
        Case::new(&alias, (Method::PUT, "", moved), (delete.clone(), "", None)),
        Case::new(
            &format!("/v1/webhook_endpoints/{hook}"),
            (post.clone(), "", json!({"description": "a"})),
            (delete.clone(), "", None),
        ),
        Case::new(
            "/v1/budget",
            (post.clone(), "", json!({"monthly_usd": 7})),
            (post.clone(), "", Some(json!({"monthly_usd": 9}))),
        ),
        Case::new(&format!("{project}/users/{user}"), (post.clone(), "", role("member")), (delete.clone(), "", None)),
        Case::new(
            &format!("/v1/organization/users/{user}"),
            (post.clone(), "", role("member")),
            (delete.clone(), "", None),
        ),
        Case::new(
            &project,
            (post.clone(), "", json!({"name": "renamed"})),
            (post.clone(), "/archive", Some(json!({}))),
        ),
        Case::new(
            &format!("/v1/uploads/{upload}"),
            // Every change of an upload ends it, and cancelling a cancelled upload changes nothing.
            (post.clone(), "/cancel", cancelled.clone()),
            (post.clone(), "/cancel", Some(cancelled)),
        ),
        Case::new(&format!("{project}/api_keys/{key}"), (Method::GET, "", Value::Null), (delete, "", None)),
    ]
}

async fn conditioned(world: &World, (method, path, body): &(Method, String, Option<Value>), tag: &str) -> Answer {
    let bearer = format!("Bearer {}", world.key);
    world.call_with(method.clone(), path, &[("authorization", &bearer), ("if-match", tag)], body.clone()).await
}

#[sqlx::test(migrations = false)]
async fn what_was_written_since_is_not_changed(pool: PgPool) {
    let world = World::new(pool).await;
    for case in cases(&world).await {
        let read = world.get(&case.path, &world.key).await;
        let before = read.header("etag").to_owned();
        let version = before.trim_matches('"').split_once('.').map(|(version, _)| version);
        assert!(version.is_some_and(|v| v.parse::<u64>().is_ok()), "{}: {before} {}", case.path, read.text);
        let (method, path, body) = case.written;
        if method != Method::GET {
            let written = world.call(method, &path, &world.key, Some(body)).await;
            assert_eq!(written.status, StatusCode::OK, "{path}: {}", written.text);
            let stale = conditioned(&world, &case.last, &before).await;
            assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED, "{}: {}", case.path, stale.text);
            assert!(stale.message().contains(stale.header("etag")), "{}", stale.text);
        }
        let none = conditioned(&world, &case.last, "\"1.abc\"").await;
        assert_eq!(none.status, StatusCode::PRECONDITION_FAILED, "{}: {}", case.path, none.text);
        let now = world.get(&case.path, &world.key).await.header("etag").to_owned();
        let changed = conditioned(&world, &case.last, &now).await;
        assert_eq!(changed.status, StatusCode::OK, "{}: {}", case.path, changed.text);
    }
}

#[sqlx::test(migrations = false)]
async fn an_alias_is_not_made_under_a_condition_that_requires_one(pool: PgPool) {
    let world = World::new(pool).await;
    let (_, adapter, model) = trained(&world).await;
    let set = (Method::PUT, format!("/v1/adapters/{model}/aliases/new"), Some(json!({ "version": adapter })));
    for tag in ["*", "\"7\""] {
        let refused = conditioned(&world, &set, tag).await;
        assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "{}", refused.text);
        assert!(refused.message().contains("the object does not exist"), "{}", refused.text);
    }
    let made = world.call(set.0.clone(), &set.1, &world.key, set.2.clone()).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.text);
    assert_eq!(conditioned(&world, &set, "*").await.status, StatusCode::OK);
}

#[sqlx::test(migrations = false)]
async fn a_budget_that_was_never_set_is_set_once_under_the_same_tag(pool: PgPool) {
    let world = World::new(pool).await;
    let tag = world.get("/v1/budget", &world.key).await.header("etag").to_owned();
    let set = (Method::POST, "/v1/budget".to_owned(), Some(json!({"monthly_usd": 5})));
    let (one, other) = tokio::join!(conditioned(&world, &set, &tag), conditioned(&world, &set, &tag));
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{} {}", one.text, other.text);
}

/// Two administrators change two owners concurrently, each with a condition: neither waits for the other indefinitely.
#[sqlx::test(migrations = false)]
async fn two_owners_are_changed_at_once(pool: PgPool) {
    use attune_domain::access::Role;
    let world = World::new(pool).await;
    let first = world.person("first", Role::Owner).await;
    world.person("second", Role::Owner).await;
    let users = world.get("/v1/organization/users", &first).await.json();
    let ids: Vec<_> = users["data"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap()).collect();
    for round in 0..10 {
        let role = if round % 2 == 0 { "admin" } else { "owner" };
        let change = |id: &str| (Method::POST, format!("/v1/organization/users/{id}"), Some(json!({ "role": role })));
        let (one, other) = (change(ids[0]), change(ids[1]));
        let (one, other) = tokio::join!(conditioned(&world, &one, "*"), conditioned(&world, &other, "*"));
        for answer in [&one, &other] {
            assert!([200, 409].contains(&answer.status.as_u16()), "{}", answer.text);
        }
    }
}
