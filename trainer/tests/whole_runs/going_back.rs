//! Runs that meet a number that is none.

use std::path::Path;

use attune_domain::{
    run::{RunEvent, RunSpec},
    spec::Requested,
};

use super::{asked, platform::Platform, tiny, tiny_world};

fn unstable(platform: &Platform, model: &Path, rate: f64) -> RunSpec {
    let asked = Requested {
        n_epochs: Some(2),
        target_modules: Some(vec!["q_proj".into()]),
        schedule: Some("constant".into()),
        warmup_ratio: Some(0.0),
        checkpoint_every_steps: Some(3),
        ..asked()
    };
    let mut spec = platform.offer(model, &tiny::dataset(22), &asked);
    spec.train.learning_rate = rate;
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn scan() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    for exponent in 1..30 {
        for mantissa in [1.0, 3.0] {
            let spec = unstable(&platform, &model, mantissa * 10f64.powi(exponent));
            let (_, events) = platform.run(spec, &cache).await;
            let told: Vec<String> = events.iter().map(|e| match e {
                RunEvent::Step(m) => format!("{} {:.2} {:.1e}", m.step, m.train_loss, m.grad_norm),
                RunEvent::Message { text, .. } => text.clone(),
                RunEvent::Failed { message, .. } => message.clone(),
                RunEvent::Published { .. } => "published".into(),
                _ => "-".into(),
            }).collect();
            println!("{mantissa}e{exponent}: {told:?}");
        }
    }
}
pub(crate) async fn recovering(platform: &Platform, folder: &Path) -> RunSpec {
    unstable(platform, &folder.join("model"), 1e-3)
}
