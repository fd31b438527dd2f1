//! The tiers of adapters: budgets of memory and disk, pins, deleted adapters, and loads that fail.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    run::RemoteFile,
    serve::{AdapterRef, AdapterTier, DEFAULT_DISK_CACHE, Priority},
};
use attune_node::NodeError;
use attune_serving::{
    adapters::Adapters, decoding::engine::EngineHandle, error::Failure, residency::load_error::LoadError,
};
use tokio::time::timeout;

use crate::world::{Ask, World, adapter_bytes, tokens};

const SOON: Duration = Duration::from_secs(20);

/// Returns the size of an adapter's files.
fn file_bytes(adapter: &AdapterRef) -> Bytes {
    adapter.files.iter().map(|file| file.bytes).sum()
}

/// Returns greedy answers, each with its own adapter, eight requests at a time.
async fn answers(engine: &EngineHandle, adapters: &Adapters, wanted: &[AdapterRef]) -> Vec<Vec<u32>> {
    let mut answers = Vec::new();
    for group in wanted.chunks(8) {
        let mut running = Vec::new();
        for adapter in group {
            let ask = Ask { adapter: Some(adapter.clone()), ..Ask::greedy(1, 12, 6) };
            running.push(ask.submit(engine, adapters).await);
        }
        for events in running {
            answers.push(tokens(events).await);
        }
    }
    answers
}

#[tokio::test]
async fn eviction_and_reload_change_no_answer_of_64_adapters() {
    let world = World::new().await;
    let mut all = Vec::new();
    for number in 1..=64 {
        all.push(world.adapter(number, None).await);
    }
    let engine = world.engine(8, 16384);
    let roomy = world.adapters(Bytes::mib(64));
    let first = answers(&engine, &roomy, &all).await;
    assert_eq!(roomy.resident().len(), 64, "nothing was evicted");
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert!(distinct.len() > 32, "{} different answers", distinct.len());
    roomy.forget(&roomy.resident());
    assert!(roomy.on_disk().unwrap().is_empty());

    // Memory for four adapters, and disk for ten.
    let disk = Bytes(file_bytes(&all[0]).0 * 10);
    let tight = world.adapters_within(Bytes(adapter_bytes(&world).0 * 4), disk);
    let before = world.served();
    let mut back = all.clone();
    back.reverse();
    assert_eq!(answers(&engine, &tight, &all).await, first);
    let mut again = answers(&engine, &tight, &back).await;
    again.reverse();
    assert_eq!(again, first);
    assert!(tight.resident().len() <= 4);
    assert_eq!(tight.on_disk().unwrap().len(), 10);
    let loads = (world.served() - before) / all[0].files.len();
    // Of the second pass, the ten adapters on disk were not fetched again.
    assert_eq!(loads, 64 + 54);
}

#[tokio::test]
async fn pinned_adapters_are_evicted_last_and_a_prefetch_evicts_none_of_them() {
    let world = World::new().await;
    let (one, two, three) = (world.adapter(1, None).await, world.adapter(2, None).await, world.adapter(3, None).await);
    let adapters = world.adapters(Bytes(adapter_bytes(&world).0 * 2));
    adapters.pin(&[one.id, two.id]);
    adapters.prefetch(&one).await;
    adapters.prefetch(&two).await;
    assert_eq!(adapters.resident(), [one.id, two.id]);
    let served = world.served();
    adapters.prefetch(&one).await;
    assert_eq!(world.served(), served, "it is in memory already");
    // A prefetch evicts no pinned adapter and does not wait. A request does evict one: the least recently used.
    timeout(SOON, adapters.prefetch(&three)).await.unwrap();
    assert_eq!(adapters.resident(), [one.id, two.id]);
    drop(adapters.lease(&three, "p", Priority::Live).await.unwrap());
    assert_eq!(adapters.resident(), [two.id, three.id]);
    // The other adapter yields first, although it was used last.
    adapters.prefetch(&one).await;
    assert_eq!(adapters.resident(), [one.id, two.id]);
}

#[tokio::test]
async fn limit_of_the_wait_for_memory_of_an_adapter() {
    let world = World::new().await;
    let (one, two) = (world.adapter(1, None).await, world.adapter(2, None).await);
    let memory = (adapter_bytes(&world), DEFAULT_DISK_CACHE);
    let adapters = world.adapters_that_wait(memory, Duration::from_millis(50));
    let lease = adapters.lease(&one, "p", Priority::Live).await.unwrap();
    match timeout(SOON, adapters.lease(&two, "p", Priority::Live)).await.unwrap() {
        Err(failure) => assert_eq!(failure.code(), "replica_busy", "{failure}"),
        Ok(lease) => panic!("{lease:?}"),
    }
    drop(lease);
    adapters.lease(&two, "p", Priority::Live).await.unwrap();
    assert_eq!(adapters.resident(), [two.id]);
}

/// A project that requests many adapters waits with one of them at a time.
#[tokio::test]
async fn a_flood_of_adapters_of_one_project_delays_another_by_few_loads() {
    let world = World::new().await;
    let adapters = Arc::new(world.adapters(adapter_bytes(&world)));
    let held = adapters.lease(&world.adapter(1, None).await, "a", Priority::Live).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for (number, project) in [(2, "a"), (3, "a"), (4, "a"), (5, "a"), (6, "a"), (7, "a"), (8, "b")] {
        let (adapters, order, wanted) = (adapters.clone(), order.clone(), world.adapter(number, None).await);
        waiting.push(tokio::spawn(async move {
            let _lease = adapters.lease(&wanted, project, Priority::Live).await.unwrap();
            order.lock().unwrap().push(project);
        }));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(order.lock().unwrap().is_empty(), "the memory is held");
    drop(held);
    for one in waiting {
        timeout(SOON, one).await.unwrap().unwrap();
    }
    let order = order.lock().unwrap();
    assert!(order[..3].contains(&"b"), "{order:?}");
}

#[tokio::test]
async fn a_deleted_adapter_leaves_memory_and_disk_unless_it_is_in_use() {
    let world = World::new().await;
    let (one, two) = (world.adapter(1, None).await, world.adapter(2, None).await);
    let adapters = world.adapters(Bytes::mib(64));
    let lease = adapters.lease(&one, "p", Priority::Live).await.unwrap();
    drop(adapters.lease(&two, "p", Priority::Live).await.unwrap());
    assert!(adapters.disk_changed());
    let mut on_disk: Vec<_> = adapters.on_disk().unwrap().into_iter().map(|adapter| adapter.id).collect();
    on_disk.sort();
    assert_eq!((on_disk, adapters.disk_changed()), (vec![one.id, two.id], false));
    adapters.forget(&[one.id, two.id]);
    assert_eq!(adapters.resident(), [one.id], "a request uses it");
    assert_eq!((adapters.on_disk().unwrap(), adapters.disk_changed()), (vec![], false));
    drop(lease);
    adapters.forget(&[one.id]);
    assert!(adapters.resident().is_empty());
}

#[tokio::test]
async fn the_state_of_an_adapter_counts_requests_and_names_where_it_was() {
    let world = World::new().await;
    let one = world.adapter(1, None).await;
    let adapters = world.adapters(Bytes::mib(64));
    let (first, second) = (
        adapters.lease(&one, "p", Priority::Live).await.unwrap(),
        adapters.lease(&one, "p", Priority::Live).await.unwrap(),
    );
    let copy = first.clone();
    let state = adapters.states().pop().unwrap();
    assert_eq!((state.id, state.bytes, state.loaded_from), (one.id, adapter_bytes(&world), AdapterTier::Store));
    assert_eq!(state.requests, 2, "clones of a lease are one request");
    drop((first, second));
    assert_eq!(adapters.states()[0].requests, 1);
    drop(copy);
    assert_eq!(adapters.states()[0].requests, 0);
    let again = world.adapters(Bytes::mib(64));
    drop(again.lease(&one, "p", Priority::Live).await.unwrap());
    assert_eq!(again.states()[0].loaded_from, AdapterTier::Disk);
}

/// Returns the reason why an adapter cannot be loaded.
async fn refused(adapters: &Adapters, wanted: &AdapterRef) -> LoadError {
    match timeout(SOON, adapters.lease(wanted, "p", Priority::Live)).await.unwrap() {
        Err(Failure::Adapter { why, .. }) => *why,
        other => panic!("{other:?}"),
    }
}

/// Returns the adapter's file of factors.
fn factors(adapter: &mut AdapterRef) -> &mut RemoteFile {
    adapter.files.iter_mut().find(|file| file.name == "adapter_model.safetensors").unwrap()
}

#[tokio::test]
async fn a_load_that_fails_is_an_error_of_its_own_and_others_continue() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes::mib(64));
    let good = world.adapter(1, None).await;

    let mut missing = world.adapter(2, None).await;
    factors(&mut missing).url += ".gone";
    let why = refused(&adapters, &missing).await;
    assert!(matches!(why, LoadError::Fetch(NodeError::Refused { status: 404, .. })), "{why}");
    assert_eq!(why.reason(), "missing");

    let mut changed = world.adapter(3, None).await;
    factors(&mut changed).sha256 = Sha256::from_digest([0; 32]);
    let why = refused(&adapters, &changed).await;
    assert!(matches!(why, LoadError::Fetch(NodeError::Changed { .. })), "{why}");
    assert_eq!(why.reason(), "changed");

    // Content that has its digest and is no adapter.
    let corrupt = world.adapter(4, None).await;
    let folder = world.path(&corrupt.id.to_string());
    std::fs::write(folder.join("adapter_model.safetensors"), b"no tensors").unwrap();
    let corrupt = AdapterRef { files: world.remote(&folder).await, ..corrupt };
    adapters.prefetch(&corrupt).await;
    let served = world.served();
    adapters.prefetch(&corrupt).await;
    assert_eq!(world.served(), served, "a prefetch that failed makes a pause");
    for _ in 0..2 {
        let why = refused(&adapters, &corrupt).await;
        assert!(matches!(why, LoadError::Content(_)), "{why}");
        assert_eq!(why.reason(), "content");
    }

    assert!(adapters.lease(&good, "p", Priority::Live).await.is_ok());
    assert_eq!(adapters.resident(), [good.id]);
}

#[tokio::test]
async fn files_that_the_disk_has_damaged_are_fetched_again() {
    let world = World::new().await;
    let one = world.adapter(1, None).await;
    drop(world.adapters(Bytes::mib(64)).lease(&one, "p", Priority::Live).await.unwrap());
    let cached = world.path("cache").join("adapter").join(one.id.to_string()).join("adapter_model.safetensors");
    let length = std::fs::metadata(&cached).unwrap().len();
    std::fs::write(&cached, vec![0xff; usize::try_from(length).unwrap()]).unwrap();
    let served = world.served();
    let adapters = world.adapters(Bytes::mib(64));
    drop(adapters.lease(&one, "p", Priority::Live).await.unwrap());
    assert_eq!(world.served(), served + one.files.len());
    assert_eq!(adapters.states()[0].loaded_from, AdapterTier::Store);
}

#[tokio::test]
async fn a_store_that_does_not_answer_delays_only_the_adapter_that_it_has() {
    let world = World::new().await;
    let (mut slow, good) = (world.adapter(1, None).await, world.adapter(2, None).await);
    // A listener that accepts connections in the kernel and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    factors(&mut slow).url = format!("http://{}/slow", listener.local_addr().unwrap());
    // Memory for one adapter: the slow one holds none while it is fetched.
    let adapters = world.adapters(adapter_bytes(&world));
    let mut waiting = std::pin::pin!(adapters.lease(&slow, "p", Priority::Live));
    assert!(timeout(Duration::from_millis(300), waiting.as_mut()).await.is_err());
    timeout(SOON, adapters.lease(&good, "p", Priority::Live)).await.unwrap().unwrap();
    assert!(timeout(Duration::from_millis(50), waiting).await.is_err());
}
