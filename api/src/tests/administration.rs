//! Projects, API keys, users and the audit log, through the API.

use attune_domain::access::{Role, Scope};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::World;

async fn post(world: &World, path: &str, bearer: &str, body: Value) -> Value {
    let answer = world.call(Method::POST, path, bearer, Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()
}

#[sqlx::test(migrations = false)]
async fn a_key_is_shown_once_opens_what_its_scopes_say_and_is_revoked_at_once(pool: PgPool) {
    let world = World::new(pool).await;
    let project = post(&world, "/v1/organization/projects", &world.key, json!({"name": "second"})).await;
    assert_eq!((&project["object"], &project["status"]), (&json!("organization.project"), &json!("active")));
    let keys = format!("/v1/organization/projects/{}/api_keys", project["id"].as_str().unwrap());
    let made = post(&world, &keys, &world.key, json!({"name": "reader", "scopes": ["files:read"]})).await;
    let secret = made["value"].as_str().unwrap();
    assert!(secret.starts_with("sk-attune-") && secret.len() == 59, "{made}");
    let redacted = made["redacted_value"].as_str().unwrap();
    assert!(secret.starts_with(redacted.split('…').next().unwrap()) && redacted.len() < 25, "{redacted}");

    assert_eq!(world.get("/v1/files", secret).await.json()["data"], json!([]), "a project of its own");
    let refused = world.get("/v1/fine_tuning/jobs", secret).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (StatusCode::FORBIDDEN, Some("insufficient_permissions"))
    );
    assert!(refused.message().contains("jobs:read"), "{}", refused.text);

    let listed = world.get(&keys, &world.key).await;
    assert!(!listed.text.contains(secret), "the secret is shown once");
    assert!(listed.json()["data"][0]["last_used_at"].is_i64(), "{}", listed.text);
    let one = format!("{keys}/{}", made["id"].as_str().unwrap());
    assert_eq!(world.get(&one, &world.key).await.status, StatusCode::OK);
    assert_eq!(world.call(Method::DELETE, &one, &world.key, None).await.status, StatusCode::OK);
    assert_eq!(world.get("/v1/files", secret).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.call(Method::DELETE, &one, &world.key, None).await.status, StatusCode::NOT_FOUND);
}

#[sqlx::test(migrations = false)]
async fn an_archived_project_is_closed_to_its_keys(pool: PgPool) {
    let world = World::new(pool).await;
    let project = post(&world, "/v1/organization/projects", &world.key, json!({"name": "second"})).await;
    let path = format!("/v1/organization/projects/{}", project["id"].as_str().unwrap());
    let made = post(&world, &format!("{path}/api_keys"), &world.key, json!({"name": "x"})).await;
    let secret = made["value"].as_str().unwrap();
    assert_eq!(made["scopes"], json!(["all"]), "never the administration unasked");
    assert_eq!(world.get("/v1/files", secret).await.status, StatusCode::OK);
    assert_eq!(post(&world, &path, &world.key, json!({"name": "renamed"})).await["name"], "renamed");
    assert_eq!(post(&world, &format!("{path}/archive"), &world.key, json!({})).await["status"], "archived");
    assert_eq!(world.get("/v1/files", secret).await.status, StatusCode::UNAUTHORIZED);
    let listed = world.get("/v1/organization/projects", &world.key).await;
    assert!(!listed.text.contains("renamed"), "{}", listed.text);
    let all = world.get("/v1/organization/projects?include_archived=true", &world.key).await;
    assert!(all.text.contains("renamed"), "{}", all.text);
}

#[sqlx::test(migrations = false)]
async fn no_user_gives_another_a_role_above_their_own(pool: PgPool) {
    let world = World::new(pool).await;
    let admin = world.person("adam", Role::Admin).await;
    let owner = world.person("olga", Role::Owner).await;
    let keys = format!("/v1/organization/projects/{}/api_keys", world.seed.project_id);
    let mighty = json!({"name": "mighty", "scopes": ["admin"]});
    let answer = world.call(Method::POST, &keys, &admin, Some(mighty.clone())).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
    assert_eq!(world.call(Method::POST, &keys, &owner, Some(mighty)).await.status, StatusCode::OK);
    let users = "/v1/organization/users";
    let new = |role: &str| json!({"issuer": world.issuer.url, "subject": "new", "role": role});
    assert_eq!(world.call(Method::POST, users, &admin, Some(new("owner"))).await.status, StatusCode::FORBIDDEN);
    let made = post(&world, users, &admin, new("viewer")).await;
    let twice = world.call(Method::POST, users, &admin, Some(new("viewer"))).await;
    assert_eq!(twice.status, StatusCode::CONFLICT, "{}", twice.text);
    let one = format!("{users}/{}", made["id"].as_str().unwrap());
    let raised = world.call(Method::POST, &one, &admin, Some(json!({"role": "owner"}))).await;
    assert_eq!(raised.status, StatusCode::FORBIDDEN);
    let all = world.get(users, &owner).await.json();
    let last = all["data"].as_array().unwrap().iter().find(|user| user["role"] == "owner").unwrap();
    let last = format!("{users}/{}", last["id"].as_str().unwrap());
    for answer in [
        world.call(Method::POST, &last, &owner, Some(json!({"role": "viewer"}))).await,
        world.call(Method::DELETE, &last, &owner, None).await,
    ] {
        assert_eq!(answer.status, StatusCode::CONFLICT, "the last owner stays: {}", answer.text);
    }
}

#[sqlx::test(migrations = false)]
async fn what_cannot_be_is_refused_by_its_field(pool: PgPool) {
    let world = World::new(pool).await;
    let keys = format!("/v1/organization/projects/{}/api_keys", world.seed.project_id);
    for (path, body, param) in [
        ("/v1/organization/projects", json!({"name": "Big"}), "name"),
        ("/v1/organization/projects", json!({"name": "a\u{0}"}), "name"),
        ("/v1/organization/projects", json!({"name": "x", "colour": "red"}), "colour"),
        (&keys, json!({"name": ""}), "name"),
        (&keys, json!({"name": "x", "scopes": []}), "scopes"),
        (&keys, json!({"name": "x", "scopes": ["files:read", "god"]}), "scopes[1]"),
        (&keys, json!({"name": "x", "expires_in_seconds": 0}), "expires_in_seconds"),
        ("/v1/organization/users", json!({"issuer": "https://x", "subject": "a", "role": "viewer"}), "issuer"),
        ("/v1/organization/users", json!({"issuer": world.issuer.url, "subject": "", "role": "viewer"}), "subject"),
        ("/v1/organization/users", json!({"issuer": world.issuer.url, "subject": "a", "role": "god"}), "role"),
    ] {
        let answer = world.call(Method::POST, path, &world.key, Some(body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text);
    }
    let taken =
        world.call(Method::POST, "/v1/organization/projects", &world.key, Some(json!({"name": "default"}))).await;
    assert_eq!(taken.status, StatusCode::CONFLICT);
}

#[sqlx::test(migrations = false)]
async fn every_change_is_in_the_log_with_who_and_what(pool: PgPool) {
    let world = World::new(pool).await;
    let owner = world.person("olga", Role::Owner).await;
    let file = format!("/v1/files/{}", world.seed.file_id);
    assert_eq!(world.call(Method::DELETE, &file, &world.key, None).await.status, StatusCode::OK);
    assert_eq!(world.call(Method::DELETE, &file, &world.key, None).await.status, StatusCode::NOT_FOUND);
    let project = post(&world, "/v1/organization/projects", &owner, json!({"name": "second"})).await;
    let upload = json!({"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 9, "mime_type": "text/jsonl"});
    let upload = post(&world, "/v1/uploads", &world.key, upload).await["id"].as_str().unwrap().to_owned();
    post(&world, &format!("/v1/uploads/{upload}/cancel"), &world.key, json!({})).await;
    post(&world, "/v1/budget", &world.key, json!({"monthly_usd": 5})).await;
    post(&world, "/v1/budget", &world.key, json!({"monthly_usd": 6})).await;
    assert_eq!(world.get("/v1/files", &world.key).await.status, StatusCode::OK);

    let log = world.get("/v1/organization/audit_logs", &owner).await.json();
    let lines = log["data"].as_array().unwrap();
    let told: Vec<_> =
        lines.iter().map(|line| (line["type"].as_str().unwrap(), line["operation"].as_str().unwrap())).collect();
    let newer = [
        ("budget.updated", "set_budget"),
        ("budget.created", "set_budget"),
        ("upload.updated", "cancel_upload"),
        ("upload.created", "create_upload"),
    ];
    let older = [("project.created", "create_project"), ("file.deleted", "delete_file")];
    assert_eq!(told, [&newer[..], &older[..]].concat(), "{log:#}");
    assert_eq!((&lines[1]["object_id"], &lines[2]["object_id"]), (&lines[1]["project"]["id"], &json!(upload)));
    let lines = &lines[newer.len()..];
    assert_eq!((&lines[0]["actor"]["type"], &lines[0]["object_id"]), (&json!("session"), &project["id"]));
    assert_eq!(lines[1]["object_id"], world.seed.file_id.to_string());
    assert_eq!(lines[1]["project"]["name"], "default");
    assert!(lines[1]["actor"]["api_key"]["id"].as_str().unwrap().starts_with("key_"), "{log:#}");
    assert!(lines[1]["request_id"].as_str().unwrap().starts_with("req_"));

    let only = world.get("/v1/organization/audit_logs?event_types[]=file.deleted&limit=1", &owner).await.json();
    assert_eq!((only["data"].as_array().unwrap().len(), &only["has_more"]), (1, &json!(false)));
    let theirs = world.get("/v1/organization/audit_logs", &world.other.key).await.json();
    assert_eq!(theirs["data"], json!([]), "another organization's log");
    let reader = world.key_with(&[Scope::All]).await;
    assert_eq!(world.get("/v1/organization/audit_logs", &reader).await.status, StatusCode::FORBIDDEN);
}
