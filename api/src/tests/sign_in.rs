//! The sign-in of users: authentication by an issuer, access to projects, and the rotation of the issuer's keys.

use std::time::Duration;

use attune_domain::access::Role;
use axum::http::{Method, StatusCode};
use serde_json::json;
use sqlx::PgPool;

use super::{issuer::Signer, world::World};

#[sqlx::test(migrations = false)]
async fn each_pinned_algorithm_signs_people_in_and_no_other_does(pool: PgPool) {
    let world = World::with_signer(pool, Signer::rsa("rsa"), &["RS256", "ES256"]).await;
    let token = world.person("alice", Role::Member).await;
    assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::OK, "RS256");
    let (second, third) = (Signer::p256("ec"), Signer::ed25519("ed"));
    world.issuer.publish(second.jwk.clone());
    world.issuer.publish(third.jwk.clone());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let claims = world.issuer.claims("alice");
    let token = second.sign(&second.header(), &claims);
    assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::OK, "ES256");
    let token = third.sign(&third.header(), &claims);
    assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::UNAUTHORIZED, "EdDSA is not pinned");
}

#[sqlx::test(migrations = false)]
async fn a_rotated_key_is_found_and_made_up_ids_do_not_make_us_ask(pool: PgPool) {
    let world = World::new(pool).await;
    let before = world.person("alice", Role::Member).await;
    assert_eq!(world.get("/v1/files", &before).await.status, StatusCode::OK);
    assert_eq!(world.issuer.asked(), 1);
    world.issuer.rotate(Signer::ed25519("second"));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let after = world.issuer.token("alice");
    assert_eq!(world.get("/v1/files", &after).await.status, StatusCode::OK, "a new key");
    assert_eq!(world.issuer.asked(), 2);
    for n in 0..20 {
        let stranger = Signer::ed25519(&format!("made-up-{n}"));
        let token = stranger.sign(&stranger.header(), &world.issuer.claims("alice"));
        assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::UNAUTHORIZED);
    }
    assert!(world.issuer.asked() <= 4, "asked {} times for 20 made-up keys", world.issuer.asked());
    // A new token under the withdrawn key, for which no result is cached.
    let old = Signer::ed25519("first");
    let token = old.sign(&old.header(), &world.issuer.claims("alice"));
    assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::UNAUTHORIZED);
}

#[sqlx::test(migrations = false)]
async fn a_user_in_several_projects_says_which(pool: PgPool) {
    let world = World::new(pool).await;
    let owner = world.person("olga", Role::Owner).await;
    let made = world.call(Method::POST, "/v1/organization/projects", &owner, Some(json!({"name": "second"}))).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.text);
    let second = made.json()["id"].as_str().unwrap().to_owned();
    let unsaid = world.get("/v1/files", &owner).await;
    assert_eq!(
        (unsaid.status, unsaid.json()["error"]["param"].as_str()),
        (StatusCode::BAD_REQUEST, Some("OpenAI-Project"))
    );
    let bearer = format!("Bearer {owner}");
    for (project, files) in [(world.seed.project_id.to_string(), 1), (second, 0)] {
        let headers = [("authorization", bearer.as_str()), ("openai-project", &project)];
        let answer = world.call_with(Method::GET, "/v1/files", &headers, None).await;
        assert_eq!(answer.json()["data"].as_array().unwrap().len(), files, "{}", answer.text);
    }
    let theirs = world.other.project.to_string();
    let unknown = format!("proj_{}", "0".repeat(32));
    let mut said = Vec::new();
    for project in [theirs, unknown, "nonsense".into()] {
        let headers = [("authorization", bearer.as_str()), ("openai-project", &project)];
        let answer = world.call_with(Method::GET, "/v1/files", &headers, None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text);
        said.push(answer.text);
    }
    assert!(said.windows(2).all(|two| two[0] == two[1]), "a foreign project is as an unknown one: {said:?}");
    let key = format!("Bearer {}", world.key);
    let headers = [("authorization", key.as_str()), ("openai-project", &world.other.project.to_string())];
    let answer = world.call_with(Method::GET, "/v1/files", &headers, None).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "a key has one project");
}

#[sqlx::test(migrations = false)]
async fn a_removed_user_has_no_access_at_once(pool: PgPool) {
    let world = World::new(pool).await;
    let token = world.person("mia", Role::Member).await;
    assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::OK);
    let users = world.get("/v1/organization/users", &world.key).await.json();
    let id = users["data"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/organization/users/{id}");
    assert_eq!(world.call(Method::DELETE, &path, &world.key, None).await.status, StatusCode::OK);
    assert_eq!(world.get("/v1/files", &token).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.get(&path, &world.key).await.status, StatusCode::NOT_FOUND);
}
