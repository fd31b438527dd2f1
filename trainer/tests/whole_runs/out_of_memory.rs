//! Trainers under a limit of the kernel on their memory.
//!
//! The limit is `RLIMIT_DATA`, which counts private writable memory; a limit on the address space would count
//! libtorch's libraries. A run that exceeds it reports that, and the job climbs the ladder of plans until a run ends
//! with the adapter.

use std::{fs, path::Path, process::ExitStatus, time::Duration};

use attune_domain::{
    bytes::Bytes,
    memory::ladder::{self, Failed, Rung},
    run::{
        Plan, RunEvent,
        task::{TaskSpec, TrainTask},
    },
    spec::Auto,
};
use tokio::process::Command;

use super::{
    asked_with,
    platform::{Platform, TRAINER},
    steps, tiny_world,
};

/// The rows of a step; with 105 tokens each, far more than a plan would choose for one forward pass.
const ROWS: u32 = 128;

/// The minimum difference of the peaks with and without a smaller plan, in KiB; the activations of all rows take about
/// 75 MiB.
const APART: u64 = 48 << 10;

/// The interval at which a trainer's memory is read.
const SAMPLE: Duration = Duration::from_millis(2);

/// Returns rows of 100 different words each, without a common beginning.
fn long_rows() -> String {
    let row = |i: u32| {
        let words: Vec<String> = (0..100).map(|k| format!("w{}", (i * 7 + k * (1 + i / 50)) % 50)).collect();
        serde_json::json!({"messages": [
            {"role": "user", "content": words.join(" ")},
            {"role": "assistant", "content": format!("w{}", i % 50)},
        ]})
        .to_string()
    };
    (0..ROWS).map(|i| row(i) + "\n").collect()
}

fn with_plan(task: &TrainTask, micro_batch_size: u32, checkpointing: bool) -> TrainTask {
    let micro_batch_tokens = u64::from(micro_batch_size) * 128;
    let plan = Plan { micro_batch_size, micro_batch_tokens, checkpointing, ..task.plan.clone() };
    TrainTask { plan, ..task.clone() }
}

/// The end of a trainer's process.
struct Ended {
    status: ExitStatus,
    /// The peak of its private writable memory, in KiB.
    peak: u64,
    events: Vec<RunEvent>,
}

/// Runs the task in a process whose private writable memory is limited to `limit`, in KiB or `unlimited`.
async fn run_within(platform: &Platform, task: &TrainTask, cache: &Path, limit: &str) -> Ended {
    {
        let mut world = platform.world();
        world.task = Some(TaskSpec::Train(task.clone()));
        world.events.clear();
        world.reports.clear();
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -d \"$0\" && exec \"$@\"", limit, TRAINER]);
    let mut process = platform.as_trainer(shell, cache).spawn().unwrap();
    let pid = process.id().unwrap();
    let mut peak = 0;
    let status = loop {
        tokio::select! {
            status = process.wait() => break status.unwrap(),
            () = tokio::time::sleep(SAMPLE) => peak = peak.max(private_kib(pid)),
        }
    };
    Ended { status, peak, events: platform.world().events.clone() }
}

/// Reads the private writable memory of a process; 0: it has ended.
fn private_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix("kB"));
    field.map_or(0, |kib| kib.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_under_a_real_limit_climbs_and_ends_with_the_adapter() {
    let (platform, folder) = tiny_world().await;
    let cache = folder.path().join("cache");
    let asked = asked_with(|asked| {
        asked.hyperparameters.n_epochs = Auto(Some(2));
        asked.hyperparameters.batch_size = Auto(Some(ROWS.into()));
    });
    let mut task = platform.offer(&folder.path().join("model"), &long_rows(), &asked);
    task.always_warm_up = true;

    // The limit is between the peak of a forward pass over all rows and that of one over a single row.
    let large = run_within(&platform, &with_plan(&task, ROWS, false), &cache, "unlimited").await;
    let small = run_within(&platform, &with_plan(&task, 1, true), &cache, "unlimited").await;
    for free in [&large, &small] {
        assert!(matches!(free.events.last(), Some(RunEvent::Published { .. })), "{:?}", free.events.last());
    }
    println!("private memory: {} KiB for all rows at once, {} KiB for one", large.peak, small.peak);
    assert!(large.peak > small.peak + APART, "{} and {} KiB are not apart", large.peak, small.peak);
    let limit = u64::midpoint(large.peak, small.peak);

    let mut limited = with_plan(&task, ROWS, false);
    let mut rungs = 0;
    let events = loop {
        let run = run_within(&platform, &limited, &cache, &limit.to_string()).await;
        let plan = limited.plan.clone();
        match run.events.last() {
            Some(RunEvent::Published { .. }) => break run.events,
            Some(RunEvent::OutOfMemory { message, peak_memory }) => {
                println!("{} rows, checkpointing {}: {message}", plan.micro_batch_size, plan.checkpointing);
                assert!(peak_memory.0 > 0 && message.starts_with("out of memory: 64.0 MiB predicted"), "{message}");
                let is_first = rungs == 0;
                assert!(!is_first || steps(&run.events).is_empty(), "the largest micro-batch is tried first");
            }
            other => panic!("{}: {other:?}", run.status),
        }
        let memory = Bytes(limit << 10);
        limited.plan = match ladder::next(&Failed { plan, memory, largest: memory }, &limited.train) {
            Rung::Checkpointing(plan) | Rung::HalfMicroBatch(plan) => plan,
            end => panic!("{end:?}"),
        };
        rungs += 1;
    };
    assert!(rungs >= 1, "the limit was not reached");
    println!("{rungs} rungs; the plan that fits: {:?}", limited.plan);

    // The steps are those of a run without a limit.
    let (limited, free) = (steps(&events), steps(&large.events));
    assert_eq!(limited.len(), 2);
    for (limited, free) in limited.iter().zip(&free) {
        assert_eq!((limited.step, limited.tokens), (free.step, free.tokens));
        assert_eq!(limited.trained_tokens, free.trained_tokens);
        assert!((limited.train_loss - free.train_loss).abs() < 1e-3, "{} {}", limited.train_loss, free.train_loss);
    }
}
