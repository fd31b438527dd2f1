//! The cost of the queue: claims a second, and the time from a free place to the next launch with 10,000 waiting jobs,
//! alone and next to 1,000,000 finished ones. `scripts/bench-queue` runs it on a PostgreSQL that keeps what it commits.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use attune_domain::id::{ProjectId, RunId};
use attune_store::{
    queue::push,
    testing::{bulk, claim, neighbor, published},
};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::worker;

/// The projects of the waiting jobs.
const PROJECTS: usize = 20;
/// The waiting jobs.
const DEPTH: usize = 10_000;
/// The finished jobs.
const FINISHED: i32 = 1_000_000;
/// The claims that are timed.
const CLAIMS: usize = 2000;
/// The connections that claim concurrently, each claim in a transaction of its own.
const CLAIMERS: usize = 16;
/// The launches of one job at a time that are timed.
const PICK_UPS: usize = 60;
/// The launches of many jobs at once that are timed.
const STARTS: usize = 200;
/// The longest wait for a launch.
const LAUNCHED_WITHIN: Duration = Duration::from_secs(60);

/// A launch: the run, and its moment.
type Launched = (RunId, Instant);

/// A provider that sends its launches to the benchmark.
struct Launches {
    slots: Arc<AtomicUsize>,
    launched: UnboundedSender<Launched>,
}

impl Provider for Launches {
    fn name(&self) -> &'static str {
        "local"
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, ProviderError>> {
        let idle = Offer::cpu("local", "this machine", Bytes::mib(1 << 30), 2);
        let offer = Offer { free_slots: self.slots.load(Relaxed), ..idle };
        Box::pin(async { Ok(vec![offer]) })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<String, ProviderError>> {
        let run = launch.name.parse().map(|run| self.launched.send((run, Instant::now())));
        assert!(matches!(run, Ok(Ok(()))), "a launch is sent");
        Box::pin(async move { Ok(launch.name) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Process>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn stop(&self, _handle: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The measured values.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Claims a second of concurrent claimers.
    claims: f64,
    /// Starts a second of the dispatch pass, from its message to the last launch.
    starts: f64,
    /// The 95th percentile of the pick-up, in milliseconds.
    pick_up_ms: f64,
}

struct Bench {
    house: House,
    slots: Arc<AtomicUsize>,
    launched: UnboundedReceiver<Launched>,
    projects: Vec<ProjectId>,
    /// A measured job, of which all others are copies. It is paused.
    original: JobId,
}

impl Bench {
    async fn new(pool: PgPool) -> Self {
        let (launched, launches) = unbounded_channel();
        let slots = Arc::new(AtomicUsize::new(0));
        let provider = Launches { slots: slots.clone(), launched };
        let house = House::with(pool, Arc::default(), Providers::new(vec![Arc::new(provider)])).await;
        let mut projects = vec![house.seed.project_id];
        let mut conn = house.app.pool.acquire().await.unwrap();
        for number in 1..PROJECTS {
            projects.push(neighbor(&mut conn, house.seed, &format!("project {number}")).await.unwrap().project_id);
        }
        drop(conn);
        let original = house.queued().await;
        // Nothing is free, so that the job is only measured.
        house.dispatch(original).await;
        bulk::set_aside(&mut house.app.pool.acquire().await.unwrap(), original).await.unwrap();
        Self { house, slots, launched: launches, projects, original }
    }

    fn pool(&self) -> &PgPool {
        &self.house.app.pool
    }

    async fn fill(&self, jobs: usize) {
        let each = i32::try_from(jobs / PROJECTS).unwrap();
        bulk::queue(self.pool(), self.original, &self.projects, each).await.unwrap();
    }

    async fn clear(&self) {
        bulk::clear(self.pool()).await.unwrap();
    }

    async fn next_launch(&mut self) -> Launched {
        tokio::time::timeout(LAUNCHED_WITHIN, self.launched.recv()).await.expect("a job is launched in time").unwrap()
    }

    async fn wake(&self) {
        let message = DispatchJob { job_id: self.original };
        push(&mut self.pool().acquire().await.unwrap(), &message).await.unwrap();
    }

    /// Claims jobs concurrently, each durably on its own.
    async fn claims(&self) -> f64 {
        self.fill(CLAIMS).await;
        let waiting = bulk::waiting(&mut self.pool().acquire().await.unwrap()).await.unwrap();
        let begun = Instant::now();
        let claimers = waiting.chunks(waiting.len().div_ceil(CLAIMERS)).map(|jobs| {
            let (jobs, pool) = (jobs.to_vec(), self.pool().clone());
            tokio::spawn(async move {
                for job in jobs {
                    let mut tx = pool.begin().await.unwrap();
                    claim(&mut tx, job).await.unwrap();
                    tx.commit().await.unwrap();
                }
            })
        });
        for claimer in claimers.collect::<Vec<_>>() {
            claimer.await.unwrap();
        }
        waiting.len() as f64 / begun.elapsed().as_secs_f64()
    }

    /// Lets the dispatch pass start jobs while places are free.
    async fn starts(&mut self) -> f64 {
        self.fill(STARTS).await;
        self.slots.store(STARTS, Relaxed);
        let begun = Instant::now();
        self.wake().await;
        let mut last = begun;
        for _ in 0..STARTS {
            last = self.next_launch().await.1;
        }
        self.slots.store(0, Relaxed);
        STARTS as f64 / last.duration_since(begun).as_secs_f64()
    }

    /// Lets one job after the other end, and measures the time until the next one is launched.
    async fn pick_up_ms(&mut self) -> f64 {
        self.fill(DEPTH).await;
        self.slots.store(1, Relaxed);
        self.wake().await;
        let (mut run, _) = self.next_launch().await;
        let mut measured = Vec::with_capacity(PICK_UPS);
        for number in 0..PICK_UPS as u64 {
            // From right after the last launch, while its pass still stores the places, to long after it.
            tokio::time::sleep(Duration::from_millis(number * 37 % 600)).await;
            let ended = self.finish(run).await;
            let (next, launched) = self.next_launch().await;
            measured.push(launched.duration_since(ended).as_secs_f64() * 1000.0);
            run = next;
        }
        self.slots.store(0, Relaxed);
        measured.sort_by(f64::total_cmp);
        measured[measured.len() * 95 / 100]
    }

    /// Lets the trainer of a run publish; returns the moment of the commit.
    async fn finish(&self, id: RunId) -> Instant {
        let mut tx = self.pool().begin().await.unwrap();
        let run = run::get(&mut tx, id).await.unwrap();
        testing::put_blobs(&mut tx, id).await.unwrap();
        let report = testing::report(&run, 0, &[started(), published()]);
        report::take(&mut tx, id, &report).await.unwrap();
        tx.commit().await.unwrap();
        Instant::now()
    }

    async fn measure(&mut self) -> Measured {
        let claims = self.claims().await;
        self.clear().await;
        let starts = self.starts().await;
        self.clear().await;
        let pick_up_ms = self.pick_up_ms().await;
        self.clear().await;
        Measured { claims, starts, pick_up_ms }
    }

    /// Adds the finished jobs: copies of one that ran.
    async fn add_history(&mut self) {
        self.slots.store(1, Relaxed);
        self.fill(PROJECTS).await;
        self.wake().await;
        let (run, _) = self.next_launch().await;
        self.slots.store(0, Relaxed);
        self.finish(run).await;
        bulk::history(self.pool(), run, FINISHED).await.unwrap();
        self.clear().await;
    }
}

/// Returns by how many per cent `larger` exceeds `smaller`; negative if it does not.
fn excess(larger: f64, smaller: f64) -> f64 {
    (larger / smaller - 1.0) * 100.0
}

/// Writes figures to the file that `scripts/bench-queue` names.
#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
fn write_figures(alone: Measured, next_to_finished: Measured) {
    let mut lines = String::new();
    let mut figure = |name: &str, value: f64, (bar, at_most): (f64, bool)| {
        let at_most = if at_most { r#", "at_most": true"# } else { "" };
        writeln!(lines, r#"{{"figure": "{name}", "value": {value:.1}, "bar": {bar}{at_most}}}"#).unwrap();
    };
    figure("queue_claims_per_second", alone.claims.min(next_to_finished.claims), (500.0, false));
    figure("queue_starts_per_second", alone.starts.min(next_to_finished.starts), (500.0, false));
    figure("queue_pick_up_p95_ms", alone.pick_up_ms.max(next_to_finished.pick_up_ms), (250.0, true));
    let changes =
        [excess(alone.claims, next_to_finished.claims), excess(next_to_finished.pick_up_ms, alone.pick_up_ms)];
    figure("queue_claims_change_percent", changes[0].max(0.0), (20.0, true));
    figure("queue_pick_up_change_percent", changes[1].max(0.0), (20.0, true));
    match std::env::var_os("ATTUNE_FIGURES") {
        Some(path) => std::fs::write(path, lines).unwrap(),
        None => println!("{lines}"),
    }
}

#[sqlx::test(migrations = false)]
#[ignore = "a measurement of some minutes: scripts/bench-queue"]
async fn the_cost_of_the_queue(pool: PgPool) {
    let options = (*pool.connect_options()).clone();
    let large = PgPoolOptions::new().max_connections(CLAIMERS as u32 + 8).connect_with(options.clone()).await.unwrap();
    let queue = PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
    let mut bench = Bench::new(large.clone()).await;
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker::work::<DispatchJob>(bench.house.app.clone(), queue.clone(), stop.clone()));
    let alone = bench.measure().await;
    println!("alone: {alone:.1?}");
    bench.add_history().await;
    let next_to_finished = bench.measure().await;
    println!("next to {FINISHED} finished jobs: {next_to_finished:.1?}");
    stop.cancel();
    worker.await.unwrap();
    drop(bench);
    large.close().await;
    queue.close().await;
    write_figures(alone, next_to_finished);
}
