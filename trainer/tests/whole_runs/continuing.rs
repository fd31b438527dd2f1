//! Jobs that continue from an earlier job's adapter.

use attune_domain::{
    id::AdapterVersionId,
    run::{Blob, RunEvent, task::ContinueFrom},
};

use super::{
    FACTORS, asked, failure,
    platform::{Platform, uuid},
    published_sha256, steps, tiny, tiny_world,
};

pub(crate) fn adapter_of(platform: &Platform, events: &[RunEvent]) -> ContinueFrom {
    let Some(RunEvent::Published { files, .. }) = events.last() else { panic!("{:?}", events.last()) };
    let is_adapter = |blob: &Blob| blob.name.starts_with("adapter_");
    let files = platform.remote(files.iter().filter(|blob| is_adapter(blob)).cloned().collect());
    ContinueFrom { adapter_version_id: AdapterVersionId::new(uuid(9)), files }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_continues_where_another_adapter_ended_with_a_fresh_optimiser() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let mut spec = platform.offer(&model, &tiny::dataset(22), &asked());
    let (_, first) = platform.run(spec.clone(), &cache).await;
    let (begun, ended) = (steps(&first)[0].train_loss, steps(&first)[14].train_loss);

    spec.continue_from = Some(adapter_of(&platform, &first));
    let (_, second) = platform.run(spec.clone(), &cache).await;
    let next = steps(&second)[0];
    assert!(next.step == 1 && next.train_loss < (begun + ended) / 2.0, "{begun} to {ended}, then {}", next.train_loss);
    assert_ne!(published_sha256(&second, FACTORS), published_sha256(&first, FACTORS));
    let readme = published_sha256(&second, "README.md");
    let readme = String::from_utf8(platform.world().objects[&readme].clone()).unwrap();
    let id = spec.continue_from.as_ref().unwrap().adapter_version_id;
    assert!(readme.contains(&format!("continues from the adapter `{id}`")), "{readme}");

    // A checkpoint of the run itself has precedence.
    platform.world().events.clone_from(&second);
    spec.resume = Some(platform.resume_from(12));
    let (_, resumed) = platform.run(spec.clone(), &cache).await;
    assert_eq!(steps(&resumed)[0].step, 13);
    assert_eq!(published_sha256(&resumed, FACTORS), published_sha256(&second, FACTORS));

    // A checkpoint of a job that started from a new adapter is refused.
    platform.world().events.clone_from(&first);
    spec.resume = Some(platform.resume_from(12));
    let (_, events) = platform.run(spec, &cache).await;
    assert_eq!(failure(&events).0, "invalid_checkpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_another_shape_is_refused_with_both_shapes() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let mut spec = platform.offer(&model, &tiny::dataset(5), &asked());
    let (_, first) = platform.run(spec.clone(), &cache).await;
    spec.continue_from = Some(adapter_of(&platform, &first));
    spec.train.adapter.rank = 8;
    let (_, events) = platform.run(spec.clone(), &cache).await;
    let Some(RunEvent::Failed { code, message, param, .. }) = events.last() else { panic!("{:?}", events.last()) };
    assert_eq!((code.as_str(), param.as_deref()), ("invalid_continue_from", Some("continue_from")));
    assert!(message.contains("\"rank\":4") && message.contains("\"rank\":8"), "{message}");

    spec.train.adapter.rank = 4;
    spec.continue_from.as_mut().unwrap().files.retain(|file| file.name != FACTORS);
    let (_, events) = platform.run(spec, &cache).await;
    let (code, message) = failure(&events);
    assert!(code == "invalid_continue_from" && message.contains(FACTORS), "{code}: {message}");
}
