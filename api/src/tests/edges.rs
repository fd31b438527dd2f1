//! Callers that disconnect, and requests that fail after their first transaction: no orphaned content remains, no
//! failure is stored as a response, and every change is in the audit log.

use std::{path::Path, time::Duration};

use attune_store::{
    db,
    sweep::{self, KIND_SECONDS},
    testing,
};
use attune_tests::object_store;
use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use rand::RngExt;
use serde_json::{Value, json};
use sqlx::PgPool;
use tower::ServiceExt;

use super::world::{Answer, World};

const BOUNDARY: &str = "a-boundary";

async fn world_with_store(pool: PgPool, folder: &Path) -> World {
    let objects = testing::objects_at(&object_store::serve(folder).await.unwrap());
    objects.ensure_bucket().await.unwrap();
    World::with_objects(pool, objects).await
}

fn form(fields: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, filename, content) in fields {
        let filename = filename.map(|filename| format!("; filename=\"{filename}\"")).unwrap_or_default();
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn posted(path: &str, key: &str, body: Vec<u8>) -> Request<Body> {
    Request::post(path)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(Body::from(body))
        .unwrap()
}

async fn send(world: &World, request: Request<Body>) -> (StatusCode, Value) {
    let answer = world.router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Returns the names of the objects below a prefix.
fn objects(folder: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.join("attune").join(prefix)) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[sqlx::test(migrations = false)]
async fn attack_a09_content_of_a_caller_that_left_is_swept(pool: PgPool) {
    const UPLOADS: usize = 150;
    let folder = tempfile::tempdir().unwrap();
    let world = world_with_store(pool, folder.path()).await;
    let upload = |number: usize| {
        let mut content = vec![0; 200_000];
        rand::rng().fill(&mut content[..]);
        let name = format!("{number}.bin");
        form(&[("purpose", None, b"user_data"), ("file", Some(&name), &content)])
    };
    let began = std::time::Instant::now();
    let (status, answer) = send(&world, posted("/v1/files", &world.key, upload(0))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let whole = began.elapsed();
    let mut answered = 1;
    for number in 1..UPLOADS {
        let request = world.router.clone().oneshot(posted("/v1/files", &world.key, upload(number)));
        let share = 0.2 + 0.9 * number as f64 / UPLOADS as f64;
        answered += usize::from(tokio::time::timeout(whole.mul_f64(share), request).await.is_ok());
    }
    // Dropped uploads are deleted in tasks of their own.
    for _ in 0..100 {
        if objects(folder.path(), "upload").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = objects(folder.path(), "blob").len();
    let mut tx = db::platform(&world.pool).await.unwrap();
    testing::age_loose_blobs(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    sweep::pass(&world.pool, &world.objects, Duration::from_secs(KIND_SECONDS)).await;
    let named = testing::file_digests(&mut world.pool.acquire().await.unwrap()).await.unwrap();
    let left = objects(folder.path(), "blob");
    let orphans = left.iter().filter(|digest| !named.contains(digest)).count() + objects(folder.path(), "upload").len();
    println!("FIGURE orphans_after_sweep {orphans}");
    assert_eq!(
        orphans,
        0,
        "{answered} of {UPLOADS} were answered; {before} blobs before the sweep, {} after",
        left.len()
    );
    assert!(answered < UPLOADS, "nobody left");
    // Every upload that was answered has its content.
    assert!(left.len() >= answered, "{} blobs for {answered} files", left.len());
}

async fn pending_upload(world: &World, content: &[u8]) -> (String, String) {
    let new =
        json!({"filename": "rows.bin", "purpose": "user_data", "bytes": content.len(), "mime_type": "text/plain"});
    let upload = world.call(Method::POST, "/v1/uploads", &world.key, Some(new)).await.json()["id"].clone();
    let upload = upload.as_str().unwrap().to_owned();
    let parts = format!("/v1/uploads/{upload}/parts");
    let (status, part) = send(world, posted(&parts, &world.key, form(&[("data", Some("part"), content)]))).await;
    assert_eq!(status, StatusCode::OK, "{part}");
    (upload, part["id"].as_str().unwrap().to_owned())
}

async fn complete(world: &World, upload: &str, body: Value, key: Option<&str>) -> Answer {
    let bearer = format!("Bearer {}", world.key);
    let mut headers = vec![("authorization", bearer.as_str())];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    world.call_with(Method::POST, &format!("/v1/uploads/{upload}/complete"), &headers, Some(body)).await
}

#[sqlx::test(migrations = false)]
async fn attack_a12_a_completion_that_failed_frees_its_key(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let world = world_with_store(pool, folder.path()).await;
    let (upload, part) = pending_upload(&world, b"hello in parts").await;
    let bad = json!({"part_ids": [part], "md5": "0".repeat(32)});
    let good = json!({"part_ids": [part]});
    for _ in 0..2 {
        let refused = complete(&world, &upload, bad.clone(), Some("once")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert_eq!(refused.header("idempotent-replayed"), "", "the failure was kept as the answer");
    }
    // The key is free, and the upload is pending again.
    let first = complete(&world, &upload, good.clone(), Some("once")).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.text);
    let again = complete(&world, &upload, good, Some("once")).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::OK, "true"), "{}", again.text);
    assert_eq!(again.text, first.text);
}

#[sqlx::test(migrations = false)]
async fn attack_a12_a_crash_in_a_join_does_not_read_as_done(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let world = world_with_store(pool, folder.path()).await;
    let (upload, part) = pending_upload(&world, b"hello in parts").await;
    let good = json!({"part_ids": [part]});
    // The state after an API process died between the claim and the end of the assembly: the upload and its key are
    // claimed.
    let request = format!("POST /v1/uploads/{upload}/complete");
    let mut conn = world.pool.acquire().await.unwrap();
    testing::die_in_a_join(&mut conn, world.seed.project_id, &request).await.unwrap();
    let held = complete(&world, &upload, good.clone(), Some("once")).await;
    assert_eq!(held.status, StatusCode::CONFLICT, "the dead one's claim holds for a minute: {}", held.text);
    testing::age_claims(&mut conn).await.unwrap();
    let done = complete(&world, &upload, good, Some("once")).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text);
    assert_eq!(done.json()["status"], "completed");
}

async fn audited(world: &World, id: &str) -> Vec<String> {
    let log = world.get("/v1/organization/audit_logs?limit=100", &world.key).await.json();
    let digits = id.rsplit(['-', '_']).next().unwrap();
    let lines = log["data"].as_array().unwrap();
    let of_id = lines.iter().filter(|line| line.to_string().contains(digits));
    let mut types: Vec<String> = of_id.map(|line| line["type"].as_str().unwrap().to_owned()).collect();
    types.sort();
    types
}

#[sqlx::test(migrations = false)]
async fn attack_a11_a_completed_upload_and_its_file_are_in_the_audit_log(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let world = world_with_store(pool, folder.path()).await;
    for key in [None, Some("once")] {
        let (upload, part) = pending_upload(&world, b"hello in parts").await;
        let done = complete(&world, &upload, json!({"part_ids": [part]}), key).await.json();
        let file = done["file"]["id"].as_str().unwrap();
        assert!(audited(&world, file).await.contains(&"file.created".to_owned()), "key {key:?}");
        assert_eq!(audited(&world, &upload).await, ["upload.created", "upload.updated"], "key {key:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn attack_a11b_a_person_who_is_in_projects_leaves_the_organization_in_the_audit_log(pool: PgPool) {
    let world = World::new(pool).await;
    let user = json!({"issuer": world.issuer.url, "subject": "leaver", "role": "member"});
    let user = world.call(Method::POST, "/v1/organization/users", &world.key, Some(user)).await.json();
    let user = user["id"].as_str().unwrap();
    let mut projects = vec![world.seed.project_id.to_string()];
    let second =
        world.call(Method::POST, "/v1/organization/projects", &world.key, Some(json!({"name": "second"}))).await;
    projects.push(second.json()["id"].as_str().unwrap().to_owned());
    for project in &projects {
        let path = format!("/v1/organization/projects/{project}/users");
        let added = world.call(Method::POST, &path, &world.key, Some(json!({"user_id": user, "role": "member"}))).await;
        assert_eq!(added.status, StatusCode::OK, "{}", added.text);
    }
    let gone = world.call(Method::DELETE, &format!("/v1/organization/users/{user}"), &world.key, None).await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.text);
    let noted = audited(&world, user).await;
    let count = |kind: &str| noted.iter().filter(|noted| *noted == kind).count();
    assert_eq!(count("user.deleted"), 1, "{noted:?}");
    assert_eq!(count("project.user.deleted"), 2, "one line for each project: {noted:?}");
}

#[sqlx::test(migrations = false)]
async fn attack_a14_a_request_for_an_unknown_object_leaves_no_note(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    let world = world_with_store(pool, folder.path()).await;
    let notes = async || testing::loose_blobs(&mut world.pool.acquire().await.unwrap()).await.unwrap();
    let path = |digest: &str| format!("/v1/base_models/blobs/{digest}");
    for digit in ["0", "1", "2"] {
        let looked = world.call(Method::HEAD, &path(&digit.repeat(64)), &world.key, None).await;
        assert_eq!(looked.status, StatusCode::NOT_FOUND, "{}", looked.text);
    }
    let put = Request::put(path(&"3".repeat(64)))
        .header(header::AUTHORIZATION, format!("Bearer {}", world.key))
        .body(Body::from("something else"))
        .unwrap();
    let (status, refused) = send(&world, put).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("digest_mismatch")), "{refused}");
    assert_eq!(notes().await, 0);
}
