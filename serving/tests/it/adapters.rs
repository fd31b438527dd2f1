//! Residency: adapters are loaded once, pinned while leased, and evicted in least-recently-used order.

use std::time::Duration;

use attune_domain::{
    bytes::Bytes,
    digest::Sha256,
    serve::{
        AdapterKey, AdapterMerge, AdapterPart, AdapterRef, AdapterTier, MajoritySign, MergeRule, MergeStrategy,
        Priority,
    },
};
use attune_serving::{adapters::Lease, error::Failure};
use tch::Tensor;
use tokio::time::timeout;

use crate::world::{World, adapter_bytes};

const SOON: Duration = Duration::from_millis(300);

#[tokio::test]
async fn callers_of_the_same_adapter_load_it_once() {
    let world = World::new().await;
    let (one, adapters) = (world.adapter(1, None).await, world.adapters(Bytes::mib(64)));
    let (a, b, c) = tokio::join!(
        adapters.lease(&one, "p", Priority::Live),
        adapters.lease(&one, "p", Priority::Live),
        adapters.lease(&one, "p", Priority::Live)
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(world.served(), one.files.len());
    assert_eq!(adapters.resident(), [one.id]);
}

#[tokio::test]
async fn a_leased_adapter_stays_and_another_waits_for_its_memory() {
    let world = World::new().await;
    let (one, two) = (world.adapter(1, None).await, world.adapter(2, None).await);
    let adapters = world.adapters(adapter_bytes(&world));
    let lease = adapters.lease(&one, "p", Priority::Live).await.unwrap();
    let mut waiting = std::pin::pin!(adapters.lease(&two, "p", Priority::Live));
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
        drop(adapters.lease(wanted, "p", Priority::Live).await.unwrap());
    }
    assert_eq!(adapters.resident(), [one.id, three.id]);
    let served = world.served();
    drop(adapters.lease(&two, "p", Priority::Live).await.unwrap());
    assert_eq!(world.served(), served);
    assert_eq!(adapters.resident(), [two.id, three.id]);
}

#[tokio::test]
async fn an_adapter_that_is_kept_is_evicted_after_the_others() {
    let world = World::new().await;
    let (one, two, three) = (world.adapter(1, None).await, world.adapter(2, None).await, world.adapter(3, None).await);
    let adapters = world.adapters(Bytes(adapter_bytes(&world).0 * 2));
    for wanted in [&one, &two] {
        drop(adapters.lease(wanted, "p", Priority::Live).await.unwrap());
    }
    adapters.keep(one.id);
    adapters.keep(three.id);
    assert_eq!(adapters.resident(), [one.id, two.id], "an adapter that is not in memory is not loaded");
    drop(adapters.lease(&three, "p", Priority::Live).await.unwrap());
    assert_eq!(adapters.resident(), [one.id, three.id]);
}

#[tokio::test]
async fn an_adapter_that_cannot_be_had_is_an_error_and_can_be_tried_again() {
    let world = World::new().await;
    let (good, adapters) = (world.adapter(1, None).await, world.adapters(Bytes::mib(64)));
    let mut wrong = good.clone();
    wrong.files[0].sha256 = Sha256::from_digest([0; 32]);
    let refused = adapters.lease(&wrong, "p", Priority::Live).await.unwrap_err();
    assert!(matches!(refused, Failure::Adapter { .. }), "{refused}");
    assert!(adapters.resident().is_empty());
    assert!(adapters.lease(&good, "p", Priority::Live).await.is_ok());
}

/// Returns the values of an adapter's factors, by name.
fn factors(lease: &Lease) -> Vec<(String, Vec<f32>)> {
    let adapter = lease.resident().unwrap().factors.lock().unwrap();
    let values = |tensor: &Tensor| Vec::try_from(tensor.reshape([-1])).unwrap();
    adapter.parameters().into_iter().map(|(name, tensor)| (name, values(tensor))).collect()
}

#[tokio::test]
async fn a_merge_is_loaded_from_its_parts_as_one_adapter() {
    let world = World::new().await;
    let (one, two, adapters) =
        (world.adapter(1, None).await, world.adapter(2, None).await, world.adapters(Bytes::mib(64)));
    let part = |adapter: &AdapterRef| AdapterPart { id: adapter.id, files: adapter.files.clone(), weight: 0.5 };
    let rule = MergeRule { strategy: MergeStrategy::Linear, density: 1.0, majority_sign: MajoritySign::Total, seed: 0 };
    let merge = Some(AdapterMerge { rule, parts: vec![part(&one), part(&two)] });
    let id = AdapterKey::Merged(Sha256::from_digest([7; 32]));
    let merged =
        adapters.lease(&AdapterRef { id, files: Vec::new(), merge: merge.clone() }, "p", Priority::Live).await.unwrap();
    assert_eq!((merged.tier(), adapters.resident()), (AdapterTier::Store, vec![id]));
    let (one, two) = (
        adapters.lease(&one, "p", Priority::Live).await.unwrap(),
        adapters.lease(&two, "p", Priority::Live).await.unwrap(),
    );
    for ((merged, one), two) in factors(&merged).iter().zip(factors(&one)).zip(factors(&two)) {
        assert_eq!((&merged.0, &merged.0), (&one.0, &two.0));
        let sum: Vec<f32> = one.1.iter().zip(&two.1).map(|(a, b)| a * 0.5 + b * 0.5).collect();
        assert_eq!(merged.1, sum, "{}", merged.0);
    }
    // The parts are on disk now.
    let other = AdapterKey::Merged(Sha256::from_digest([8; 32]));
    let again = adapters.lease(&AdapterRef { id: other, files: Vec::new(), merge }, "p", Priority::Live).await.unwrap();
    assert_eq!(again.tier(), AdapterTier::Disk);
}

#[tokio::test]
async fn an_adapter_larger_than_all_memory_is_refused_with_both_sizes() {
    let world = World::new().await;
    let adapters = world.adapters(Bytes(100));
    let refused = adapters.lease(&world.adapter(1, None).await, "p", Priority::Live).await.unwrap_err().to_string();
    assert!(refused.contains("the limit for all adapters is 100 B"), "{refused}");
}

#[tokio::test]
async fn a_caller_that_goes_while_it_waits_leaves_no_trace() {
    let world = World::new().await;
    let (one, two) = (world.adapter(1, None).await, world.adapter(2, None).await);
    let adapters = world.adapters(adapter_bytes(&world));
    let lease = adapters.lease(&one, "p", Priority::Live).await.unwrap();
    assert!(timeout(SOON, adapters.lease(&two, "p", Priority::Live)).await.is_err());
    drop(lease);
    assert!(adapters.lease(&two, "p", Priority::Live).await.is_ok());
}
