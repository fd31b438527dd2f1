//! A run that is killed at any moment, any number of times, and resumed from the newest checkpoint each time, gives the
//! same result as an uninterrupted run: the same loss at every step, and the same adapter to the last byte.
//!
//! Each attempt is a real `attune-trainer` that receives SIGKILL after a random time, or at a random request, before or
//! after the platform has processed it. `make resume-test` does this at 52 points or more, the ordinary tests at a few.
//! Both print their seed, and `ATTUNE_KILL_SEED` sets it; a kill after a time is not reproducible even so.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use attune_domain::{
    digest::Sha256,
    run::{
        RunEvent,
        metric::MetricName::{GradNorm, LearningRate},
        task::{TaskSpec, TrainTask},
    },
    spec::{Auto, Quantization, Requested},
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::json;

use super::{
    FACTORS, asked_with, early_stopping, going_back,
    platform::{Deadly, Platform, REQUESTS, Request},
    published_sha256, setting, tiny, tiny_world,
};

/// The number of kills in the ordinary test.
const FEW: u64 = 5;
/// The maximum number of kills of one run.
const IN_A_ROW: u64 = 4;
/// The time limit of an attempt. One that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The reports of a run that must not depend on kills.
#[derive(Debug, Default, PartialEq)]
struct Reports {
    /// Step, learning rate, loss, gradient norm and trained tokens; floats as their bits.
    steps: BTreeSet<(u64, u64, u64, u64, u64)>,
    /// Step, and loss as its bits.
    validations: BTreeSet<(u64, u64)>,
    messages: BTreeSet<String>,
    /// The adapter's digest and all trained tokens.
    published: Option<(Sha256, u64)>,
}

impl Reports {
    fn take(&mut self, events: &[RunEvent]) {
        for event in events {
            match event {
                RunEvent::Step(m) => {
                    let [rate, norm] = [LearningRate, GradNorm].map(|name| m.metrics[&name].to_bits());
                    self.steps.insert((m.step, rate, m.train_loss.to_bits(), norm, m.trained_tokens));
                }
                RunEvent::Evaluated { step, valid_loss, .. } => {
                    self.validations.insert((*step, valid_loss.to_bits()));
                }
                RunEvent::Message { text, .. } | RunEvent::LearningRateFound { reason: text, .. } => {
                    self.messages.insert(text.clone());
                }
                RunEvent::Published { trained_tokens, .. } => {
                    self.published = Some((published_sha256(events, FACTORS), *trained_tokens));
                }
                RunEvent::Started { .. } | RunEvent::Checkpointed { .. } => {}
                RunEvent::OutOfMemory { .. }
                | RunEvent::Failed { .. }
                | RunEvent::Stopped { .. }
                | RunEvent::Exporting { .. }
                | RunEvent::Exported { .. } => {
                    panic!("{event:?}")
                }
            }
        }
    }
}

/// The moment at which an attempt is killed.
#[derive(Debug, Clone, Copy)]
enum Kill {
    After(Duration),
    At(Deadly),
}

/// Runs `spec` in a separate process. Returns whether it was killed, and its events.
async fn attempt(platform: &Platform, spec: &TrainTask, cache: &Path, kill: Option<Kill>) -> (bool, Vec<RunEvent>) {
    {
        let mut world = platform.world();
        world.task = Some(TaskSpec::Train(spec.clone()));
        world.events.clear();
        world.reports.clear();
        world.requests.clear();
        world.deadly = if let Some(Kill::At(deadly)) = kill { Some(deadly) } else { None };
    }
    let mut process = platform.trainer(cache).spawn().unwrap();
    let after = if let Some(Kill::After(delay)) = kill { delay } else { PATIENCE };
    let ended = tokio::select! {
        status = process.wait() => Some(status.unwrap()),
        () = platform.death.notified() => None,
        () = tokio::time::sleep(after) => None,
    };
    if ended.is_none() {
        assert!(kill.is_some(), "the trainer hangs");
        process.kill().await.unwrap(); // SIGKILL to this process, and waits for it
    }
    let world = platform.world();
    assert!(ended.is_none_or(|status| status.success()), "{ended:?}: {:?}", world.events.last());
    (ended.is_none(), world.events.clone())
}

/// A training configuration, and the results of an uninterrupted run of it.
struct Way {
    name: &'static str,
    spec: TrainTask,
    reports: Reports,
    took: Duration,
    requests: BTreeMap<usize, u64>,
}

/// Returns configurations that differ in the state that a checkpoint must hold.
async fn ways(platform: &Platform, folder: &Path) -> Vec<(&'static str, TrainTask)> {
    let model = folder.join("model");
    let often = |change: fn(&mut Requested)| {
        let asked = asked_with(|asked| {
            change(asked);
            asked.hyperparameters.n_epochs = Auto(Some(4));
            asked.trainer.checkpoint_every_steps = Some(2);
        });
        platform.offer(&model, &tiny::dataset(22), &asked)
    };
    let valid = platform.file("valid.jsonl", tiny::dataset(25).into());
    let plain = often(|asked| asked.trainer.weight_decay = Some(0.1));
    let mut early = early_stopping::overfitting(platform, &model, 3);
    early.train.trainer.checkpoint_every_steps = 2;
    early.train.quantization = Quantization::None;
    let mut validated = often(|asked| asked.trainer.eval_every_steps = Some(3));
    let auto = often(|asked| asked.trainer.learning_rate = Some(Auto(None)));
    let noisy = often(|asked| {
        asked.adapter.lora_dropout = Some(0.2);
        asked.trainer.neftune_noise_alpha = Some(5.0);
    });
    let mut packed = often(|asked| {
        asked.adapter.use_dora = Some(true);
        asked.adapter.rank = Some(64);
        asked.trainer.optimizer = Some("adamw_8bit".into());
        asked.trainer.loraplus_lr_ratio = Some(4.0);
        asked.trainer.schedule = Some("cosine_with_restarts".into());
        asked.trainer.num_cycles = Some(2);
    });
    packed.train.quantization = Quantization::Int8;
    let back = going_back::recovering(platform, folder).await;
    validated.validation_file = Some(valid);
    vec![
        ("plain", plain),
        ("early stopping", early),
        ("validated", validated),
        ("found rate", auto),
        ("dropout and noise", noisy),
        ("DoRA, 8 bits, restarts", packed),
        ("gone back", back),
    ]
}

fn random_kill(random: &mut Pcg64, way: &Way) -> Kill {
    if random.random_range(0..3) == 0 {
        let most = u64::try_from(way.took.as_micros()).unwrap();
        return Kill::After(Duration::from_micros(random.random_range(0..most)));
    }
    let at = random.random_range(0..REQUESTS.len());
    let nth = random.random_range(1..=way.requests[&at]);
    Kill::At(Deadly { request: REQUESTS[at], nth, taken: random.random_range(0..2) == 0 })
}

/// Sets `spec.resume` to the newest checkpoint in `events`: the one with the highest step, and the last of these.
fn newest(platform: &Platform, events: &[RunEvent], spec: &mut TrainTask) {
    let steps =
        events.iter().filter_map(|e| if let RunEvent::Checkpointed { step, .. } = e { Some(*step) } else { None });
    let Some(step) = steps.max() else { return };
    if spec.resume.as_ref().is_none_or(|resume| resume.step <= step) {
        spec.resume = Some(platform.resume_from(step));
    }
}

/// The results of all kills.
#[derive(Debug, Default)]
struct Score {
    /// The number of kills of runs with the expected result.
    exact: u64,
    /// The number of kills of runs with another result.
    failed: u64,
    /// The number of kills after which the run resumed from a checkpoint; after the others it started from the
    /// beginning.
    resumed: u64,
}

/// Trains one adapter, with kills in between. Adds the kills to `score`. Returns the difference from the uninterrupted
/// run, if any.
async fn killed_run(
    platform: &Platform,
    cache: &Path,
    way: &Way,
    random: &mut Pcg64,
    score: &mut Score,
) -> Option<String> {
    let (mut spec, mut reports, mut kills) = (way.spec.clone(), Reports::default(), Vec::new());
    while reports.published.is_none() {
        spec.run.run_lease += 1;
        let is_to_die = kills.is_empty() || ((kills.len() as u64) < IN_A_ROW && random.random_range(0..2) == 0);
        let kill = is_to_die.then(|| random_kill(random, way));
        let (killed, events) = attempt(platform, &spec, cache, kill).await;
        reports.take(&events);
        newest(platform, &events, &mut spec);
        if killed {
            kills.push((kill, events.len(), spec.resume.as_ref().map(|resume| resume.step)));
        } else if reports.published.is_none() {
            score.failed += (kills.len() as u64).max(1);
            return Some(format!("{}: {kills:?}\nit ended without an adapter: {:?}", way.name, events.last()));
        }
    }
    score.resumed += kills.iter().filter(|(_, _, resume)| resume.is_some()).count() as u64;
    if reports == way.reports {
        score.exact += kills.len() as u64;
        return None;
    }
    score.failed += (kills.len() as u64).max(1);
    Some(format!("{}: {kills:?}\n{reports:#?}\nand not\n{:#?}", way.name, way.reports))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = setting("ATTUNE_KILL_SEED").map_or(clock, |seed| seed.parse().unwrap());
    let wanted: u64 = setting("ATTUNE_KILL_POINTS").map_or(FEW, |points| points.parse().unwrap());
    println!("ATTUNE_KILL_SEED={seed} ATTUNE_KILL_POINTS={wanted}");
    let mut random = Pcg64::seed_from_u64(seed);
    let (platform, folder) = tiny_world().await;
    let cache = folder.path().join("cache");
    let mut all = Vec::new();
    for (name, spec) in ways(&platform, folder.path()).await {
        let (started, mut reports) = (Instant::now(), Reports::default());
        let (_, events) = attempt(&platform, &spec, &cache, None).await;
        reports.take(&events);
        let took = started.elapsed();
        assert!(reports.published.is_some(), "{name}: {:?}", events.last());
        let count = |request: &Request| platform.world().requests.get(request).copied().unwrap_or(1);
        let requests = REQUESTS.iter().map(count).enumerate().collect();
        println!("{name}: {} steps, {} ms, {requests:?} requests", reports.steps.len(), took.as_millis());
        all.push(Way { name, spec, reports, took, requests });
    }
    let mut score = Score::default();
    for way in all.iter().cycle() {
        if score.exact + score.failed >= wanted {
            break;
        }
        if let Some(why) = killed_run(&platform, &cache, way, &mut random, &mut score).await {
            println!("{why}");
        }
        println!("{}: {score:?} so far", way.name);
    }
    let Score { exact, failed, .. } = score;
    if let Some(path) = setting("ATTUNE_FIGURES") {
        let exact = json!({"figure": "resume_kill_points_exact", "value": exact, "bar": 50});
        let failed = json!({"figure": "resume_kill_points_failed", "value": failed, "bar": 0, "at_most": true});
        std::fs::write(path, format!("{exact}\n{failed}\n")).unwrap();
    }
    assert_eq!(failed, 0, "seed {seed}");
}
