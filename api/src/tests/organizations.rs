//! Several organizations in one installation, and the ownership of base models.

use attune_domain::{
    access::{Role, Scope},
    id::{BaseModelId, ProjectId},
};
use attune_store::{
    adapters::base_model::{self, NewBaseModel},
    db,
    jobs::job::{self, Step},
    testing::{self, Seed},
};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::{World, trained};

const ALL: [Scope; 3] = [Scope::All, Scope::Admin, Scope::Installation];

/// Inserts a base model of one file, whose content is not stored.
async fn insert_base(world: &World, owner: Option<ProjectId>, name: &str, digit: char) -> BaseModelId {
    let mut tx = db::platform(&world.pool).await.unwrap();
    let architecture = base_model::get(&mut tx, world.seed.base_model_id).await.unwrap().architecture;
    let files = [testing::blob("config.json", digit)];
    let new = NewBaseModel { name, architecture: &architecture, files: &files, origin: None, license: None };
    let made = base_model::insert(&mut tx, owner, &new).await.unwrap();
    tx.commit().await.unwrap();
    made.base_model_id
}

async fn create(world: &World, key: &str, body: Value) -> Value {
    let answer = world.call(Method::POST, "/v1/organizations", key, Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

#[sqlx::test(migrations = false)]
async fn organizations_are_created_by_the_installation_and_share_nothing(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&ALL).await;
    let owner = json!({"issuer": world.issuer.url, "subject": "olga"});
    let one = create(&world, &installation, json!({"name": " One ", "owner": owner})).await;
    let two = create(&world, &installation, json!({"name": "Two"})).await;
    assert_eq!((&one["name"], &one["project"]["name"]), (&json!("One"), &json!("default")));
    assert_eq!(one["api_key"]["scopes"], json!(["all", "admin"]));
    let key = |made: &Value| made["api_key"]["value"].as_str().unwrap().to_owned();
    let (first, second) = (key(&one), key(&two));

    // Each organization administers itself and sees nothing of the other, by lists or by ID.
    let project = world.call(Method::POST, "/v1/organization/projects", &first, Some(json!({"name": "own"}))).await;
    assert_eq!(project.status, StatusCode::OK, "{}", project.text);
    let id = project.json()["id"].as_str().unwrap().to_owned();
    for path in ["/v1/organization/projects", "/v1/organization/users", "/v1/organization/audit_logs", "/v1/models"] {
        let (theirs, ours) = (world.get(path, &second).await, world.get(path, &first).await);
        assert_eq!((theirs.status, ours.status), (StatusCode::OK, StatusCode::OK), "{path}: {}", theirs.text);
        assert!(!theirs.text.contains(&id) && !theirs.text.contains("olga"), "{path}: {}", theirs.text);
        assert!(!theirs.text.contains(one["id"].as_str().unwrap()), "{path}: {}", theirs.text);
    }
    for path in [format!("/v1/organization/projects/{id}"), format!("/v1/organization/projects/{id}/api_keys")] {
        assert_eq!(world.get(&path, &first).await.status, StatusCode::OK, "{path}");
        assert_eq!(world.get(&path, &second).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let noted = world.get("/v1/organization/audit_logs", &first).await.text;
    assert!(noted.contains("organization.created") && noted.contains("project.created"), "{noted}");
    // The named owner signs in and administers only the new organization.
    let olga = world.issuer.token("olga");
    let seen = world.get("/v1/organization/projects", &olga).await;
    assert!(seen.status == StatusCode::OK && seen.text.contains(&id), "{}", seen.text);

    let listed = world.get("/v1/organizations?limit=2", &installation).await.json();
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!((names, &listed["has_more"]), (vec!["Two", "One"], &json!(true)));
}

#[sqlx::test(migrations = false)]
async fn limit_organizations_are_made_by_the_installations_keys_alone_and_have_short_names(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&ALL).await;
    let olga = world.person("olga", Role::Owner).await;
    for bearer in [&world.key, &olga] {
        let answer = world.call(Method::POST, "/v1/organizations", bearer, Some(json!({"name": "x"}))).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
        assert_eq!(world.get("/v1/organizations", bearer).await.status, StatusCode::FORBIDDEN);
    }
    let keys = format!("/v1/organization/projects/{}/api_keys", world.seed.project_id);
    let mighty = json!({"name": "mighty", "scopes": ["installation"]});
    for (bearer, status) in
        [(&world.key, StatusCode::FORBIDDEN), (&olga, StatusCode::FORBIDDEN), (&installation, StatusCode::OK)]
    {
        let answer = world.call(Method::POST, &keys, bearer, Some(mighty.clone())).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    create(&world, &installation, json!({"name": "One"})).await;
    let twice = world.call(Method::POST, "/v1/organizations", &installation, Some(json!({"name": "One"}))).await;
    assert_eq!(twice.status, StatusCode::CONFLICT, "{}", twice.text);
    for name in [String::new(), "a\nb".into(), "x".repeat(101)] {
        let answer = world.call(Method::POST, "/v1/organizations", &installation, Some(json!({"name": name}))).await;
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (StatusCode::BAD_REQUEST, Some("name")));
    }
}

#[sqlx::test(migrations = false)]
async fn a_project_means_its_own_base_model_and_sees_no_other_project_s(pool: PgPool) {
    let world = World::new(pool).await;
    let own = insert_base(&world, Some(world.other.project), "tiny", 'a').await;
    insert_base(&world, Some(world.seed.project_id), "private", 'b').await;
    let installation = world.seed.base_model_id.to_string();
    let seen = |key: String| {
        let world = &world;
        async move { world.get("/v1/base_models/tiny", &key).await.json() }
    };
    let (theirs, ours) = (seen(world.other.key.clone()).await, seen(world.key.clone()).await);
    assert_eq!((&theirs["id"], &theirs["owner"]), (&json!(own.to_string()), &json!("project")));
    assert_eq!((&ours["id"], &ours["owner"]), (&json!(installation), &json!("installation")));
    let listed = world.get("/v1/base_models", &world.other.key).await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "its own hides the other: {listed}");
    assert_eq!(world.get("/v1/base_models/private", &world.key).await.status, StatusCode::OK);
    for path in ["/v1/base_models/private", "/v1/models/private"] {
        assert_eq!(world.get(path, &world.other.key).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    assert!(!world.get("/v1/models", &world.other.key).await.text.contains("private"));
    // Its blobs are not visible either: a digest that only they name is reported as missing.
    let head = |digit: &str| format!("/v1/base_models/blobs/{}", digit.repeat(64));
    let foreign = world.call(Method::HEAD, &head("b"), &world.other.key, None).await;
    assert_eq!(foreign.status, StatusCode::NOT_FOUND);

    // A key of a project cannot create a base model of the installation.
    let body = json!({"name": "private", "owner": "installation", "files": []});
    let refused = world.call(Method::POST, "/v1/base_models", &world.key, Some(body)).await;
    assert!(refused.status.is_client_error(), "{}", refused.text);
}

#[sqlx::test(migrations = false)]
async fn a_base_model_is_deleted_by_its_owner_when_nothing_uses_it(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&ALL).await;
    let delete = |key: String, query: &'static str| {
        let path = format!("/v1/base_models/tiny{query}");
        let world = &world;
        async move { world.call(Method::DELETE, &path, &key, None).await }
    };
    let (_, _, model) = trained(&world).await;
    let running = {
        let mut tx = db::platform(&world.pool).await.unwrap();
        let job = testing::new_job(&mut tx, world.seed).await.unwrap();
        tx.commit().await.unwrap();
        job
    };
    assert_eq!(delete(world.key.clone(), "").await.status, StatusCode::FORBIDDEN, "it is the installation's");
    let used = delete(installation.clone(), "").await;
    assert_eq!(used.status, StatusCode::CONFLICT, "{}", used.text);
    assert!(used.text.contains(&running.to_string()) && used.text.contains(&model), "{}", used.text);

    let mut tx = db::platform(&world.pool).await.unwrap();
    let failed = job::JobError { code: "x".into(), message: "x".into(), param: None };
    job::step(&mut tx, running, &Step::failure(attune_domain::job::JobEvent::DataRefused, failed)).await.unwrap();
    tx.commit().await.unwrap();
    let gone = world.call(Method::DELETE, &format!("/v1/models/{model}"), &world.key, None).await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.text);
    // The project's own model is deleted first.
    insert_base(&world, Some(world.seed.project_id), "tiny", 'a').await;
    assert_eq!(delete(world.key.clone(), "?owner=installation").await.status, StatusCode::FORBIDDEN);
    assert_eq!(delete(world.key.clone(), "").await.status, StatusCode::OK);
    assert_eq!(world.get("/v1/base_models/tiny", &world.key).await.json()["owner"], "installation");
    assert_eq!(delete(installation.clone(), "").await.status, StatusCode::OK);
    assert_eq!(delete(installation, "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v1/base_models/tiny", &world.key).await.status, StatusCode::NOT_FOUND);

    // Jobs that were trained on it still show its name; no new job can use it, and the name is free.
    let jobs = world.get("/v1/fine_tuning/jobs", &world.key).await;
    assert!(jobs.status == StatusCode::OK && jobs.text.contains("\"tiny\""), "{}", jobs.text);
    let mut tx = db::platform(&world.pool).await.unwrap();
    assert!(testing::new_job(&mut tx, Seed { ..world.seed }).await.is_err(), "a job over a base that is gone");
    drop(tx);
    insert_base(&world, None, "tiny", 'c').await;
}
