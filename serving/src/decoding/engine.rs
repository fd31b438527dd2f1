//! The engine: one thread that owns the decoder and runs all requests with continuous batching.
//!
//! Each iteration is one forward pass: one token of every running answer, and one chunk of one prompt that is still
//! being processed. A request joins between iterations, and leaves when it is finished or its receiver is dropped.
//! Memory for keys and values is reserved in blocks. When it is short, cached prefixes are evicted first; then a
//! request is preempted and later resumed exactly where it was.
//!
//! Projects take turns for slots and memory ([`crate::decoding::fair_queue`]). No project can hold all slots; a project
//! with nothing running gets a slot immediately, from the project that has the most.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use attune_domain::bytes::Bytes;
use attune_model::{decoder::Decoder, error::ModelError, nn::kv_cache::KvCache};
use attune_process::{
    error_chain::chain,
    metrics::{KV_CACHE_BYTES, KV_CACHE_BYTES_MAX, SEQUENCES_RUNNING, SEQUENCES_WAITING},
};
use tokio::sync::oneshot;

use crate::{
    decoding::{
        fair_queue::{self, Turns},
        forward_step,
        prefix_cache::{Prefixes, shared},
        sequence::{GenerateJob, Memory, Sequence},
    },
    error::Failure,
    residency::ResidentBudget,
};

/// The reciprocal of the share of slots that one project cannot hold.
const OTHERS_SHARE: usize = 4;
/// The block size of memory reservations, in tokens.
const BLOCK: usize = 256;
/// The minimum capacity of a cache, in tokens.
const SMALLEST: usize = 64;

/// The engine's limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of answers that run concurrently.
    pub max_batch: usize,
    /// The memory for keys and values.
    pub kv_memory: Bytes,
    /// The maximum time that a request waits for its first slot.
    pub max_wait: Duration,
}

/// The handle that submits work to the engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    queue: Sender<GenerateJob>,
    context: usize,
}

impl EngineHandle {
    /// Queues a request. Its results are sent to its `out`.
    ///
    /// # Errors
    /// [`Failure::Internal`]: the engine has stopped.
    pub fn submit(&self, work: GenerateJob) -> Result<(), Failure> {
        self.queue.send(work).map_err(|_| Failure::Internal("the engine has stopped".into()))
    }

    /// Returns the maximum number of tokens of one request: the smaller limit of the model and the memory.
    #[must_use]
    pub const fn context(&self) -> usize {
        self.context
    }
}

/// Starts the engine's thread. It ends when every handle is dropped and all work is done. The receiver resolves with an
/// error when the thread has ended, for whatever reason.
///
/// # Errors
/// The thread could not be started.
pub fn start(decoder: Decoder, limits: Limits) -> std::io::Result<(EngineHandle, oneshot::Receiver<()>)> {
    let (sender, queue) = channel();
    let (alive, ended) = oneshot::channel();
    let engine = Engine::new(decoder, limits);
    let handle = EngineHandle { queue: sender, context: engine.context };
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _alive = alive;
        engine.run(&queue);
    })?;
    Ok((handle, ended))
}

struct Engine {
    decoder: Decoder,
    limits: Limits,
    budget: ResidentBudget,
    /// The size of one token's keys and values in bytes.
    token_bytes: u64,
    /// The maximum number of tokens of one request: the smaller limit of the model and the memory.
    context: usize,
    waiting: Turns,
    /// The running sequences, the oldest first.
    running: Vec<Sequence>,
    prefixes: Prefixes,
}

impl Engine {
    fn new(decoder: Decoder, limits: Limits) -> Self {
        let architecture = decoder.architecture();
        let token_bytes = architecture.kv_bytes_per_token().0.max(1);
        let tokens = limits.kv_memory.0 / token_bytes;
        let by_memory = if tokens < SMALLEST as u64 { 0 } else { tokens };
        let context = usize::try_from(by_memory.min(architecture.max_position_embeddings)).unwrap_or(usize::MAX);
        let budget = ResidentBudget::new(limits.kv_memory);
        KV_CACHE_BYTES_MAX.set([], limits.kv_memory.0 as f64);
        let (waiting, running, prefixes) = (Turns::default(), Vec::new(), Prefixes::default());
        Self { decoder, limits, budget, token_bytes, context, waiting, running, prefixes }
    }

    fn run(mut self, queue: &Receiver<GenerateJob>) {
        loop {
            if self.running.is_empty() && self.waiting.is_empty() {
                match queue.recv() {
                    Ok(work) => self.enqueue(work),
                    Err(_) => return,
                }
            }
            while let Ok(work) = queue.try_recv() {
                self.enqueue(work);
            }
            self.turn();
            self.publish();
        }
    }

    fn publish(&self) {
        SEQUENCES_WAITING.set([], self.waiting.len() as f64);
        SEQUENCES_RUNNING.set([], self.running.len() as f64);
        KV_CACHE_BYTES.set([], self.budget.used().0 as f64);
    }

    fn enqueue(&mut self, work: GenerateJob) {
        let (prompt, limit) = (work.prompt.len(), self.context);
        let sequence = Sequence::new(work, limit);
        if prompt >= limit {
            sequence.fail(Failure::ContextLength { prompt, limit });
        } else {
            self.waiting.push_back(sequence);
        }
    }

    fn turn(&mut self) {
        for at in (0..self.running.len()).rev() {
            if self.running[at].is_abandoned() {
                self.leave(at);
            }
        }
        let max_wait = self.limits.max_wait;
        self.waiting.retain(&fair_queue::running(&self.running), |sequence| {
            let late = !sequence.has_started() && sequence.age() > max_wait;
            if late {
                sequence.fail(Failure::ReplicaBusy(format!(
                    "no slot was free within {} s, because other requests are running",
                    max_wait.as_secs()
                )));
            }
            !late && !sequence.is_abandoned()
        });
        self.admit();
        self.ensure_capacity();
        let members = self.members();
        for &at in &members {
            let sequence = &self.running[at];
            self.waiting.charge(sequence.project(), sequence.needs() - sequence.fed());
        }
        for at in forward_step::run(&self.decoder, &mut self.running, &members).into_iter().rev() {
            self.leave(at);
        }
    }

    /// Returns the members of this iteration, in order: the answers, within each project's share, and one prompt that
    /// is still being processed: the first one of the project that was served least.
    fn members(&self) -> Vec<usize> {
        let reading = self.running.iter().enumerate().filter(|(_, sequence)| sequence.is_reading());
        let first = reading.min_by_key(|(at, sequence)| (self.waiting.served(sequence.project()), *at));
        let first = first.map(|(at, _)| at);
        let takes_part = |at: &usize| !self.running[*at].is_reading() || Some(*at) == first;
        fair_queue::within_shares(&self.running, (0..self.running.len()).filter(takes_part).collect())
    }

    /// Removes a finished or abandoned request, and keeps its prompt's cache for later requests.
    fn leave(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        if let Some(memory) = sequence.memory.take() {
            self.prefixes.keep(sequence.adapter_id(), sequence.prompt(), memory);
        }
    }

    /// Admits waiting requests, in turns, while a slot and memory are free.
    fn admit(&mut self) {
        let most = (self.limits.max_batch - self.limits.max_batch / OTHERS_SHARE).max(1);
        loop {
            let running = fair_queue::running(&self.running);
            let Some(mut sequence) = self.waiting.next(&running, most) else { return };
            let has_none = !running.contains_key(sequence.project());
            if self.running.len() >= self.limits.max_batch && !(has_none && self.free_slot()) {
                return self.waiting.push_front(sequence);
            }
            match self.memory_for(&sequence) {
                Ok(Some((memory, cached))) => {
                    sequence.memory = Some(memory);
                    if !sequence.has_started() {
                        sequence.cached = cached;
                    }
                    self.running.push(sequence);
                }
                Ok(None) => {
                    self.waiting.push_front(sequence);
                    if !(has_none && self.free_slot()) {
                        return;
                    }
                }
                Err(failure) => sequence.fail(failure),
            }
        }
    }

    /// Preempts an answer of the project with the most running answers. Returns `false` if no project has several.
    fn free_slot(&mut self) -> bool {
        let several = fair_queue::running(&self.running).values().any(|count| *count > 1);
        if several {
            self.preempt();
        }
        several
    }

    /// Returns the first memory of a sequence, filled with the longest prefix that another request has processed, and
    /// that prefix's length; `None` if not enough memory is free now.
    fn memory_for(&mut self, sequence: &Sequence) -> Result<Option<(Memory, usize)>, Failure> {
        let (has, end) = sequence.extent();
        // A preempted sequence requests more each time, so that two sequences do not preempt each other indefinitely.
        let capacity = (has + BLOCK * (1 + sequence.interruptions)).min(end).max(SMALLEST);
        let bytes = self.bytes(capacity);
        let reservation = loop {
            match self.budget.reserve(bytes) {
                Some(reservation) => break reservation,
                None if self.prefixes.forget_one() => {}
                None => return Ok(None),
            }
        };
        let failed = |e| Failure::Internal(chain(&e));
        let known = if sequence.wants_prompt_scores() { None } else { self.beginning(sequence).map_err(failed)? };
        let cached = known.as_ref().map_or(0, KvCache::len);
        let mut cache = match known {
            Some(cache) => cache,
            None => self.decoder.new_cache(capacity).map_err(failed)?,
        };
        cache.grow_to(capacity).map_err(failed)?;
        Ok(Some((Memory { cache, reservation }, cached)))
    }

    /// Returns a copy of the longest prefix that a running or a cached prompt shares with this one.
    fn beginning(&mut self, sequence: &Sequence) -> Result<Option<KvCache>, ModelError> {
        let (adapter, prompt) = (sequence.adapter_id(), sequence.prompt());
        let running = self.running.iter().filter(|other| other.adapter_id() == adapter).filter_map(|other| {
            let memory = other.memory.as_ref()?;
            let read = other.fed().min(other.prompt().len());
            Some((shared(prompt, &other.prompt()[..read]), &memory.cache))
        });
        let kept = self.prefixes.longest(adapter, prompt).map(|(prefix, length)| (length, &prefix.memory.cache));
        match running.chain(kept).max_by_key(|(length, _)| *length).filter(|(length, _)| *length > 0) {
            Some((length, cache)) => Ok(Some(cache.copy_prefix(length)?)),
            None => Ok(None),
        }
    }

    fn bytes(&self, tokens: usize) -> Bytes {
        Bytes((tokens as u64).saturating_mul(self.token_bytes))
    }

    /// Ensures that every running request has memory for its next step; preempts requests if necessary.
    fn ensure_capacity(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            match self.grow(at) {
                Ok(true) => at += 1,
                Ok(false) if self.prefixes.forget_one() => {}
                Ok(false) => {
                    if self.preempt().is_some_and(|gone| gone < at) {
                        at -= 1;
                    }
                }
                Err(failure) => self.running.remove(at).fail(failure),
            }
        }
    }

    /// Ensures memory for the next step of request `at`. Returns `false` if not enough is free.
    fn grow(&mut self, at: usize) -> Result<bool, Failure> {
        let token_bytes = self.token_bytes;
        let Some(sequence) = self.running.get_mut(at) else { return Ok(true) };
        let (needs, (_, end)) = (sequence.needs(), sequence.extent());
        let Some(memory) = &mut sequence.memory else { return Ok(true) };
        let has = memory.cache.capacity();
        if needs <= has {
            return Ok(true);
        }
        let capacity = (needs + BLOCK).min(end).max(needs);
        if !memory.reservation.grow(Bytes((capacity - has) as u64 * token_bytes)) {
            return Ok(false);
        }
        memory.cache.grow_to(capacity).map_err(|e| Failure::Internal(chain(&e)))?;
        Ok(true)
    }

    /// Preempts one request: it returns to the head of its project's queue, without its memory. Returns the index that
    /// it had.
    fn preempt(&mut self) -> Option<usize> {
        let at = fair_queue::victim(&self.running)?;
        let mut sequence = self.running.remove(at);
        tracing::debug!(tokens = sequence.fed(), "a request is preempted");
        sequence.memory = None;
        sequence.interruptions += 1;
        self.waiting.push_front(sequence);
        Some(at)
    }
}
