//! Jobs whose learning rate comes from a range test.

use attune_domain::{
    run::{RunEvent, metric::MetricName},
    spec::{Auto, Requested},
};

use super::{FACTORS, asked_with, platform::Platform, published_sha256, steps, tiny, tiny_world};

fn auto() -> Requested {
    asked_with(|asked| {
        asked.trainer.learning_rate = Some(Auto(None));
        asked.trainer.schedule = Some("constant".into());
    })
}

fn found(events: &[RunEvent]) -> Vec<&RunEvent> {
    events.iter().filter(|e| matches!(e, RunEvent::LearningRateFound { .. })).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_test_finds_a_rate_says_why_and_leaves_no_trace() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let mut spec = platform.offer(&model, &tiny::dataset(22), &auto());
    let (_, events) = platform.run(spec.clone(), &cache).await;
    let [RunEvent::LearningRateFound { learning_rate: rate, curve, reason }] = found(&events)[..] else {
        panic!("{events:?}");
    };
    assert!((1e-5..=2e-3).contains(rate) && *rate != 2e-4, "{rate}");
    assert!(curve.len() > 20 && curve[0].0 == 1e-6, "{curve:?}");
    assert!(reason.contains(&format!("{rate:?}")) && reason.contains("chosen is a tenth"), "{reason}");
    let steps = steps(&events);
    assert!(steps.len() == 15 && steps.iter().all(|m| m.metrics[&MetricName::LearningRate] == *rate));

    // The same rate, requested explicitly, gives the same adapter.
    spec.train.trainer.learning_rate_auto = false;
    spec.train.trainer.learning_rate = *rate;
    let (_, fixed) = platform.run(spec.clone(), &cache).await;
    assert!(found(&fixed).is_empty());
    assert_eq!(published_sha256(&fixed, FACTORS), published_sha256(&events, FACTORS));

    // In whichever way the platform writes the found rate into the job, the checkpoint remains valid and the test is
    // not repeated.
    for (auto, given) in [(true, 2e-4), (true, *rate), (false, *rate)] {
        platform.world().events.clone_from(&events);
        spec.resume = Some(platform.resume_from(8));
        (spec.train.trainer.learning_rate_auto, spec.train.trainer.learning_rate) = (auto, given);
        let (_, resumed) = platform.run(spec.clone(), &cache).await;
        assert!(found(&resumed).is_empty());
        assert_eq!(published_sha256(&resumed, FACTORS), published_sha256(&events, FACTORS));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_the_range_test_is_obeyed() {
    let (platform, folder): (Platform, _) = tiny_world().await;
    let spec = platform.offer(&folder.path().join("model"), &tiny::dataset(22), &auto());
    platform.world().stop_at_once = true;
    let (taken, events) = platform.run(spec, &folder.path().join("cache")).await;
    assert!(taken && found(&events).is_empty());
    assert!(matches!(events.last(), Some(RunEvent::Stopped { step: 0 })), "{:?}", events.last());
}
