//! The queue in the API: priorities, places, placements, and the shares of projects.

use attune_domain::{
    access::Scope,
    bytes::Bytes,
    id::JobId,
    job::{JobEvent, Priority},
    memory::{Margin, MemoryEstimate},
};
use attune_store::{
    db,
    jobs::{
        job::{self, JobError, Step},
        waiting::{self, Place},
    },
    runs::placement::{self, NotTaken, Placed, Predicted},
    testing,
};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::World;

async fn queued(world: &World) -> JobId {
    let mut tx = db::platform(&world.pool).await.unwrap();
    let id = testing::queued_job(&mut tx, world.seed).await.unwrap();
    tx.commit().await.unwrap();
    id
}

/// Returns the placement of a job.
async fn placement_of(world: &World, id: JobId) -> Value {
    let answer = world.get(&format!("/v1/fine_tuning/jobs/{id}/placement"), &world.key).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

#[sqlx::test(migrations = false)]
async fn a_job_has_the_priority_that_its_project_allows(pool: PgPool) {
    let world = World::new(pool).await;
    let plain = world.create_job(json!({})).await;
    assert_eq!(plain.status, StatusCode::OK, "{}", plain.text);
    let compute = json!({"max_price_usd": null, "priority": "normal", "preemptible": false, "max_usd_per_hour": null,
        "max_usd": null, "deadline": null, "spot": false, "regions": [], "device": "auto"});
    assert_eq!(plain.json()["compute"], compute);
    assert_eq!((&plain.json()["position"], &plain.json()["estimated_start"]), (&Value::Null, &Value::Null));
    let low = world.create_job(json!({"priority": "low", "preemptible": true})).await.json();
    assert_eq!((&low["compute"]["priority"], &low["compute"]["preemptible"]), (&json!("low"), &json!(true)));

    let high = world.create_job(json!({"priority": "high"})).await;
    assert_eq!(high.status, StatusCode::BAD_REQUEST, "{}", high.text);
    assert_eq!(high.json()["error"]["param"], "compute.priority");
    assert!(high.message().contains("max_priority, 'normal'"), "{}", high.message());
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    let queue = format!("/v1/organization/projects/{}/queue", world.seed.project_id);
    for (most, asked, status) in
        [("high", "high", StatusCode::OK), ("low", "normal", StatusCode::BAD_REQUEST), ("low", "low", StatusCode::OK)]
    {
        let set = world.call(Method::POST, &queue, &installation, Some(json!({"max_priority": most}))).await;
        assert_eq!(set.status, StatusCode::OK, "{}", set.text);
        let answer = world.create_job(json!({"priority": asked})).await;
        assert_eq!(answer.status, status, "{most} {asked}: {}", answer.text);
    }
    let lowered = world.create_job(json!({})).await.json();
    assert_eq!(lowered["compute"]["priority"], "low", "the default is not above the maximum");
}

#[sqlx::test(migrations = false)]
async fn the_share_of_a_project_is_set_by_the_installation_and_shown_to_its_organization(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    let path = |project: &dyn std::fmt::Display| format!("/v1/organization/projects/{project}/queue");
    let (own, theirs) = (path(&world.seed.project_id), path(&world.other.project));
    let default = world.get(&own, &world.key).await.json();
    let project_id = world.seed.project_id.to_string();
    let want = json!({"object": "organization.project.queue", "project_id": project_id, "weight": 1.0,
        "max_running_jobs": null, "max_node_hours": null, "max_stored_bytes": null, "max_replicas": null,
        "max_priority": "normal"});
    assert_eq!(default, want);

    let body = json!({"weight": 2.5, "max_running_jobs": 3});
    let refused = world.call(Method::POST, &own, &world.key, Some(body.clone())).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.text);
    // The installation sets the shares of other organizations' projects too.
    for (path, key) in [(&own, &world.key), (&theirs, &world.other.key)] {
        let set = world.call(Method::POST, path, &installation, Some(body.clone())).await;
        assert_eq!(set.status, StatusCode::OK, "{}", set.text);
        let shown = world.get(path, key).await.json();
        assert_eq!((&shown, &shown["weight"], &shown["max_running_jobs"]), (&set.json(), &json!(2.5), &json!(3)));
    }
    assert_eq!(world.get(&theirs, &world.key).await.status, StatusCode::NOT_FOUND);
    let wrong = world.call(Method::POST, &own, &installation, Some(json!({"weight": 0}))).await;
    assert_eq!((wrong.status, &wrong.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("weight")));
    let unknown = path(&format!("proj_{}", "0".repeat(32)));
    let unknown = world.call(Method::POST, &unknown, &installation, Some(body)).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{}", unknown.text);
    let noted = world.get("/v1/organization/audit_logs", &world.key).await.text;
    assert!(noted.contains("project.queue.created"), "{noted}");
}

#[sqlx::test(migrations = false)]
async fn a_placement_explains_the_wait_the_machine_and_the_failure(pool: PgPool) {
    let world = World::new(pool).await;
    let (first, second) = (queued(&world).await, queued(&world).await);
    let unplanned = placement_of(&world, first).await;
    assert_eq!(
        (&unplanned["status"], &unplanned["run"], &unplanned["error"]),
        (&json!("queued"), &Value::Null, &Value::Null)
    );
    assert_eq!((&unplanned["waiting"]["reason"], &unplanned["waiting"]["position"]), (&Value::Null, &Value::Null));

    let mut tx = db::platform(&world.pool).await.unwrap();
    testing::rank(&mut tx, second, Priority::Low, false).await.unwrap();
    let place = |job, position, reason: &str| Place {
        job,
        position,
        reason: reason.into(),
        estimated_start: Some(4_000_000_000.0),
    };
    let places = [place(first, 4, "3 jobs are ahead in the queue"), place(second, 5, "4 jobs are ahead in the queue")];
    waiting::store(&mut tx, &places).await.unwrap();
    tx.commit().await.unwrap();
    let mut want = json!({"reason": "4 jobs are ahead in the queue", "position": 5,
        "estimated_start": 4_000_000_000_i64, "jobs_ahead": 4, "own_jobs_ahead": 1, "own_jobs_running": 0,
        "max_running_jobs": null, "priority": "low"});
    want["quotas"] = world.get("/v1/organization/usage/quotas", &world.key).await.json();
    assert_eq!((&want["quotas"]["running_jobs"], &want["quotas"]["max_node_hours"]), (&json!(0), &Value::Null));
    assert_eq!(placement_of(&world, second).await["waiting"], want);
    let view = world.get(&format!("/v1/fine_tuning/jobs/{second}"), &world.key).await.json();
    assert_eq!((&view["position"], &view["estimated_start"]), (&json!(5), &json!(4_000_000_000_i64)));

    let mut tx = db::platform(&world.pool).await.unwrap();
    let run = testing::claimed_run(&mut tx, first).await.unwrap();
    let reason = "small has 1.0 MiB too little memory".to_owned();
    let placed = Placed {
        provider: "local".into(),
        offer: "this machine".into(),
        micro_usd_per_hour: 500_000,
        estimate: MemoryEstimate { terms: vec![("base".into(), Bytes(7))], peak: Bytes(7) },
        margin: Margin::measured(20),
        predicted: Some(Predicted { seconds: 7200.0, micro_usd: 1_000_000 }),
        others: vec![NotTaken {
            provider: "local".into(),
            offer: "small".into(),
            reason: reason.clone(),
            predicted: None,
        }],
    };
    placement::record(&mut tx, &[(run.run_id, placed)]).await.unwrap();
    let error = JobError { code: "insufficient_memory".into(), message: "It needs more".into(), param: None };
    job::step(&mut tx, second, &Step::failure(JobEvent::RunFailed, error)).await.unwrap();
    tx.commit().await.unwrap();
    let found = placement_of(&world, first).await;
    assert_eq!(found["waiting"], Value::Null);
    let (run, offer) = (&found["run"], &found["run"]["offer"]);
    let predicted = json!({"duration_seconds": 7200.0, "machine_usd": 1.0});
    assert_eq!(
        *offer,
        json!({"provider": "local", "name": "this machine", "usd_per_hour": 0.5, "predicted": predicted})
    );
    let memory = json!({"peak_bytes": 7, "needed_bytes": 8, "margin_percent": 20, "margin_source": "measured",
        "parts": {"base": 7}});
    assert_eq!(run["memory"], memory);
    assert_eq!(
        run["other_offers"],
        json!([{"provider": "local", "name": "small", "reason": reason, "predicted": null}])
    );
    assert_eq!((&run["attempt"], &run["ended_at"], &run["plan"]["threads"]), (&json!(1), &Value::Null, &json!(2)));
    let failed = placement_of(&world, second).await;
    assert_eq!((&failed["status"], &failed["waiting"]), (&json!("failed"), &Value::Null));
    assert_eq!(failed["error"]["code"], "insufficient_memory");
}

#[sqlx::test(migrations = false)]
async fn the_quotas_of_a_project_are_set_recorded_and_shown_with_their_use(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    let queue = format!("/v1/organization/projects/{}/queue", world.seed.project_id);
    let quotas = async || world.get("/v1/organization/usage/quotas", &world.key).await.json();
    let unlimited = quotas().await;
    assert_eq!((&unlimited["max_node_hours"], &unlimited["monthly_usd"]), (&Value::Null, &Value::Null));
    let used = unlimited["stored_bytes"].as_u64().unwrap();

    let body = json!({"max_running_jobs": 2, "max_node_hours": 0.5, "max_stored_bytes": used + 10});
    let set = world.call(Method::POST, &queue, &installation, Some(body)).await;
    assert_eq!(set.status, StatusCode::OK, "{}", set.text);
    let limited = quotas().await;
    let shown = ["max_running_jobs", "max_node_hours", "max_stored_bytes"].map(|name| limited[name].clone());
    assert_eq!(shown, [json!(2), json!(0.5), json!(used + 10)]);
    let storage = world.get("/v1/organization/usage/storage", &world.key).await.json();
    assert_eq!(storage["limit_bytes"], json!(used + 10));
    let theirs = world.get("/v1/organization/usage/quotas", &world.other.key).await.json();
    assert_eq!((&theirs["max_node_hours"], &theirs["max_running_jobs"]), (&Value::Null, &Value::Null));

    // The run holds its node for an hour: more than the project may use in a month.
    let id = queued(&world).await;
    let mut tx = db::platform(&world.pool).await.unwrap();
    testing::claimed_run(&mut tx, id).await.unwrap();
    testing::age_nodes(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let after = quotas().await;
    assert_eq!((&after["running_jobs"], after["node_hours"].as_f64().unwrap() > 0.0), (&json!(1), true), "{after}");
}

#[sqlx::test(migrations = false)]
async fn a_project_that_stores_too_much_creates_no_job(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    let queue = format!("/v1/organization/projects/{}/queue", world.seed.project_id);
    let storage = world.get("/v1/organization/usage/storage", &world.key).await.json();
    let used = storage["bytes"].as_u64().unwrap();
    assert!(used > 1, "the seed has a file");
    for (most, status) in [(used, StatusCode::OK), (used - 1, StatusCode::FORBIDDEN)] {
        let set = world.call(Method::POST, &queue, &installation, Some(json!({"max_stored_bytes": most}))).await;
        assert_eq!(set.status, StatusCode::OK, "{}", set.text);
        let created = world.create_job(json!({})).await;
        assert_eq!(created.status, status, "{}", created.text);
        if status == StatusCode::FORBIDDEN {
            assert_eq!(created.json()["error"]["code"], "storage_quota_exceeded");
            let message = created.message();
            assert!(message.contains(&format!("{most} bytes. It stores {used}, which exceeds it")), "{message}");
        }
    }
}
