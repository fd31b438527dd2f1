//! A run from the first request to the last event.

use attune_domain::{
    run::{RunEvent, StepMetrics, metric::MetricName},
    spec::{Auto, Quantization, Requested},
};
use axum::http::StatusCode;

use super::{
    asked, asked_with, failure,
    platform::{Platform, World},
    published_sha256, steps, tiny, tiny_world,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_learns_validates_keeps_and_publishes() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let mut spec =
        platform.offer(&model, &tiny::dataset(22), &asked_with(|asked| asked.trainer.eval_every_steps = Some(5)));
    spec.validation_file = Some(platform.file("valid.jsonl", tiny::dataset(6).into()));
    let (taken, events) = platform.run(spec, &cache).await;
    assert!(taken);
    assert!(matches!(events[0], RunEvent::Started { total_steps: 15, .. }), "{:?}", events[0]);

    let steps = steps(&events);
    assert_eq!(steps.iter().map(|m| m.step).collect::<Vec<_>>(), (1..=15).collect::<Vec<_>>());
    assert!(steps[14].train_loss < 0.8 * steps[0].train_loss, "{} to {}", steps[0].train_loss, steps[14].train_loss);
    assert_eq!(steps[4].metrics[&MetricName::Epoch], 1.0);
    let of = |wanted: fn(&RunEvent) -> Option<u64>| events.iter().filter_map(wanted).collect::<Vec<_>>();
    assert_eq!(of(|e| if let RunEvent::Evaluated { step, .. } = e { Some(*step) } else { None }), [5, 10, 15]);
    assert_eq!(of(|e| if let RunEvent::Checkpointed { step, .. } = e { Some(*step) } else { None }), [4, 8, 12]);

    let Some(RunEvent::Published { files, trained_tokens, chat_template_sha256, best_step: None, peak_memory, gate }) =
        events.last()
    else {
        panic!("{:?}", events.last());
    };
    assert_eq!(*trained_tokens, steps.iter().map(|m| m.trained_tokens).sum::<u64>());
    assert!(chat_template_sha256.is_some() && peak_memory.0 > 0);
    assert_eq!(gate.quantization, Quantization::Nf4 { double_quant: true });
    assert!(gate.logit_difference > 0.0 && gate.logit_difference < 1e-4, "{gate:?}");
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "chat_template.jinja",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let World { objects, .. } = &*platform.world();
    assert!(files.iter().all(|f| objects.contains_key(&f.sha256)));
    let left = std::fs::read_dir(cache.join("tmp")).unwrap().count();
    assert_eq!(left, 1, "only the lock stays");
}

/// A resumed run gives exactly the same numbers, not similar ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_run_is_the_uninterrupted_one() {
    for quantization in [Quantization::Nf4 { double_quant: true }, Quantization::None] {
        let (platform, folder) = tiny_world().await;
        let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
        let decayed = asked_with(|asked| asked.trainer.weight_decay = Some(0.1));
        let mut spec = platform.offer(&model, &tiny::dataset(22), &decayed);
        spec.train.quantization = quantization;
        let (_, whole) = platform.run(spec.clone(), &cache).await;
        for step in [4, 12] {
            // The events of the whole run name its checkpoints.
            platform.world().events.clone_from(&whole);
            spec.resume = Some(platform.resume_from(step));
            let (taken, resumed) = platform.run(spec.clone(), &cache).await;
            assert!(taken);
            let told = |m: &&StepMetrics| (m.step, m.train_loss, m.metrics[&MetricName::GradNorm]);
            let wanted: Vec<_> = steps(&whole)[step as usize..].iter().map(told).collect();
            let got: Vec<_> = steps(&resumed).iter().map(told).collect();
            assert_eq!(got, wanted);
            let file = "adapter_model.safetensors";
            assert_eq!(published_sha256(&resumed, file), published_sha256(&whole, file));
            let tokens = |events: &[RunEvent]| match events.last() {
                Some(RunEvent::Published { trained_tokens, .. }) => *trained_tokens,
                _ => 0,
            };
            assert_eq!(tokens(&resumed), tokens(&whole));
        }
        // A checkpoint with other settings is refused.
        platform.world().events.clone_from(&whole);
        spec.resume = Some(platform.resume_from(4));
        spec.train.trainer.learning_rate = 1e-3;
        let (_, events) = platform.run(spec, &cache).await;
        assert_eq!(failure(&events).0, "invalid_checkpoint");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_platform_loses_no_event_and_takes_none_twice() {
    let (platform, folder) = tiny_world().await;
    let spec = platform.offer(&folder.path().join("model"), &tiny::dataset(10), &asked());
    let (busy, lost) = (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK);
    platform.world().troubles.extend([busy, busy, lost, busy, lost, lost]);
    let (taken, events) = platform.run(spec, &folder.path().join("cache")).await;
    assert!(taken);
    assert_eq!(steps(&events).iter().map(|m| m.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let world = platform.world();
    for pair in world.reports.windows(2) {
        assert!(pair[1].first_sequence >= pair[0].first_sequence);
        if pair[1].first_sequence == pair[0].first_sequence && !pair[0].events.is_empty() {
            assert_eq!(pair[0].events, pair[1].events, "a repeated post is the same post");
        }
    }
    assert!(world.troubles.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_obeyed_with_a_checkpoint_that_can_be_resumed() {
    let (platform, folder) = tiny_world().await;
    let cache = folder.path().join("cache");
    let long = asked_with(|asked| {
        asked.hyperparameters.n_epochs = Auto(Some(100));
        asked.trainer.checkpoint_every_steps = Some(1_000_000);
    });
    let mut spec = platform.offer(&folder.path().join("model"), &tiny::dataset(200), &long);
    platform.world().stop_after = Some(1);
    let (taken, events) = platform.run(spec.clone(), &cache).await;
    assert!(taken);
    let Some(RunEvent::Stopped { step }) = events.last() else { panic!("{:?}", events.last()) };
    let step = *step;
    assert_eq!(steps(&events).last().unwrap().step, step);
    assert!(matches!(&events[events.len() - 2], RunEvent::Checkpointed { step: kept, .. } if *kept == step));
    spec.resume = Some(platform.resume_from(step));
    platform.world().stop_after = Some(step + 1);
    let (_, events) = platform.run(spec, &cache).await;
    assert_eq!(steps(&events)[0].step, step + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_run_leaves_at_once_and_publishes_nothing() {
    let (platform, folder) = tiny_world().await;
    let spec = platform.offer(
        &folder.path().join("model"),
        &tiny::dataset(200),
        &asked_with(|asked| asked.hyperparameters.n_epochs = Auto(Some(100))),
    );
    platform.world().stale_after = Some(1);
    let (taken, events) = platform.run(spec, &folder.path().join("cache")).await;
    assert!(!taken);
    assert!(!events.iter().any(RunEvent::is_last));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_are_named_by_line() {
    let (platform, folder) = tiny_world().await;
    let long = serde_json::json!({"prompt": "w1 ".repeat(200), "completion": "w2"}).to_string();
    let rows = tiny::dataset(2) + "{\"messages\": 3}\n" + &long + "\n";
    let spec = platform.offer(&folder.path().join("model"), &rows, &asked());
    let (taken, events) = platform.run(spec, &folder.path().join("cache")).await;
    assert!(taken);
    let (code, message) = failure(&events);
    assert_eq!(code, "invalid_training_file");
    assert!(message.contains("line 3") && message.contains("line 4"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_is_not_finite_ends_the_run_and_names_step_and_rows() {
    let (platform, folder) = (Platform::start().await, tempfile::tempdir().unwrap());
    tiny::model(&folder.path().join("model"), 1e20);
    let spec = platform.offer(&folder.path().join("model"), &tiny::dataset(4), &asked());
    let (_, events) = platform.run(spec, &folder.path().join("cache")).await;
    let (code, message) = failure(&events);
    assert_eq!(code, "non_finite_loss", "{message}");
    assert!(message.contains("step 1") && message.contains("1, 2, 3, 4"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_no_model_is_refused() {
    let (platform, folder) = tiny_world().await;
    let model = folder.path().join("model");
    let whole = std::fs::read(model.join("model.safetensors")).unwrap();
    std::fs::write(model.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let spec = platform.offer(&model, &tiny::dataset(4), &asked());
    let (_, events) = platform.run(spec.clone(), &folder.path().join("cache")).await;
    let (code, message) = failure(&events);
    assert_eq!(code, "invalid_base_model");
    assert!(message.contains("truncated"), "{message}");

    let mut newer = spec;
    newer.run.version += 1;
    let (_, events) = platform.run(newer, &folder.path().join("cache")).await;
    assert_eq!(failure(&events).0, "contract_version");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_packed_and_every_token_of_them_is_trained() {
    let (platform, folder) = tiny_world().await;
    // Three words and the end of text: three documents fill a sequence of twelve tokens.
    let texts: String = (0..20).map(|i| format!("{{\"text\": \"w{i} w{} w{}\"}}\n", i + 1, i + 2)).collect();
    let asked = asked_with(|asked| {
        asked.method = Some("continued_pretraining".into());
        asked.trainer.max_length = Some(12);
    });
    let (_, events) =
        platform.run(platform.offer(&folder.path().join("model"), &texts, &asked), &folder.path().join("cache")).await;
    assert!(matches!(events[0], RunEvent::Started { total_steps: 6, tokens_per_epoch: 80, .. }), "{:?}", events[0]);
    let trained: u64 = steps(&events).iter().map(|step| step.trained_tokens).sum();
    assert_eq!(trained, 3 * 20 * 3, "three epochs, every token but the first of each document");
    assert!(matches!(events.last(), Some(RunEvent::Published { .. })), "{:?}", events.last());
}

/// Returns a request with this policy for rows of more than six tokens.
fn limited(over_length: &str) -> Requested {
    asked_with(|asked| {
        asked.trainer.over_length = Some(over_length.into());
        asked.trainer.max_length = Some(6);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_long_is_cut_left_out_or_split_as_the_job_says() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    // Each word starts with a space: prompt and completion are tokenized as one text.
    let row = |words: usize| serde_json::json!({"prompt": "w1", "completion": " w2".repeat(words)}).to_string();
    let rows = row(2) + "\n" + &row(12) + "\n";
    // The tokens that one step sees and trains of the rows of 4 and 14 tokens:
    for (policy, tokens, trained) in [("truncate", 4 + 6, 3 + 5), ("drop", 4, 3), ("split", 4 + 6 + 6 + 4, 3 + 13)] {
        let mut asked = limited(policy);
        asked.hyperparameters.n_epochs = Auto(Some(1));
        let (_, events) = platform.run(platform.offer(&model, &rows, &asked), &cache).await;
        let steps = steps(&events);
        assert_eq!(steps.len(), 1, "{policy}: {:?}", events.last());
        assert_eq!((steps[0].tokens, steps[0].trained_tokens), (tokens, trained), "{policy}");
    }
    let (_, events) = platform.run(platform.offer(&model, &rows, &limited("error")), &cache).await;
    let (code, message) = failure(&events);
    assert_eq!(code, "row_too_long");
    assert!(message.contains("line 2 (14 tokens)"), "{message}");
}
