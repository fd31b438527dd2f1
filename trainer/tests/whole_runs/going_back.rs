//! Runs with NaN or infinite values, and runs whose loss jumps.

use std::path::Path;

use attune_domain::{
    run::{MessageLevel, RunEvent, metric::MetricName, task::TrainTask},
    spec::Auto,
};
use attune_trainer::loss_spikes::Spikes;

use super::{
    FACTORS, asked_with, continuing::adapter_of, failure, platform::Platform, published_sha256, steps, tiny, tiny_world,
};

fn unstable(platform: &Platform, model: &Path, rate: f64) -> TrainTask {
    let asked = asked_with(|asked| {
        asked.hyperparameters.n_epochs = Auto(Some(2));
        asked.adapter.target_modules = Some(vec!["q_proj".into()]);
        asked.trainer.schedule = Some("linear".into());
        asked.trainer.warmup_ratio = Some(0.0);
        asked.trainer.checkpoint_every_steps = Some(2);
    });
    let mut spec = platform.offer(model, &tiny::dataset(22), &asked);
    spec.train.trainer.learning_rate = rate;
    spec
}

fn warnings(events: &[RunEvent]) -> Vec<(&str, &serde_json::Value)> {
    let mut found = Vec::new();
    for event in events {
        if let RunEvent::Message { level: MessageLevel::Warn, text, data } = event {
            found.push((text.as_str(), data));
        }
    }
    found
}

/// Returns a run that diverges, but not at half the learning rate. The rate is absurdly high: weights of this size make
/// the gradients overflow. The exact rate depends on rounding, so it is found by bisection between a rate that works
/// and one that always diverges.
pub(crate) async fn recovering(platform: &Platform, folder: &Path) -> TrainTask {
    let (mut well, mut lost) = (1e3_f64, 1e25_f64);
    for _ in 0..40 {
        let rate = (well * lost).sqrt();
        let spec = unstable(platform, &folder.join("model"), rate);
        let (_, events) = platform.run(spec.clone(), &folder.join("cache")).await;
        match (warnings(&events).is_empty(), events.last()) {
            (true, Some(RunEvent::Published { .. })) => well = rate,
            (false, Some(RunEvent::Published { .. })) => return spec,
            _ => lost = rate,
        }
    }
    panic!("no rate between {well:e} and {lost:e} recovers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_astray_goes_back_and_on_at_half_the_rate() {
    let (platform, folder) = tiny_world().await;
    let mut spec = recovering(&platform, folder.path()).await;
    let cache = folder.path().join("cache");
    let (_, whole) = platform.run(spec.clone(), &cache).await;
    let [(text, data)] = warnings(&whole)[..] else { panic!("{whole:?}") };
    let (at, back_to) = (data["step"].as_u64().unwrap(), data["back_to"].as_u64().unwrap());
    assert!(back_to < at && back_to.is_multiple_of(2), "{data}");
    assert!(
        text.contains(&format!("Step {at}: ")) && text.contains(&format!("rolling back to step {back_to}")),
        "{text}"
    );
    assert_eq!(data["lines"].as_array().unwrap().len(), if at % 5 == 0 { 2 } else { 5 }, "{data}");

    let rate = |step: u64| spec.train.trainer.learning_rate * (1.0 - step as f64 / 11.0);
    let told: Vec<_> = steps(&whole).iter().map(|m| (m.step, m.metrics[&MetricName::LearningRate])).collect();
    let first = (1..at).map(|step| (step, rate(step)));
    let wanted: Vec<_> = first.chain((back_to + 1..=10).map(|step| (step, rate(step) / 2.0))).collect();
    // JSON may round the last bit of a number.
    let same = |((a, x), (b, y)): (&(u64, f64), &(u64, f64))| a == b && (x / y - 1.0).abs() < 1e-12;
    assert!(told.len() == wanted.len() && told.iter().zip(&wanted).all(same), "{told:?} {wanted:?}");
    let Some(RunEvent::Published { trained_tokens, .. }) = whole.last() else { panic!("{:?}", whole.last()) };
    let all = steps(&whole);
    let counted = all[..back_to as usize].iter().chain(&all[at as usize - 1..]);
    let counted: u64 = counted.map(|m| m.trained_tokens).sum();
    assert_eq!(*trained_tokens, counted, "what was gone back from does not count");

    // Resuming from before or after the rollback gives the same result.
    for step in [2, 4, 6, 8] {
        platform.world().events.clone_from(&whole);
        spec.resume = Some(platform.resume_from(step));
        let (_, resumed) = platform.run(spec.clone(), &cache).await;
        assert_eq!(warnings(&resumed).len(), usize::from(step <= back_to), "from step {step}");
        assert_eq!(published_sha256(&resumed, FACTORS), published_sha256(&whole, FACTORS), "from step {step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_time_it_fails_and_names_step_and_rows() {
    let (platform, folder) = tiny_world().await;
    let spec = unstable(&platform, &folder.path().join("model"), 1e25);
    let (taken, events) = platform.run(spec, &folder.path().join("cache")).await;
    let (code, message) = failure(&events);
    assert!(taken && code == "non_finite_loss" && warnings(&events).len() == 1, "{events:?}");
    assert!(message.starts_with("step 2: ") && message.contains("at half the learning rate too"), "{message}");
    assert!(message.contains("Rows (by line): "), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validation_that_is_no_number_is_a_fault_of_the_step_before_it() {
    let (platform, folder) = tiny_world().await;
    let mut spec = unstable(&platform, &folder.path().join("model"), 3e37);
    spec.train.adapter.lora_alpha = 1e5; // the factors are finite after the step, and their product is not
    spec.validation_file = Some(platform.file("valid.jsonl", tiny::dataset(6).into()));
    spec.train.trainer.eval_every_steps = 1;
    let (_, events) = platform.run(spec, &folder.path().join("cache")).await;
    let (text, data) = warnings(&events)[0];
    assert!(text.contains("Step 1: the loss of the validation after it is not a finite number"), "{text}");
    assert!(data["back_to"] == 0 && !data["lines"].as_array().unwrap().is_empty(), "{data}");
    let before = events.iter().take_while(|e| !matches!(e, RunEvent::Message { .. }));
    assert!(before.into_iter().all(|e| !matches!(e, RunEvent::Evaluated { .. })));
    assert_eq!(failure(&events).0, "non_finite_loss");
}

/// The factors themselves overflow at the first step; nothing of it is saved.
#[tokio::test(flavor = "multi_thread")]
async fn a_factor_that_is_no_number_is_neither_kept_nor_published() {
    let (platform, folder) = tiny_world().await;
    let mut spec = unstable(&platform, &folder.path().join("model"), 3e38);
    spec.train.trainer.max_steps = Some(1);
    let (_, events) = platform.run(spec, &folder.path().join("cache")).await;
    let (code, message) = failure(&events);
    assert!(code == "non_finite_loss" && message.contains("lora_"), "{code}: {message}");
    assert!(steps(&events).is_empty() && !events.iter().any(|e| matches!(e, RunEvent::Checkpointed { .. })));
}

/// An adapter that has memorized its rows is trained at an increasing rate until it diverges.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_jumps_and_stays_is_reported_once() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    // With larger weights the head can be certain of a token, so the loss can approach zero.
    tiny::model(&model, 0.3);
    let calm = asked_with(|asked| {
        asked.trainer.learning_rate = Some(Auto(Some(1e-2)));
        asked.adapter.rank = Some(16);
        asked.trainer.checkpoint_every_steps = Some(100);
    });
    let mut spec = platform.offer(&model, &tiny::dataset(5), &calm);
    spec.train.hyperparameters.n_epochs = 150;
    let (_, first) = platform.run(spec.clone(), &cache).await;
    assert!(warnings(&first).is_empty());
    spec.continue_from = Some(adapter_of(&platform, &first));
    (spec.train.trainer.warmup_ratio, spec.train.hyperparameters.n_epochs) = (1.0, 100);
    // The rate at which a training diverges depends on rounding; one of these diverges.
    let mut jumps = 0;
    for rate in [0.1, 0.3, 1.0, 3.0] {
        spec.train.trainer.learning_rate = rate;
        let (_, second) = platform.run(spec.clone(), &cache).await;
        let losses: Vec<f64> = steps(&second).iter().map(|m| m.train_loss).collect();
        let mut spikes = Spikes::default();
        let wanted: Vec<_> =
            losses.iter().zip(1..).filter_map(|(loss, step)| Some((step, spikes.see(*loss)?))).collect();
        let told: Vec<_> = warnings(&second)
            .iter()
            .filter_map(|(_, data)| Some((data["step"].as_u64()?, data["mean"].as_f64()?)))
            .collect();
        // JSON may round the last bit of a number.
        let same = |((a, x), (b, y)): (&(u64, f64), &(u64, f64))| a == b && (x / y - 1.0).abs() < 1e-12;
        assert!(told.len() == wanted.len() && told.iter().zip(&wanted).all(same), "at {rate}: {told:?} {wanted:?}");
        jumps += told.len();
        for (step, mean) in told {
            let five = &losses[step as usize - 5..step as usize];
            assert!(step >= 15 && five.iter().all(|loss| *loss >= 2.0 * mean), "{mean} {five:?}");
        }
    }
    assert!(jumps > 0, "no rate threw the training off");
}
