//! Runs that validation ends before their last step.

use attune_domain::{
    run::{RunEvent, task::TrainTask},
    spec::{Auto, request::TrainerFields},
};

use super::{FACTORS, asked_with, platform::Platform, published_sha256, steps, tiny, tiny_world};

/// Returns a run that overfits: it memorizes its few rows, which increases the validation loss.
pub(crate) fn overfitting(platform: &Platform, model: &std::path::Path, patience: i64) -> TrainTask {
    let asked = asked_with(|asked| {
        asked.hyperparameters.n_epochs = Auto(Some(40));
        asked.trainer = TrainerFields {
            learning_rate: Some(Auto(Some(2e-2))),
            schedule: Some("constant".into()),
            warmup_ratio: Some(0.0),
            eval_every_steps: Some(1),
            early_stopping_patience: Some(patience),
            ..asked.trainer.clone()
        };
    });
    let mut spec = platform.offer(model, &tiny::dataset(5), &asked);
    spec.validation_file = Some(platform.file("valid.jsonl", tiny::dataset(25).into()));
    spec
}

fn validations(events: &[RunEvent]) -> Vec<(u64, f64)> {
    let of = |e: &RunEvent| match e {
        RunEvent::Evaluated { step, valid_loss, .. } => Some((*step, *valid_loss)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn messages(events: &[RunEvent]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|e| if let RunEvent::Message { text, .. } = e { Some(text.as_str()) } else { None })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_gets_no_better_ends_and_gives_the_adapter_of_its_best_validation() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let spec = overfitting(&platform, &model, 3);
    let (taken, events) = platform.run(spec.clone(), &cache).await;
    assert!(taken);
    let all = validations(&events);
    let last = steps(&events).last().unwrap().step;
    let best = all.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert!(last < 40 && last == best + 3 && all.len() as u64 == last, "best {best}, last {last}");
    let said = messages(&events);
    assert!(said[0].contains(&format!("stopped early after step {last} of 40: 3 validations")), "{said:?}");
    assert!(
        said[1].contains(&format!("the adapter is that of step {best}"))
            || said[1].contains(&format!("that of step {best}"))
    );

    // The published adapter equals that of a run with only so many steps.
    let mut short = spec;
    short.train.trainer.max_steps = Some(best);
    short.train.trainer.early_stopping_patience = 0;
    let (_, short) = platform.run(short, &cache).await;
    assert_eq!(published_sha256(&events, FACTORS), published_sha256(&short, FACTORS));
    let tokens = |events: &[RunEvent]| steps(events).iter().map(|m| m.trained_tokens).sum::<u64>();
    let Some(RunEvent::Published { trained_tokens, best_step, .. }) = events.last() else {
        panic!("{:?}", events.last())
    };
    assert_eq!(*trained_tokens, tokens(&events), "what was trained counts, the steps after the best too");
    assert_eq!(*best_step, Some(best), "the steps after the best are not charged");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_patience_the_best_adapter_is_given_at_the_training_s_end_too() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let (_, events) = platform.run(overfitting(&platform, &model, 1000), &cache).await;
    let all = validations(&events);
    let best = all.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(steps(&events).len() == 40 && best.0 < 40, "{all:?}");
    let said = messages(&events);
    assert!(said.len() == 1 && said[0].contains(&format!("that of step {}: ", best.0)), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_run_stops_where_the_uninterrupted_one_did() {
    let (platform, folder) = tiny_world().await;
    let (model, cache) = (folder.path().join("model"), folder.path().join("cache"));
    let mut spec = overfitting(&platform, &model, 4);
    spec.train.trainer.checkpoint_every_steps = 1;
    let (_, whole) = platform.run(spec.clone(), &cache).await;
    let last = steps(&whole).last().unwrap().step;
    for step in [1, last - 3, last - 1, last] {
        platform.world().events.clone_from(&whole);
        spec.resume = Some(platform.resume_from(step));
        let (_, resumed) = platform.run(spec.clone(), &cache).await;
        assert_eq!(validations(&resumed), validations(&whole)[step as usize..]);
        assert_eq!(messages(&resumed), messages(&whole));
        assert_eq!(published_sha256(&resumed, FACTORS), published_sha256(&whole, FACTORS));
    }
}
