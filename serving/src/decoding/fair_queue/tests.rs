//! Tests of the queue and of the shares: of single decisions, and of a simulated engine under floods.

use attune_domain::id::AdapterVersionId;
use uuid::Uuid;

use super::*;
use crate::decoding::{
    counters::{INPUT_PRICE, OUTPUT_PRICE},
    sequence::CHUNK,
    shares::{LEAD, members},
};

/// A simulated request.
#[derive(Clone)]
struct Request {
    project: Arc<str>,
    adapter: Option<AdapterKey>,
    priority: Priority,
    /// The number of the prompt's chunks that have not been processed.
    chunks: usize,
    sampled: usize,
    /// The number of tokens to sample.
    tokens: usize,
    started_ms: f64,
}

impl Request {
    fn new(project: &str, priority: Priority, chunks: usize, tokens: usize) -> Self {
        let (project, adapter) = (project.into(), None);
        Self { project, adapter, priority, chunks, sampled: 0, tokens, started_ms: 0.0 }
    }

    fn with_adapter(self, number: u128) -> Self {
        Self { adapter: Some(AdapterKey::Version(AdapterVersionId::new(Uuid::from_u128(number)))), ..self }
    }
}

impl Scheduled for Request {
    fn project(&self) -> &Arc<str> {
        &self.project
    }

    fn adapter(&self) -> Option<AdapterKey> {
        self.adapter
    }

    fn priority(&self) -> Priority {
        self.priority
    }

    fn is_reading(&self) -> bool {
        self.chunks > 0
    }

    fn sampled_tokens(&self) -> usize {
        self.sampled
    }
}

const SLOTS: usize = 8;
/// The maximum number of running answers of one project.
const MOST: usize = 6;
/// The duration of an iteration, of each of its answers, and of its chunk of a prompt: some of the ratios of a small
/// model on a CPU, where a chunk takes as long as several tokens.
const ITERATION_MS: f64 = 40.0;
const ANSWER_MS: f64 = 3.0;
const CHUNK_MS: f64 = 310.0;

/// The engine, with the durations above in place of a model.
#[derive(Default)]
struct Engine {
    waiting: Turns<Request>,
    running: Vec<Request>,
    ended: Vec<Request>,
    now_ms: f64,
    last_ms: f64,
    turn: u64,
}

impl Engine {
    fn step(&mut self) {
        self.waiting.retain(&Running::of(&self.running), |_| true);
        self.admit();
        let chosen = members(&self.running, |project| self.waiting.served(project), self.turn);
        self.turn += 1;
        self.last_ms = ITERATION_MS;
        for &at in &chosen {
            let request = &self.running[at];
            let samples = request.chunks <= 1;
            let read = if request.is_reading() { CHUNK as u64 * INPUT_PRICE } else { 0 };
            let price = read + u64::from(samples) * OUTPUT_PRICE;
            self.waiting.charge(&request.project, request.adapter, price);
            self.last_ms += if request.is_reading() { CHUNK_MS } else { ANSWER_MS };
        }
        self.now_ms += self.last_ms;
        for at in chosen.into_iter().rev() {
            let request = &mut self.running[at];
            request.chunks = request.chunks.saturating_sub(1);
            request.sampled += usize::from(request.chunks == 0);
            if request.sampled == 1 {
                request.started_ms = self.now_ms;
            }
            if request.sampled == request.tokens {
                self.ended.push(self.running.remove(at));
            }
        }
    }

    fn admit(&mut self) {
        loop {
            let running = Running::of(&self.running);
            let Some(request) = self.waiting.next(&running, MOST) else { return };
            if self.running.len() >= SLOTS {
                let Some(at) = victim_for(&self.running, &request) else { return self.waiting.push_front(request) };
                let preempted = self.running.remove(at);
                self.waiting.push_front(preempted);
            }
            self.running.push(request);
        }
    }

    fn ended_of(&self, project: &str) -> usize {
        self.ended.iter().filter(|request| &*request.project == project).count()
    }

    /// Runs small requests of the project `other` one after another, with pauses, and returns the 95th percentiles of
    /// the times to the first and to the last token.
    fn p95_of_another(&mut self) -> (f64, f64) {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for round in 0..100 {
            (0..5 + round % 7).for_each(|_| self.step());
            let arrived_ms = self.now_ms - self.last_ms / 2.0;
            self.waiting.push_back(Request::new("other", Priority::Live, 1, 32));
            while self.ended_of("other") == round {
                self.step();
            }
            let ended = self.ended.iter().rfind(|request| &*request.project == "other").unwrap();
            first.push(ended.started_ms - arrived_ms);
            last.push(self.now_ms - arrived_ms);
        }
        first.sort_by(f64::total_cmp);
        last.sort_by(f64::total_cmp);
        (first[95], last[95])
    }
}

/// Returns an engine with 5,000 waiting requests of the project `flood`.
fn flooded(priority: Priority) -> Engine {
    let mut engine = Engine::default();
    (0..5000).for_each(|_| engine.waiting.push_back(Request::new("flood", priority, 1, 16)));
    engine
}

#[test]
fn a_flood_costs_another_project_at_most_half_of_its_time_more() {
    let (first, last) = Engine::default().p95_of_another();
    for priority in [Priority::Live, Priority::Batch] {
        let mut engine = flooded(priority);
        let (flooded_first, flooded_last) = engine.p95_of_another();
        println!("first {first} → {flooded_first} ms, last {last} → {flooded_last} ms under a flood, {priority:?}");
        assert!(flooded_last <= 1.5 * last, "{priority:?}: {last} → {flooded_last} ms");
        // At most the iteration in progress is added to the time to the first token.
        assert!(flooded_first <= first + ITERATION_MS + CHUNK_MS, "{priority:?}: {first} → {flooded_first} ms");
        let ended = engine.ended_of("flood");
        assert!((100..5000).contains(&ended), "{priority:?}: the flood's own requests: {ended}");
    }
}

#[test]
fn a_batch_yields_to_live_requests_and_still_advances() {
    let mut engine = flooded(Priority::Batch);
    (0..20).for_each(|_| engine.step());
    assert!(engine.running.iter().all(|request| request.priority == Priority::Batch));
    // More live requests than slots: they take all that a project may have, and are never out of work.
    (0..400).for_each(|_| engine.waiting.push_back(Request::new("other", Priority::Live, 1, 16)));
    let before = engine.ended_of("flood");
    engine.step();
    let live = engine.running.iter().filter(|request| request.priority == Priority::Live).count();
    assert_eq!(live, MOST);
    while engine.ended_of("other") < 300 {
        engine.step();
    }
    let batch = engine.ended_of("flood") - before;
    assert!((1..60).contains(&batch), "{batch} of the batch for 300 live requests");
}

/// A batch would never begin if live prompts always preceded its own.
#[test]
fn batches_advance_equally_while_live_prompts_are_always_processed() {
    let mut engine = Engine::default();
    (0..3000).for_each(|_| engine.waiting.push_back(Request::new("live", Priority::Live, 8, 1)));
    for _ in 0..2000 {
        engine.waiting.push_back(Request::new("a", Priority::Batch, 1, 16));
        engine.waiting.push_back(Request::new("b", Priority::Batch, 1, 16));
    }
    (0..6000).for_each(|_| engine.step());
    let (live, a, b) = (engine.ended_of("live"), engine.ended_of("a"), engine.ended_of("b"));
    assert!(a > 50 && a.abs_diff(b) <= 2, "{a} and {b}");
    assert!(live > 600, "{live} of 750 live requests");
}

/// A row of each iteration of live requests, and all of the others.
#[test]
fn a_batch_has_idle_capacity_at_once() {
    let answer = |project, priority| Request { chunks: 0, sampled: 1, ..Request::new(project, priority, 1, 100) };
    let batch = |project| answer(project, Priority::Batch);
    let prompt = Request::new("b", Priority::Batch, 1, 1);
    let running = [answer("a", Priority::Live), batch("b"), batch("b"), batch("c"), prompt];
    let served = |project: &Arc<str>| if &**project == "c" { 1 } else { 2 };
    assert_eq!(members(&running, served, 1), [0, 3], "the live answer, and one of the project that was served less");
    assert_eq!(members(&running, served, 32), [0, 3, 4], "the share of each project of a batch, the prompt first");
    assert_eq!(members(&running[1..], served, 1), [0, 2], "without live requests, the same in each iteration");
}

#[test]
fn projects_that_always_wait_are_served_equally_in_priced_tokens() {
    let mut engine = Engine::default();
    for _ in 0..5000 {
        engine.waiting.push_back(Request::new("long", Priority::Live, 8, 4));
        engine.waiting.push_back(Request::new("short", Priority::Live, 1, 64));
    }
    let served = |engine: &Engine, project: &str| engine.waiting.served(&project.into());
    let mut most = 0;
    for _ in 0..20_000 {
        engine.step();
        most = most.max(served(&engine, "long").abs_diff(served(&engine, "short")));
    }
    assert!(most <= 2 * LEAD, "{most} above {}", 2 * LEAD);
    assert!(served(&engine, "long") > 20 * LEAD);
}

#[test]
fn the_adapters_of_a_project_take_turns() {
    let mut turns = Turns::default();
    let request = |adapter| Request::new("a", Priority::Live, 1, 1).with_adapter(adapter);
    (0..10).for_each(|_| turns.push_back(request(1)));
    turns.push_back(request(2));
    let running = Running::of::<Request>(&[]);
    let first = turns.next(&running, MOST).unwrap();
    turns.charge(&first.project, first.adapter, 100);
    let second = turns.next(&running, MOST).unwrap();
    assert!(first.adapter == request(1).adapter && second.adapter == request(2).adapter);
    turns.charge(&second.project, second.adapter, 300);
    assert!(turns.next(&running, MOST).unwrap().adapter == request(1).adapter);
    // Its adapters give a project no more turns: another project with fewer priced tokens precedes it.
    turns.push_back(request(3));
    turns.push_back(Request::new("b", Priority::Live, 1, 1));
    turns.charge(&"a".into(), None, 1000);
    assert_eq!(&*turns.next(&running, MOST).unwrap().project, "b");
}

#[test]
fn live_requests_precede_batches_and_take_their_slots() {
    let mut turns = Turns::default();
    turns.push_back(Request::new("a", Priority::Batch, 1, 1));
    turns.push_back(Request::new("b", Priority::Live, 1, 1));
    turns.charge(&"b".into(), None, 1_000_000);
    let next = turns.next(&Running::of::<Request>(&[]), MOST).unwrap();
    assert_eq!(next.priority, Priority::Live);

    let of = |project, priority| Request::new(project, priority, 1, 1);
    let (live, batch) = (Priority::Live, Priority::Batch);
    for (running, waiting, victim) in [
        (vec![of("a", batch), of("b", live)], of("b", live), Some(0)),
        (vec![of("a", live), of("a", live), of("b", batch)], of("a", live), Some(2)),
        (vec![of("a", live), of("a", live)], of("b", live), Some(1)),
        (vec![of("a", live), of("a", live)], of("a", live), None),
        (vec![of("a", live), of("c", live)], of("b", live), None),
        (vec![of("a", live), of("a", live)], of("b", batch), None),
        (vec![of("a", batch), of("a", batch), of("c", live)], of("b", batch), Some(1)),
        (vec![], of("a", live), None),
    ] {
        assert_eq!(victim_for(&running, &waiting), victim);
    }
}
