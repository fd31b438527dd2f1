//! The conditions on a checkpoint before a run resumes from it.

use attune_domain::run::{Blob, RunEvent, task::TrainTask};
use tempfile::TempDir;

use super::{asked, failure, platform::Platform, tiny, tiny_world};

fn files_of(platform: &Platform, step: u64) -> Vec<(String, Vec<u8>)> {
    let resume = platform.resume_from(step);
    let world = platform.world();
    resume.files.into_iter().map(|file| (file.name, world.objects[&file.sha256].clone())).collect()
}

/// Returns a platform with a completed run and its checkpoints, and that run's spec.
async fn run_through() -> (Platform, TempDir, TrainTask) {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let spec = platform.offer(&model, &tiny::dataset(10), &asked());
    let (_, whole) = platform.run(spec.clone(), &cache).await;
    platform.world().events.clone_from(&whole);
    (platform, folder, spec)
}

/// Records a checkpoint after `step` with these files.
fn tell(platform: &Platform, step: u64, files: Vec<(String, Vec<u8>)>) {
    let files = files.into_iter().map(|(name, content)| platform.file(&name, content));
    let files = files.map(|file| Blob { name: file.name, sha256: file.sha256, bytes: file.bytes }).collect();
    platform.world().events.push(RunEvent::Checkpointed { step, files, train_loss: 1.0, valid_loss: None });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_checkpoint_is_refused_whatever_is_missing_from_it() {
    let (platform, folder, mut spec) = run_through().await;
    let (cache, files) = (folder.path().join("cache"), files_of(&platform, 4));
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let wanted =
        ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.safetensors", "state.json"];
    assert_eq!(names, wanted);

    for torn in 0..files.len() {
        for cut in [true, false] {
            let mut left = files.clone();
            if cut {
                let half = left[torn].1.len() / 2;
                left[torn].1.truncate(half);
            } else {
                left.remove(torn);
            }
            platform.world().events.clear();
            tell(&platform, 4, left);
            spec.resume = Some(platform.resume_from(4));
            let (taken, events) = platform.run(spec.clone(), &cache).await;
            let (code, message) = failure(&events);
            assert!(taken && code == "invalid_checkpoint", "{code}: {message}");
            let blamed = if cut || wanted[torn] == "manifest.json" { wanted[torn] } else { "is missing" };
            assert!(message.contains(blamed), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_whose_objects_are_gone_or_of_another_step_is_refused() {
    let (platform, folder, mut spec) = run_through().await;
    let (cache, files) = (folder.path().join("cache"), files_of(&platform, 4));
    let mut resume = platform.resume_from(4);
    resume.files[1].url += "0";
    spec.resume = Some(resume);
    let (_, events) = platform.run(spec.clone(), &cache).await;
    assert_eq!(failure(&events).0, "invalid_checkpoint");

    tell(&platform, 5, files);
    spec.resume = Some(platform.resume_from(5));
    let (_, events) = platform.run(spec, &cache).await;
    let (code, message) = failure(&events);
    assert!(code == "invalid_checkpoint" && message.contains("step 4, and step 5 was requested"), "{message}");
}
