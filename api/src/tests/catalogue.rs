//! The catalogue in the API, and limits that choose a machine.

use attune_domain::{
    access::Scope,
    bytes::Bytes,
    offer::{Offer, OfferDevice},
};
use attune_store::{
    db,
    runs::{
        offer,
        provider::{self, ProviderState},
    },
};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::world::{Answer, World};

const CATALOGUE: &str = "/v1/organization/catalogue";

fn today() -> String {
    chrono::Utc::now().date_naive().to_string()
}

fn entry() -> Value {
    json!({"gpu": "NVIDIA-L4", "gpus": 1, "vcpus": 4, "memory_mib": 16384, "usd_per_hour": 0.9,
        "spot_usd_per_hour": 0.3, "source": "the contract", "fetched": today()})
}

async fn set(world: &World, key: &str, id: &str, body: Value) -> Answer {
    world.call(Method::POST, &format!("{CATALOGUE}/{id}"), key, Some(body)).await
}

#[sqlx::test(migrations = false)]
async fn the_installation_changes_the_catalogue_that_all_organizations_read(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    let ids = |catalogue: &Value| -> Vec<String> {
        let data = catalogue["data"].as_array().unwrap().iter();
        data.map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
    };
    let before = world.get(CATALOGUE, &world.key).await.json();
    let (known, new) = ("aws.g6.xlarge.us-east-1", "aws.g6.2xlarge.eu-west-1");
    assert!(ids(&before).contains(&known.to_owned()) && !ids(&before).contains(&new.to_owned()));
    assert!(before["gpus"].as_array().unwrap().iter().any(|gpu| gpu["product"] == "NVIDIA-L4"));

    let refused = set(&world, &world.key, new, entry()).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.text);
    for id in [known, new] {
        let answer = set(&world, &installation, id, entry()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let shown = world.get(&format!("{CATALOGUE}/{id}"), &world.other.key).await.json();
        assert_eq!((&shown, &shown["usd_per_hour"], &shown["stale"]), (&answer.json(), &json!(0.9), &json!(false)));
    }
    let removed = world.call(Method::DELETE, &format!("{CATALOGUE}/{known}"), &installation, None).await;
    assert_eq!(removed.status, StatusCode::OK, "{}", removed.text);
    let after = ids(&world.get(CATALOGUE, &world.key).await.json());
    assert!(after.contains(&new.to_owned()) && !after.contains(&known.to_owned()), "{after:?}");
    for method in [Method::GET, Method::DELETE] {
        let gone = world.call(method, &format!("{CATALOGUE}/{known}"), &installation, None).await;
        assert_eq!(gone.status, StatusCode::NOT_FOUND, "{}", gone.text);
    }
    assert_eq!(set(&world, &installation, known, entry()).await.status, StatusCode::OK);
    assert!(ids(&world.get(CATALOGUE, &world.key).await.json()).contains(&known.to_owned()));
    let noted = world.get("/v1/organization/audit_logs", &world.key).await.text;
    for event in ["catalogue_entry.created", "catalogue_entry.updated", "catalogue_entry.deleted"] {
        assert!(noted.contains(event), "{event} {noted}");
    }
}

#[sqlx::test(migrations = false)]
async fn an_implausible_entry_is_refused_by_its_field(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    for (field, value) in [
        ("gpu", json!("NVIDIA-K80")),
        ("gpus", json!(0)),
        ("memory_mib", json!(0)),
        ("usd_per_hour", json!(0)),
        ("usd_per_hour", json!(500)),
        ("spot_usd_per_hour", json!(1)),
        ("source", json!("")),
        ("fetched", json!("2020-01-01")),
        ("fetched", json!("yesterday")),
    ] {
        let mut body = entry();
        body[field] = value;
        let answer = set(&world, &installation, "aws.g6.xlarge.us-east-1", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{field} {}", answer.text);
        assert_eq!(answer.json()["error"]["param"], field, "{}", answer.text);
        assert!(answer.message().contains("is not allowed; it must be"), "{}", answer.message());
    }
    let unknown = set(&world, &installation, "ibm.a.b", entry()).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("entry_id")));
}

#[sqlx::test(migrations = false)]
async fn an_entry_that_was_changed_since_it_was_read_is_not_overwritten(pool: PgPool) {
    let world = World::new(pool).await;
    let installation = world.key_with(&[Scope::All, Scope::Admin, Scope::Installation]).await;
    let path = format!("{CATALOGUE}/aws.g6.xlarge.us-east-1");
    let bearer = format!("Bearer {installation}");
    let mut read = world.get(&path, &installation).await;
    // The first change is of an entry of the data file, the second of a row.
    for _ in 0..2 {
        let tag = read.header("etag").to_owned();
        let with = |tag: String| {
            let (world, path, bearer) = (&world, &path, &bearer);
            async move {
                let headers = [("authorization", bearer.as_str()), ("if-match", tag.as_str())];
                world.call_with(Method::POST, path, &headers, Some(entry())).await
            }
        };
        let changed = with(tag.clone()).await;
        assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
        let late = with(tag).await;
        assert_eq!(late.status, StatusCode::PRECONDITION_FAILED, "{}", late.text);
        read = world.get(&path, &installation).await;
    }
}

fn offer(name: &str, price: u64, device: OfferDevice) -> Offer {
    let (region, idle) = (Some("eu-west-1".into()), Offer::cpu("local", name, Bytes::mib(16_000), 2));
    Offer { micro_usd_per_hour: price, device, region, ..idle }
}

#[sqlx::test(migrations = false)]
async fn limits_that_no_offer_can_satisfy_are_refused_with_every_reason(pool: PgPool) {
    let world = World::new(pool).await;
    // Without any offer, the job waits for one.
    let early = world.create_job(json!({"device": "cuda"})).await;
    assert_eq!(early.status, StatusCode::OK, "{}", early.text);
    let mut tx = db::platform(&world.pool).await.unwrap();
    let gpu = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_487) };
    let offers = [offer("cpu node", 2_000_000, OfferDevice::Cpu), offer("gpu node", 3_000_000, gpu)];
    offer::publish(&mut tx, "local", &offers).await.unwrap();
    assert_eq!(offer::list(&mut tx).await.unwrap(), offers, "offers are read as they were published");
    tx.commit().await.unwrap();

    for (compute, reason) in [
        (json!({"device": "cuda"}), "cpu node has the device cpu, and compute.device is cuda"),
        (json!({"max_usd_per_hour": 1}), "cpu node costs 2.000000 USD per hour, above compute.max_usd_per_hour, 1"),
        (json!({"regions": ["us-east-1"]}), "cpu node is in the region eu-west-1, and compute.regions is us-east-1"),
    ] {
        let answer = world.create_job(compute).await;
        let error = &answer.json()["error"];
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        assert_eq!((&error["param"], &error["code"]), (&json!("compute"), &json!("no_offer")));
        assert!(answer.message().contains(reason), "{}", answer.message());
        assert!(answer.message().contains("gpu node: the device cuda is not in this build"), "{}", answer.message());
    }
    let allowed = json!({"max_usd_per_hour": 2, "regions": ["eu-west-1"], "device": "cpu", "spot": true});
    let answer = world.create_job(allowed).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let compute = &answer.json()["compute"];
    let shown = ["max_usd_per_hour", "regions", "device", "spot", "deadline"].map(|field| compute[field].clone());
    assert_eq!(shown, [json!(2.0), json!(["eu-west-1"]), json!("cpu"), json!(true), Value::Null]);
}

#[sqlx::test(migrations = false)]
async fn a_job_that_no_machine_can_run_is_refused_unless_another_one_may_come(pool: PgPool) {
    let world = World::new(pool).await;
    let gpu = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_487) };
    let spot = Offer { spot: true, ..offer("spot node", 1, OfferDevice::Cpu) };
    let small = Offer { memory: Bytes::mib(1), ..offer("small node", 1, OfferDevice::Cpu) };
    let offers = [offer("gpu node", 1, gpu), spot, small];
    let state =
        |unreachable: Option<&str>| ProviderState { name: "local".into(), unreachable: unreachable.map(str::to_owned) };
    let publish = async |offers: &[Offer], unreachable| {
        let mut tx = db::platform(&world.pool).await.unwrap();
        provider::publish(&mut tx, &[state(unreachable)]).await.unwrap();
        offer::publish(&mut tx, "local", offers).await.unwrap();
        tx.commit().await.unwrap();
    };
    publish(&offers, None).await;
    let refused = world.create_job(json!({})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
    assert_eq!(refused.json()["error"]["code"], "no_offer");
    for reason in [
        "gpu node: the device cuda is not in this build",
        "spot node is a spot machine, and compute.spot is false",
        "small node has ",
    ] {
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    publish(&offers, Some("refused")).await;
    let waits = world.create_job(json!({})).await;
    assert_eq!(waits.status, StatusCode::OK, "the provider may have another machine: {}", waits.text);

    // A run takes 10 seconds outside of its steps, as far as is known before the first one.
    publish(&[offer("dear node", 3_600_000_000, OfferDevice::Cpu)], None).await;
    let dear = world.create_job(json!({"max_usd": 9.9})).await;
    assert_eq!(dear.status, StatusCode::BAD_REQUEST, "{}", dear.text);
    assert!(dear.message().contains("the job would cost about 10.000000 USD"), "{}", dear.message());
    let allowed = world.create_job(json!({"max_usd": 11})).await;
    assert_eq!(allowed.status, StatusCode::OK, "{}", allowed.text);
    let soon = chrono::Utc::now().timestamp() + 3;
    let late = world.create_job(json!({"deadline": soon})).await;
    assert_eq!(late.status, StatusCode::BAD_REQUEST, "{}", late.text);
    assert_eq!(late.json()["error"]["code"], "no_offer");
}
