//! A project's storage quota: counted in the transaction that stores the content, on every request path.

use attune_tests::{platform::Platform, sha256, tenant::Tenant};
use reqwest::Method;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// Uploads a file of this many MiB, filled with the byte `mark`; returns the status and the body.
async fn upload(tenant: &Tenant, mark: u8, mib: usize) -> (u16, Value) {
    tenant.try_upload("user_data", "data.bin", vec![mark; mib * MIB]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_storage_of_a_project_is_held_by_requests_at_once_at_every_entry_point() {
    let platform = Platform::start_with("[limits]\nstorage_bytes = 4194304\nstorage_objects = 6\n").unwrap();
    let (tenant, other) =
        (Tenant::new(&platform, "full").await.unwrap(), Tenant::new(&platform, "other").await.unwrap());
    let used = async |tenant: &Tenant| {
        let (status, used) = tenant.call(Method::GET, "/v1/organization/usage/storage", None).await.unwrap();
        assert_eq!(status, 200, "{used}");
        (used["bytes"].as_u64().unwrap(), used["objects"].as_u64().unwrap(), used["limit_bytes"].as_u64().unwrap())
    };
    let uploads = (0..6).map(|mark| upload(&tenant, mark, 1));
    let answers = futures(uploads).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| *status == 200);
    assert_eq!((taken.len(), refused.len()), (4, 2), "{refused:?}");
    for (status, answer) in &refused {
        assert_eq!((*status, &answer["error"]["code"]), (403, &json!("storage_quota_exceeded")), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("4194304 bytes"), "{message}");
    }
    assert_eq!(used(&tenant).await, (4 << 20, 4, 4 << 20));

    // The other request paths, and another project, which has its own quota.
    let blob = b"a small blob".repeat(10);
    assert_eq!(tenant.put_blob(&sha256(&blob), &blob).await.unwrap().1["error"]["code"], "storage_quota_exceeded");
    let begin = json!({"filename": "a", "purpose": "user_data", "bytes": 1, "mime_type": "text/plain"});
    let (status, begun) = tenant.call(Method::POST, "/v1/uploads", Some(begin.clone())).await.unwrap();
    assert_eq!((status, &begun["error"]["code"]), (403, &json!("storage_quota_exceeded")), "{begun}");
    assert_eq!(upload(&other, 9, 1).await.0, 200);

    // Deleting a file frees its quota; small objects are counted too.
    let first = taken[0].1["id"].as_str().unwrap();
    assert_eq!(tenant.call(Method::DELETE, &format!("/v1/files/{first}"), None).await.unwrap().0, 200);
    assert_eq!(tenant.put_blob(&sha256(&blob), &blob).await.unwrap().0, 201);
    assert_eq!(tenant.call(Method::POST, "/v1/uploads", Some(begin.clone())).await.unwrap().0, 200);
    assert_eq!(used(&tenant).await, ((3 << 20) + blob.len() as u64, 5, 4 << 20));
    assert_eq!(tenant.call(Method::POST, "/v1/uploads", Some(begin.clone())).await.unwrap().0, 200);
    let (status, seventh) = tenant.call(Method::POST, "/v1/uploads", Some(begin)).await.unwrap();
    assert_eq!(status, 403, "{seventh}");
    assert!(seventh["error"]["message"].as_str().unwrap().contains("6 objects"), "{seventh}");
}

/// Runs futures concurrently; returns their results in order.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in all.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
