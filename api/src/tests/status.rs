//! The status of an organization: its own jobs by name, those of others as counts, and the machines of all.

use attune_domain::{
    access::Scope,
    architecture::Architecture,
    bytes::Bytes,
    id::{JobId, ProjectId},
    offer::Offer,
    spec::Quantization,
};
use attune_store::{
    adapters::base_model::{self, NewBaseModel},
    jobs::waiting::{self, Place},
    replica::{self, ServedBase},
    runs::{
        offer,
        provider::{self, ProviderState},
        report,
    },
    status::MOST_LISTED,
    testing::{self, Seed, bulk},
};
use axum::http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::World;

const STATUS: &str = "/v1/organization/status";

async fn status(world: &World, key: &str) -> Value {
    let answer = world.get(STATUS, key).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

fn machine() -> Offer {
    let idle = Offer::cpu("local", "this machine", Bytes::mib(1000), 2);
    Offer { free_slots: 2, micro_usd_per_hour: 500_000, ..idle }
}

/// A waiting job of a second project of the first organization, and a running one of its first project.
struct Jobs {
    calm: ProjectId,
    waits: JobId,
    runs: JobId,
}

/// Creates both jobs, a machine for the running one, and a replica.
async fn jobs(world: &World) -> Jobs {
    let mut conn = world.pool.acquire().await.unwrap();
    let calm = testing::neighbor(&mut conn, world.seed, "calm").await.unwrap();
    let waits = testing::queued_job(&mut conn, calm).await.unwrap();
    let runs = testing::queued_job(&mut conn, world.seed).await.unwrap();
    let reason = "1 job is ahead in the queue".to_owned();
    let place = Place { job: waits, position: 2, reason, estimated_start: Some(4_000_000_000.0) };
    waiting::store(&mut conn, &[place]).await.unwrap();
    let run = testing::claimed_run(&mut conn, runs).await.unwrap();
    let events = [testing::started(), testing::stepped(1)];
    report::take(&mut conn, run.run_id, &testing::report(&run, 0, &events)).await.unwrap();
    let state = |name: &str, unreachable: Option<&str>| ProviderState {
        name: name.into(),
        unreachable: unreachable.map(str::to_owned),
    };
    provider::publish(&mut conn, &[state("local", Some("down")), state("gone", None)]).await.unwrap();
    let far = state("far", Some("provider far cannot be reached: refused"));
    provider::publish(&mut conn, &[state("local", None), far]).await.unwrap();
    offer::publish(&mut conn, "local", &[machine()]).await.unwrap();
    replica::ensure(&mut conn, ServedBase::as_imported(world.seed.base_model_id)).await.unwrap();
    Jobs { calm: calm.project_id, waits, runs }
}

#[sqlx::test(migrations = false)]
async fn a_status_shows_the_jobs_of_all_projects_of_the_organization_and_the_machines(pool: PgPool) {
    let world = World::new(pool).await;
    let empty = status(&world, &world.key).await;
    let none = json!({"data": [], "total": 0, "other_organizations": 0});
    assert_eq!((&empty["queue"], &empty["runs"], &empty["replicas"]), (&none, &none, &none));
    assert_eq!(empty["machines"], json!({"data": [], "total": 0}));

    let Jobs { calm, waits, runs } = jobs(&world).await;
    let found = status(&world, &world.key).await;
    assert_eq!(found["object"], "organization.status");
    let read_at = found["read_at"].as_i64().unwrap();
    let mut queued = found["queue"]["data"][0].clone();
    let queued_at = queued["queued_at"].take().as_i64().unwrap();
    assert!((0..60).contains(&(read_at - queued_at)), "{read_at} {queued_at}");
    let want = json!({"job_id": waits.to_string(), "project": {"id": calm.to_string(), "name": "calm"},
        "priority": "normal", "position": 2, "reason": "1 job is ahead in the queue",
        "estimated_start": 4_000_000_000_i64, "queued_at": null});
    assert_eq!((&queued, &found["queue"]["total"]), (&want, &json!(1)));

    let mut run = found["runs"]["data"][0].clone();
    let started_at = run["started_at"].take().as_i64().unwrap();
    assert!((0..60).contains(&(read_at - started_at)), "{read_at} {started_at}");
    let want = json!({"job_id": runs.to_string(),
        "project": {"id": world.seed.project_id.to_string(), "name": "default"}, "state": "running", "reason": null,
        "attempt": 1, "provider": "local", "machine": "this machine", "steps_done": 1, "total_steps": 75,
        "tokens_per_second": 2000.0, "predicted_peak_bytes": 400 << 20, "measured_peak_bytes": 380 << 20,
        "started_at": null});
    assert_eq!((&run, &found["runs"]["total"]), (&want, &json!(1)));

    let machine = json!({"provider": "local", "name": "this machine", "device": "cpu", "gpu": null, "spot": false,
        "region": null, "usd_per_hour": 0.5, "memory_bytes": 1000 << 20, "reserved_memory_bytes": 400 << 20,
        "free_memory_bytes": 600 << 20, "runs": 1, "free_slots": 1, "replicas": 0});
    assert_eq!(found["machines"], json!({"data": [machine], "total": 1}));
    let providers = json!([{"name": "far", "unreachable": "provider far cannot be reached: refused"},
        {"name": "local", "unreachable": null}]);
    assert_eq!(found["providers"], providers);
    let replica = &found["replicas"]["data"][0];
    assert_eq!((&replica["model"], &replica["quantization"]), (&json!("tiny"), &json!("none")));
    assert_eq!((&replica["state"], &replica["machine"]), (&json!("wanted"), &Value::Null));
    assert_eq!(found["replicas"]["total"], 1);
}

#[sqlx::test(migrations = false)]
async fn other_organizations_are_counts(pool: PgPool) {
    let world = World::new(pool).await;
    let Jobs { calm, waits, runs } = jobs(&world).await;
    bulk::queue(&world.pool, waits, &[world.other.project], 3).await.unwrap();
    let mut conn = world.pool.acquire().await.unwrap();
    let architecture = Architecture::from_config_json(testing::CONFIG.as_bytes()).unwrap();
    let files = [testing::blob("config.json", 'c')];
    let Seed { project_id, .. } = world.seed;
    let new = NewBaseModel { name: "mine", architecture: &architecture, files: &files, origin: None, license: None };
    let own = base_model::insert(&mut conn, Some(project_id), &new).await.unwrap();
    let base = ServedBase::shared(own.base_model_id, Quantization::Int8);
    replica::ensure(&mut conn, base).await.unwrap();
    drop(conn);

    let counts = |status: &Value| {
        ["queue", "runs", "replicas"].map(|list| {
            let shown = status[list]["data"].as_array().unwrap().len();
            let count = |name: &str| status[list][name].as_u64().unwrap();
            assert_eq!(shown as u64, count("total"), "{list}");
            (count("total"), count("other_organizations"))
        })
    };
    assert_eq!(counts(&status(&world, &world.key).await), [(1, 3), (1, 0), (2, 0)]);
    let theirs = status(&world, &world.other.key).await;
    assert_eq!(counts(&theirs), [(3, 1), (0, 1), (1, 1)]);
    assert_eq!((&theirs["machines"]["data"][0]["runs"], &theirs["machines"]["total"]), (&json!(1), &json!(1)));
    let text = theirs.to_string();
    for hidden in [calm.to_string(), waits.to_string(), runs.to_string(), project_id.to_string(), "mine".into()] {
        assert!(!text.contains(&hidden), "{hidden} {text}");
    }
    let queued = theirs["queue"]["data"].as_array().unwrap();
    let project = json!({"id": world.other.project.to_string(), "name": "default"});
    assert!(queued.iter().all(|job| job["project"] == project), "{text}");
}

#[sqlx::test(migrations = false)]
async fn a_status_is_for_administrators_and_takes_no_parameter(pool: PgPool) {
    let world = World::new(pool).await;
    let worker = world.key_with(&[Scope::All]).await;
    assert_eq!(world.get(STATUS, &worker).await.status, StatusCode::FORBIDDEN);
    let answer = world.get(&format!("{STATUS}?limit=1"), &world.key).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("limit")));
}

#[sqlx::test(migrations = false)]
async fn limit_a_status_lists_the_first_hundred_of_each_kind(pool: PgPool) {
    let world = World::new(pool).await;
    let Jobs { waits, .. } = jobs(&world).await;
    let copies = i32::try_from(MOST_LISTED).unwrap();
    bulk::queue(&world.pool, waits, &[world.seed.project_id], copies).await.unwrap();
    let mut conn = world.pool.acquire().await.unwrap();
    // The copies have the position of the original: the last one is behind all of them.
    let place = Place { job: waits, position: 900, reason: "899 jobs are ahead".into(), estimated_start: None };
    waiting::store(&mut conn, &[place]).await.unwrap();
    let named = |number: i64| Offer { name: format!("machine {number:03}"), ..machine() };
    let offers: Vec<Offer> = (0..=MOST_LISTED).map(named).collect();
    offer::publish(&mut conn, "local", &offers).await.unwrap();
    drop(conn);

    let found = status(&world, &world.key).await;
    for list in ["queue", "machines"] {
        let shown = found[list]["data"].as_array().unwrap().len();
        assert_eq!((shown, &found[list]["total"]), (copies.unsigned_abs() as usize, &json!(MOST_LISTED + 1)), "{list}");
    }
    assert!(!found["queue"].to_string().contains(&waits.to_string()), "the job behind the first hundred is listed");
}
