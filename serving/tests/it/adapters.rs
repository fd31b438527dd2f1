//! Residency: adapters are loaded once, pinned while leased, and evicted in least-recently-used order.

use std::time::Duration;

use attune_domain::{bytes::Bytes, digest::Sha256};
use attune_serving::error::Failure;
use tokio::time::timeout;

use crate::world::{World, adapter_bytes};

const SOON: Duration = Duration::from_millis(300);

#[tokio::test]
async fn callers_of_the_same_adapter_load_it_once() {
    let world = World::new().await;
    let (one, adapters) = (world.adapter(1, None).await, world.adapters(Bytes::mib(64)));
    let (a, b, c) = tokio::join!(adapters.lease(&one), adapters.lease(&one), adapters.lease(&one));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(world.served(), one.files.len());
    assert_eq!(adapters.resident(), [one.id]);
}

#[tokio::test]
async fn a_leased_adapter_stays_and_another_waits_for_its_memory() {
    let world = World::new().await;
    let (one, two) = (world.adapter(1, None).await, world.adapter(2, None).await);
    let adapters = world.adapters(adapter_bytes(&world));
    let lease = adapters.lease(&one).await.unwrap();
    let mut waiting = std::pin::pin!(adapters.lease(&two));
    assert!(timeout(SOON, waiting.as_mut()).await.is_err());
    assert_eq!(adapters.resident(), [one.id]);
    drop(lease);
    let lease = timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert_eq!(adapters.resident(), [two.id]);
    drop(lease);
}

#[tokio::test]
async fn the_longest_unused_goes_first_and_comes_back_from_disk() {
    let world = World::new().await;
    let (one, two, three) = (world.adapter(1, None).await, world.adapter(2, None).await, world.adapter(3, None).await);
    let adapters = world.adapters(Bytes(adapter_bytes(&world).0 * 2));
    for wanted in [&one, &two, &one, &three] {
        drop(adapters.lease(wanted).await.unwrap());
    }
    assert_eq!(adapters.resident(), [one.id, three.id]);
    let served = world.served();
    drop(adapters.lease(&two).await.unwrap());
    assert_eq!(world.served(), served);
    assert_eq!(adapters.resident(), [two.id, three.id]);
}

#[tokio::test]
async fn an_adapter_that_cannot_be_had_is_an_error_and_can_be_tried_again() {
    let world = World::new().await;
    let (good, adapters) = (world.adapter(1, None).await, world.adapters(Bytes::mib(64)));
    let mut wrong = good.clone();
    wrong.files[0].sha256 = Sha256::from_digest([0; 32]);
    let refused = adapters.lease(&wrong).await.unwrap_err();
    assert!(matches!(refused, Failure::Adapter { .. }), "{refused}");
    assert!(adapters.resident().is_empty());
    assert!(adapters.lease(&good).await.is_ok());
}

#[tokio::test]
async fn an_adapter_larger_than_all_memory_is_refused_with_both_sizes() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes(100));
    let refused = adapters.lease(&world.adapter(1, None).await).await.unwrap_err().to_string();
    assert!(refused.contains("the limit for all adapters is 100 B"), "{refused}");
}

#[tokio::test]
async fn a_caller_that_goes_while_it_waits_leaves_no_trace() {
    let world = World::new().await;
    let (one, two) = (world.adapter(1, None).await, world.adapter(2, None).await);
    let adapters = world.adapters(adapter_bytes(&world));
    let lease = adapters.lease(&one).await.unwrap();
    assert!(timeout(SOON, adapters.lease(&two)).await.is_err());
    drop(lease);
    assert!(adapters.lease(&two).await.is_ok());
}
