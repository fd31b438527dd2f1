//! Grades the memory model: trains each case of `memory_cases.rs` with a real `attune-trainer`, and compares its peak
//! resident memory with the prediction. `scripts/memory-report` runs this; it takes some minutes.

use std::{fmt::Write as _, path::Path, time::Duration};

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    memory::{self, BatchSplit, MemoryEstimate, Workload},
    placement::Placement,
    run::{
        Plan, RunEvent,
        task::{TaskSpec, TrainTask},
    },
    spec::TrainSpec,
};
use serde_json::json;
use tempfile::TempDir;

use super::{
    grading::{Table, error_figures},
    memory_cases::{Case, STEPS, cases},
    platform::Platform,
    tiny,
};

/// The columns of the table.
const HEADINGS: &str = "family,layers,hidden,inner,heads,key_heads,vocabulary,tied,length,micro_batch,rank,\
    quantization,optimizer,dora,dropout,checkpointing,predicted_mib,measured_mib,error_percent,held_out";

/// The number of cases.
const CASES: usize = 64;
/// The time limit of one case.
const PATIENCE: Duration = Duration::from_secs(300);

/// A case with both numbers.
struct Graded {
    case: Case,
    estimate: MemoryEstimate,
    measured: Bytes,
}

impl Graded {
    /// The prediction over the measurement, less 1: positive if too much is predicted.
    fn error(&self) -> f64 {
        self.estimate.peak.0 as f64 / self.measured.0 as f64 - 1.0
    }
}

/// Returns rows of exactly the case's length, with a loss on all but five tokens, and with nothing to share.
fn rows(case: &Case) -> String {
    let answer = |row: u64| {
        (0..case.length - 5)
            .map(|at| format!("w{}", (at * at + 7 * at * row + 3 * row) % 50))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let row = |row: u64| {
        json!({"messages": [{"role": "user", "content": format!("w{}", row % 50)},
            {"role": "assistant", "content": answer(row)}]})
        .to_string()
            + "\n"
    };
    (0..STEPS * case.micro.unsigned_abs()).map(row).collect()
}

async fn grade(case: Case) -> Graded {
    let (platform, folder) = (Platform::start().await, TempDir::new().unwrap());
    let model = folder.path().join("model");
    tiny::random_model(&model, &case.shape.config().to_string());
    let rows = rows(&case);
    let architecture = Architecture::from_config_json(case.shape.config().to_string().as_bytes()).unwrap();
    let train = TrainSpec::check(&case.requested(), rows.lines().count() as u64, 4096).unwrap();
    let work = Workload { architecture: &architecture, train: &train, longest_row: case.length };
    let split = BatchSplit { micro_batch_size: u32::try_from(case.micro).unwrap(), checkpointing: case.checkpointing };
    let estimate = memory::training(work, Placement::default(), split);
    let plan = Plan {
        micro_batch_size: split.micro_batch_size,
        micro_batch_tokens: u64::from(split.micro_batch_size) * case.length,
        checkpointing: split.checkpointing,
        threads: 2,
        predicted_peak: estimate.peak,
        placement: Placement::default(),
    };
    let offered = platform.offer(&model, &rows, &super::asked());
    let task = TrainTask { train, plan, ..offered };
    let events = run(&platform, task, &folder.path().join("cache")).await;
    let measured = events.iter().rev().find_map(|event| match event {
        RunEvent::Published { peak_memory, .. } => Some(*peak_memory),
        _ => None,
    });
    Graded { case, estimate, measured: measured.unwrap_or_else(|| panic!("{case:?}: {:?}", events.last())) }
}

/// Runs a task in a process of its own, with two threads. Returns its events.
pub(crate) async fn run(platform: &Platform, task: TrainTask, cache: &Path) -> Vec<RunEvent> {
    platform.world().task = Some(TaskSpec::Train(task));
    let mut process = platform.trainer(cache).env("OMP_NUM_THREADS", "2").spawn().unwrap();
    tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    platform.world().events.clone()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes some minutes: scripts/memory-report"]
async fn the_memory_model_is_graded() {
    let (mut graded, mut table) = (Vec::new(), Table::new(HEADINGS));
    for case in cases(CASES) {
        let one = grade(case).await;
        table.add(&line(&one));
        graded.push(one);
    }
    table.save("ATTUNE_MEMORY_TABLE", &figures(&graded));
}

/// Returns the figures, one JSON object per line: of all cases, and of those that the model was not adjusted to.
fn figures(graded: &[Graded]) -> String {
    let mut lines = String::new();
    for (name, held_out) in [("memory", false), ("memory_held_out", true)] {
        let counted = graded.iter().filter(|one| !held_out || one.case.is_held_out());
        let errors: Vec<f64> = counted.map(Graded::error).collect();
        lines += &error_figures(name, &errors, (0.05, 0.12));
    }
    let is_short = |one: &&Graded| one.estimate.needed() < one.measured;
    let short = graded.iter().filter(is_short).count() as f64 / graded.len() as f64;
    let line = json!({"figure": "memory_underestimates_beyond_margin", "value": short, "bar": 0.01, "at_most": true});
    writeln!(lines, "{line}").unwrap();
    let cases = json!({"figure": "memory_cases", "value": graded.len(), "bar": 60});
    writeln!(lines, "{cases}").unwrap();
    lines
}

fn line(graded: &Graded) -> String {
    let Graded { case, estimate, measured } = graded;
    let Case { shape, length, micro, rank, quantization, optimizer, dora, dropout, checkpointing } = case;
    format!(
        "{},{length},{micro},{rank},{quantization},{optimizer},{dora},{dropout},{checkpointing},{:.1},{:.1},{:.1},{}",
        shape.columns(),
        estimate.peak.0 as f64 / 1048576.0,
        measured.0 as f64 / 1048576.0,
        graded.error() * 100.0,
        case.is_held_out(),
    )
}
