//! Every operation of the document, called with another tenant's IDs, by each role, without a key, and by a key without
//! the scope. An operation without a case fails the test.

use std::collections::BTreeMap;

use attune_domain::access::{Role, Scope};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use strum::VariantArray;

use super::world::{Answer, World, trained};
use crate::{
    auth::permissions::{Level, Permission, Rule},
    policy::{self, Policies},
    router, routes,
};

/// One operation, ready to be called.
struct Step {
    method: Method,
    /// The path's pattern: `/v1/files/{file_id}`.
    path: String,
    operation: &'static str,
    permission: Permission,
}

/// Returns all operations of the document that require authentication.
fn steps() -> Vec<Step> {
    let document = router::document();
    let policies = Policies::of(&document, routes::POLICIES);
    let mut steps = Vec::new();
    for (path, item) in &document.paths.paths {
        for (method, id) in policy::operations(item) {
            let Some(policy) = policies.find(&method, path) else { panic!("{id} has no policy") };
            if let Rule::Asks(permission) = policy.rule {
                steps.push(Step { method, path: path.clone(), operation: policy.operation, permission });
            }
        }
    }
    assert!(steps.len() >= 20, "{}", steps.len());
    steps
}

/// The value of a path's parameter.
#[derive(Clone)]
enum Place {
    /// The ID of a row of the first tenant, and an unknown ID of the same kind.
    Tenants { there: String, unknown: String },
    /// A value that is the same for all tenants: a base model's name, a digest, a number.
    Shared(&'static str),
}

/// Returns the parameters' values, by name. A parameter that is missing here has no case.
async fn places(world: &World) -> BTreeMap<&'static str, Place> {
    let (job, adapter, model) = trained(world).await;
    let keys = format!("/v1/organization/projects/{}/api_keys", world.seed.project_id);
    let key = world.get(&keys, &world.key).await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    world.person("walker", Role::Member).await;
    let user =
        world.get("/v1/organization/users", &world.key).await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    let kept = world.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints"), &world.key).await.json();
    let checkpoint = kept["data"][0]["fine_tuned_model_checkpoint"].as_str();
    let checkpoint = checkpoint.map_or_else(|| format!("{model}:ckpt-step-10"), str::to_owned);
    let upload = body("create_upload", &BTreeMap::new(), true);
    let upload =
        world.call(Method::POST, "/v1/uploads", &world.key, upload).await.json()["id"].as_str().unwrap().to_owned();
    let hook = body("create_webhook_endpoint", &BTreeMap::new(), true);
    let hook = world.call(Method::POST, "/v1/webhook_endpoints", &world.key, hook).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let deployment = body("create_deployment", &BTreeMap::new(), true);
    let deployment = world.call(Method::POST, "/v1/deployments", &world.key, deployment).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let tenants =
        |there: String, prefix: &str| Place::Tenants { there, unknown: format!("{prefix}{}", "0".repeat(32)) };
    BTreeMap::from([
        ("file_id", tenants(world.seed.file_id.to_string(), "file-")),
        ("upload_id", tenants(upload, "upload_")),
        ("job_id", tenants(job, "ftjob-")),
        ("adapter", tenants(adapter, "adapter_")),
        ("model", Place::Tenants { there: model, unknown: "ft:tiny:default:nobody:x".into() }),
        ("project_id", tenants(world.seed.project_id.to_string(), "proj_")),
        ("key_id", tenants(key, "key_")),
        ("user_id", tenants(user, "user-")),
        ("checkpoint", Place::Tenants { there: checkpoint, unknown: "ft:tiny:default:nobody:x:ckpt-step-10".into() }),
        ("permission_id", Place::Shared("cp_00000000000000000000000000000001")),
        // A batch needs a file in the object store, which these tests do not have: they cover its roles and scopes, not
        // rows.
        ("batch_id", Place::Shared("batch_00000000000000000000000000000001")),
        // As for batches: an export needs the adapter's files.
        ("export_id", Place::Shared("export_00000000000000000000000000000001")),
        ("alias", Place::Shared("prod")),
        ("entry_id", Place::Shared("aws.g6.xlarge.us-east-1")),
        ("webhook_endpoint_id", tenants(hook, "we_")),
        ("deployment_id", tenants(deployment, "deploy_")),
        // No delivery exists; the endpoint in its path is the one that belongs to another tenant.
        ("delivery_id", Place::Shared("wd_00000000000000000000000000000001")),
        ("name", Place::Shared("walked")),
        ("sha256", Place::Shared("0000000000000000000000000000000000000000000000000000000000000000")),
        ("file", Place::Shared("adapter_config.json")),
    ])
}

/// Returns a body with which the operation gets as far as its IDs.
fn body(operation: &str, places: &BTreeMap<&str, Place>, foreign: bool) -> Option<Value> {
    let id = |name: &str| match &places[name] {
        Place::Tenants { there, unknown } => {
            if foreign {
                there.clone()
            } else {
                unknown.clone()
            }
        }
        Place::Shared(text) => (*text).to_owned(),
    };
    Some(match operation {
        "create_job" => json!({"model": "tiny", "training_file": id("file_id")}),
        "create_chat_completion" => json!({"model": id("model"), "messages": [{"role": "user", "content": "a"}]}),
        "estimate_job" => json!({"model": "tiny", "training_file": id("file_id")}),
        "update_job" => json!({"compute": {"max_price_usd": 1}}),
        "set_budget" => json!({"monthly_usd": null}),
        "create_checkpoint_permissions" => json!({"project_ids": [id("project_id")]}),
        "create_upload" => json!({"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}),
        "complete_upload" => json!({"part_ids": ["part_00000000000000000000000000000001"]}),
        "create_batch" => {
            json!({"input_file_id": id("file_id"), "endpoint": "/v1/chat/completions", "completion_window": "24h"})
        }
        "create_export" => json!({"format": "merged"}),
        "set_adapter_alias" => json!({"version": "1"}),
        "start_adapter_canary" | "start_adapter_shadow" => json!({"version": "1", "percent": 10}),
        "prefetch_adapter" => json!({"seconds": 60}),
        "create_webhook_endpoint" => json!({"url": "https://hooks.example/attune"}),
        "update_webhook_endpoint" => json!({"description": "walked"}),
        "create_deployment" => json!({"model": "tiny"}),
        "update_deployment" => json!({"name": "walked"}),
        "rotate_webhook_secret" => json!({}),
        "create_completion" => json!({"model": id("model"), "prompt": "a"}),
        "create_response" => json!({"model": id("model"), "input": "a"}),
        "lorax" | "lorax_generate" | "lorax_generate_stream" => json!({"inputs": "a"}),
        "preview_file" => json!({"model": "tiny"}),
        "create_base_model" => json!({"name": "walked", "files": []}),
        "create_project" => json!({"name": "Not A Name"}),
        "modify_project" => json!({"name": "walked"}),
        "create_project_api_key" => json!({"name": "walked"}),
        "create_project_user" => json!({"user_id": id("user_id"), "role": "viewer"}),
        "modify_project_user" | "modify_user" => json!({"role": "viewer"}),
        "create_organization" => json!({"name": ""}),
        "set_project_queue" => json!({"weight": 2}),
        "set_catalogue_entry" => json!({"gpu": "NVIDIA-L4", "gpus": 1, "vcpus": 4, "memory_mib": 16384,
            "usd_per_hour": 0.8, "source": "walked", "fetched": chrono::Utc::now().date_naive().to_string()}),
        "create_user" => json!({"issuer": "https://nobody", "subject": "x", "role": "viewer"}),
        _ => return None,
    })
}

/// The operations whose body is not a JSON object: they refuse the request after authorization, which suffices here.
const OTHER_BODIES: [&str; 4] = ["create_file", "put_blob", "create_upload_part", "import_adapter"];

/// Returns the path with its parameters filled in, and whether it names a row of a tenant.
fn filled(path: &str, places: &BTreeMap<&str, Place>, foreign: bool) -> (String, bool) {
    let mut names_a_tenants_row = false;
    let parts = path.split('/').map(|part| {
        let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) else { return part.to_owned() };
        match places.get(name) {
            Some(Place::Tenants { there, unknown }) => {
                names_a_tenants_row = true;
                if foreign { there.clone() } else { unknown.clone() }
            }
            Some(Place::Shared(text)) => (*text).to_owned(),
            None => panic!("{path}: the walk has no case for the parameter '{name}'"),
        }
    });
    (parts.collect::<Vec<_>>().join("/"), names_a_tenants_row)
}

async fn call(world: &World, step: &Step, places: &BTreeMap<&str, Place>, foreign: bool, bearer: &str) -> Answer {
    let (path, _) = filled(&step.path, places, foreign);
    let body = body(step.operation, places, foreign);
    world.call(step.method.clone(), &path, bearer, body).await
}

/// Every body of the document has a case, so that a refusal is caused by the IDs and not by the body.
#[test]
fn every_operation_with_a_body_has_a_case() {
    let document = router::document();
    let text = |name: &str| (name.to_owned(), Place::Shared("x"));
    let places: Vec<(String, Place)> = ["file_id", "model", "user_id", "job_id", "project_id"].map(text).into();
    let places: BTreeMap<&str, Place> = places.iter().map(|(name, place)| (name.as_str(), place.clone())).collect();
    for item in document.paths.paths.values() {
        for operation in [&item.post, &item.put, &item.patch].into_iter().flatten() {
            let id = operation.operation_id.as_deref().unwrap();
            let has_case = body(id, &places, true).is_some() || OTHER_BODIES.contains(&id);
            assert!(operation.request_body.is_none() || has_case, "the walk has no body for {id}");
        }
    }
}

#[sqlx::test(migrations = false)]
async fn another_tenants_id_is_answered_as_an_unknown_one(pool: PgPool) {
    let world = World::new(pool).await;
    let places = places(&world).await;
    let mut compared = 0;
    for step in steps() {
        let names_a_row = filled(&step.path, &places, true).1;
        let operation = step.operation;
        let same_body = body(operation, &places, true) == body(operation, &places, false);
        if !names_a_row && same_body {
            continue;
        }
        let foreign = call(&world, &step, &places, true, &world.other.key).await;
        let unknown = call(&world, &step, &places, false, &world.other.key).await;
        let what = format!("{} {} ({operation})", step.method, step.path);
        // A form is read before the object in its path is looked up, and only a key of the installation sets what
        // concerns projects of all organizations.
        let is_installation = step.permission.level == Level::Installation;
        if names_a_row && !OTHER_BODIES.contains(&operation) && !is_installation {
            assert_eq!(foreign.status, StatusCode::NOT_FOUND, "{what}: {}", foreign.text);
        }
        assert!(foreign.status.is_client_error(), "{what}: {} {}", foreign.status, foreign.text);
        assert_eq!(foreign.status, unknown.status, "{what}: {} / {}", foreign.text, unknown.text);
        assert_eq!(nameless(&foreign, &places), nameless(&unknown, &places), "{what}");
        compared += 1;
    }
    println!("{}", json!({"figure": "foreign_ids_compared", "value": compared, "bar": 15}));
    assert!(compared >= 15, "{compared}");
}

/// The router refuses such a path before it checks the caller, so none reaches a query.
#[sqlx::test(migrations = false)]
async fn a_path_with_the_character_that_postgres_cannot_keep_is_unknown_to_every_operation(pool: PgPool) {
    let world = World::new(pool).await;
    let mut refused = 0;
    for step in steps().iter().filter(|step| step.path.contains('{')) {
        let parts = step.path.split('/').map(|part| if part.starts_with('{') { "a%00b" } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        for headers in [vec![], vec![("authorization", format!("Bearer {}", world.key))]] {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = world.call_with(step.method.clone(), &path, &headers, None).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{} {path}: {}", step.method, answer.text);
            if step.method != Method::HEAD {
                assert_eq!(answer.json()["error"]["code"], "unknown_url", "{} {path}: {}", step.method, answer.text);
            }
            refused += 1;
        }
    }
    assert!(refused >= 40, "{refused}");
}

/// Returns the response's text without the requested IDs, which it repeats.
fn nameless(answer: &Answer, places: &BTreeMap<&str, Place>) -> String {
    let ids = places.values().filter_map(|place| match place {
        Place::Tenants { there, unknown } => Some([there, unknown]),
        Place::Shared(_) => None,
    });
    ids.flatten().fold(answer.text.clone(), |text, id| text.replace(id.as_str(), "…"))
}

#[sqlx::test(migrations = false)]
async fn no_list_shows_another_tenants_rows(pool: PgPool) {
    let world = World::new(pool).await;
    let places = places(&world).await;
    for step in steps().iter().filter(|step| step.method == Method::GET && !step.path.contains('{')) {
        let answer = world.get(&step.path, &world.other.key).await;
        if answer.status != StatusCode::OK {
            assert!(answer.status.is_client_error(), "{}: {}", step.path, answer.text);
            continue;
        }
        for (name, place) in &places {
            if let Place::Tenants { there, .. } = place {
                assert!(!answer.text.contains(there.as_str()), "{} shows the {name} of another tenant", step.path);
            }
        }
    }
}

#[sqlx::test(migrations = false)]
async fn each_role_may_do_what_its_line_says_and_no_more(pool: PgPool) {
    let world = World::new(pool).await;
    let places = places(&world).await;
    for &role in Role::VARIANTS {
        let token = world.person(role.name(), role).await;
        for step in steps() {
            // Unknown IDs: a permitted operation finds nothing, and changes nothing.
            let answer = call(&world, &step, &places, false, &token).await;
            let what = format!("{} {} as {role}: {}", step.method, step.path, answer.text);
            if step.permission.level == Level::Installation {
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{what}");
                assert!(step.method == Method::HEAD || answer.message().contains("scope installation"), "{what}");
            } else if role >= step.permission.role {
                let shut = [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&answer.status);
                assert!(!shut, "{what}");
            } else {
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{what}");
                if step.method != Method::HEAD {
                    assert!(answer.message().contains(step.permission.role.name()), "the role is not named: {what}");
                }
            }
        }
    }
}

#[sqlx::test(migrations = false)]
async fn no_key_and_a_key_without_the_scope_are_turned_away(pool: PgPool) {
    let world = World::new(pool).await;
    let places = places(&world).await;
    let mut narrow = BTreeMap::new();
    for &wanted in Scope::VARIANTS {
        let others: Vec<Scope> = Scope::VARIANTS.iter().copied().filter(|scope| !scope.covers(wanted)).collect();
        narrow.insert(wanted, (world.key_with(&others).await, world.key_with(&[wanted]).await));
    }
    for step in steps() {
        let what = format!("{} {}", step.method, step.path);
        let (path, _) = filled(&step.path, &places, true);
        let nobody = world.call_with(step.method.clone(), &path, &[], None).await;
        assert_eq!(nobody.status, StatusCode::UNAUTHORIZED, "{what}: {}", nobody.text);

        let wanted = step.permission.scope;
        let (without, with) = &narrow[&wanted];
        let refused = call(&world, &step, &places, true, without).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{what}: {}", refused.text);
        if step.method != Method::HEAD {
            assert!(refused.message().contains(wanted.name()), "the scope is not named: {}", refused.text);
        }
        let answer = call(&world, &step, &places, false, with).await;
        let shut = [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&answer.status);
        assert!(!shut, "{what} with {wanted}: {}", answer.text);
    }
    assert!(steps().iter().any(|step| step.permission.level == Level::Organization));
}
