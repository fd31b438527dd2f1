//! Grades predicted durations: trains each job of `pace_cases.rs` with a real `attune-trainer`, and compares its
//! duration with the prediction from the runs before it. A script with the name of this file runs it, in some minutes.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    id::BaseModelId,
    memory::Workload,
    offer::Offer,
    placement::Placement,
    run::{Plan, RunEvent, task::TrainTask},
    spec::TrainSpec,
    throughput::{DurationSource, Effort, JobFacts, JobTokens, PastRun, Rate, RunTimes, TokenCost, base_weights},
};
use serde_json::json;
use tempfile::TempDir;

use super::{
    grading::{Table, error_figures},
    memory_report::run,
    pace_cases::{PaceCase, cases},
    platform::{Platform, uuid},
    steps, tiny,
};

/// The columns of the table.
const HEADINGS: &str = "base,family,layers,hidden,inner,heads,key_heads,vocabulary,tied,length,batch,micro_batch,rank,\
    dora,checkpointing,source,predicted_s,measured_s,error_percent";
/// The number of threads of every run.
const THREADS: u32 = 2;
/// The largest error of a duration after one run of the base on the processor: its 95th percentile.
const BAR: f64 = 0.25;
/// The largest error of a duration from runs of another base, of which its note warns.
const SIMILAR_BAR: f64 = 1.0;

/// A job with both durations.
struct Graded {
    case: PaceCase,
    source: DurationSource,
    predicted: f64,
    measured: f64,
}

impl Graded {
    /// The prediction over the measurement, less 1: positive if too much is predicted.
    fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// Trains a job after predicting its duration from the earlier runs, newest first. The first run of a base is added to
/// them.
async fn grade(case: PaceCase, past: &mut Vec<PastRun>) -> Graded {
    let config = case.shape.config().to_string();
    let architecture = Architecture::from_config_json(config.as_bytes()).unwrap();
    let train = TrainSpec::check(&case.requested(), case.row_count(), 4096).unwrap();
    let (work, facts) =
        (Workload { architecture: &architecture, train: &train, longest_row: case.length }, case.facts());
    let cost = TokenCost::of(work, JobFacts { training: facts, validation: None }, case.split());
    let tokens = JobTokens::of(&train, facts, None);
    let base = BaseModelId::new(uuid(case.base as u128));
    let offer = Offer::cpu("local", "this machine", Bytes::mib(16_384), THREADS);
    let rate = Rate::on_offer(past, base, &architecture, &offer);

    let (platform, folder) = (Platform::start().await, TempDir::new().unwrap());
    let model = folder.path().join("model");
    tiny::random_model(&model, &config);
    let plan = Plan {
        micro_batch_size: case.micro,
        micro_batch_tokens: u64::from(case.micro) * case.length,
        checkpointing: case.checkpointing,
        threads: THREADS,
        predicted_peak: Bytes::mib(1024),
        placement: Placement::default(),
    };
    let task = TrainTask { train: train.clone(), plan, ..platform.offer(&model, &case.rows(), &super::asked()) };
    let started = Instant::now();
    let events = run(&platform, task, &folder.path().join("cache")).await;
    let took = started.elapsed();
    assert!(matches!(events.last(), Some(RunEvent::Published { .. })), "{case:?}: {:?}", events.last());
    let effort = Effort::of(times(&events, took), cost, tokens, train.total_steps(facts.rows));
    if rate.source != DurationSource::Measured {
        past.insert(0, past_run(base, &architecture, &events, effort));
    }
    let predicted = rate.seconds(cost, tokens).likely;
    Graded { case, source: rate.source, predicted, measured: took.as_secs_f64() }
}

fn times(events: &[RunEvent], took: Duration) -> RunTimes {
    let steps = steps(events);
    let step_ms: u64 = steps.iter().map(|step| step.step_ms).sum();
    RunTimes {
        steps: steps.len() as u64,
        step_seconds: step_ms as f64 / 1000.0,
        node_seconds: Some(took.as_secs_f64()),
    }
}

fn past_run(base: BaseModelId, architecture: &Architecture, events: &[RunEvent], effort: Effort) -> PastRun {
    let Some(RunEvent::Started { processor: Some(processor), .. }) = events.first() else {
        panic!("the first event has no processor: {:?}", events.first());
    };
    PastRun {
        base,
        weights: base_weights(architecture),
        provider: "local".into(),
        offer: "this machine".into(),
        processor: Some(processor.name.clone()),
        threads: processor.threads,
        effort,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes some minutes: scripts/pace-report"]
async fn the_predicted_durations_are_graded() {
    let (mut graded, mut past, mut table) = (Vec::new(), Vec::new(), Table::new(HEADINGS));
    for case in cases() {
        let one = grade(case, &mut past).await;
        table.add(&line(&one));
        graded.push(one);
    }
    table.save("ATTUNE_PACE_TABLE", &figures(&graded));
}

/// Returns the figures, one JSON object per line: of the jobs after one run of their base, and of the first jobs of
/// bases after runs of others.
fn figures(graded: &[Graded]) -> String {
    let mut lines = String::new();
    let kinds = [
        ("duration", DurationSource::Measured, BAR, 12),
        ("duration_similar_base", DurationSource::SimilarBase, SIMILAR_BAR, 3),
    ];
    for (name, source, bar, fewest) in kinds {
        let errors: Vec<f64> = graded.iter().filter(|one| one.source == source).map(Graded::error).collect();
        lines += &error_figures(name, &errors, (bar, bar));
        let cases = json!({"figure": format!("{name}_cases"), "value": errors.len(), "bar": fewest});
        writeln!(lines, "{cases}").unwrap();
    }
    lines
}

fn line(graded: &Graded) -> String {
    let Graded { case, source, predicted, measured } = graded;
    let PaceCase { base, shape, length, batch, micro, rank, dora, checkpointing } = case;
    let source: &str = (*source).into();
    format!(
        "{base},{},{length},{batch},{micro},{rank},{dora},{checkpointing},{source},{predicted:.1},{measured:.1},{:.1}",
        shape.columns(),
        graded.error() * 100.0,
    )
}
