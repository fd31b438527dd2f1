//! The engine: one thread that owns the decoder and runs all requests with continuous batching.
//!
//! Each iteration is one forward pass: one token of every running answer, or a few that a draft proposes
//! ([`crate::decoding::drafter`], [`crate::decoding::draft_model`]), and one chunk of one prompt that is still being
//! processed. A request joins between iterations, and leaves when it is finished or its receiver is dropped. Keys and
//! values are in blocks of one pool; requests with a common prefix share its blocks. When blocks are short, cached
//! prefixes are evicted first; then a request is preempted and later resumed where it was.
//!
//! Projects take turns for slots, memory and iterations ([`crate::decoding::fair_queue`],
//! [`crate::decoding::shares`]). No project can hold all slots; a project with nothing running gets a slot immediately,
//! from the project that has the most. Live requests get the slots and the memory of batches.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use attune_domain::{
    bytes::Bytes,
    serve::{KvCacheDtype, Priority},
};
use attune_model::{
    decoder::Decoder,
    error::ModelError,
    nn::kv_cache::{KvCache, KvPool},
};
use attune_process::{
    error_chain::chain,
    metrics::{KV_CACHE_BYTES, KV_CACHE_BYTES_MAX, SEQUENCES_RUNNING, SEQUENCES_WAITING},
};
use tokio::sync::oneshot;

use crate::{
    decoding::{
        draft_model::DraftModel,
        fair_queue::{Running, Scheduled, Turns, victim, victim_for},
        forward_step,
        prefix_cache::{Owner, Prefixes, shared},
        sequence::{GenerateJob, Sequence},
        shares,
    },
    error::Failure,
};

/// The reciprocal of the share of slots that one project cannot hold.
const OTHERS_SHARE: usize = 4;
/// The number of tokens that memory is allocated for ahead of a sequence's own.
const AHEAD: usize = 128;

/// The engine's limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of answers that run concurrently.
    pub max_batch: usize,
    /// The memory for keys and values.
    pub kv_memory: Bytes,
    /// The maximum time that a live request waits for its first slot.
    pub max_wait: Duration,
    /// `true`: tokens of answers are drafted, and several verified in one pass.
    pub speculation: bool,
    /// The number type of keys and values.
    pub kv_cache_dtype: KvCacheDtype,
}

/// The models of an engine.
#[derive(Debug)]
pub struct Models {
    /// The base.
    pub base: Decoder,
    /// The model that drafts tokens where earlier text does not. It is used only with [`Limits::speculation`].
    pub draft: Option<Draft>,
}

/// A draft model.
#[derive(Debug)]
pub struct Draft {
    /// A smaller base with the same tokens.
    pub base: Decoder,
    /// The memory for its keys and values.
    pub kv_memory: Bytes,
}

impl From<Decoder> for Models {
    fn from(base: Decoder) -> Self {
        Self { base, draft: None }
    }
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
/// The thread could not be started, or a decoder cannot be used.
pub fn start(models: Models, limits: Limits) -> std::io::Result<(EngineHandle, oneshot::Receiver<()>)> {
    let (sender, queue) = channel();
    let (alive, ended) = oneshot::channel();
    // The pool belongs to the thread, so only its size leaves it.
    let (built, context) = channel();
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _alive = alive;
        match Engine::new(models, limits) {
            Ok(engine) => {
                let _ = built.send(Ok(engine.context));
                engine.run(&queue);
            }
            Err(why) => {
                let _ = built.send(Err(why));
            }
        }
    })?;
    let context = context.recv().map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
    Ok((EngineHandle { queue: sender, context }, ended))
}

struct Engine {
    decoder: Decoder,
    limits: Limits,
    pool: KvPool,
    /// The maximum number of tokens of one request: the smaller limit of the model and the memory.
    context: usize,
    waiting: Turns<Sequence>,
    /// The running sequences, the oldest first.
    running: Vec<Sequence>,
    /// The number of iterations so far.
    turns: u64,
    prefixes: Prefixes,
    draft: Option<DraftModel>,
}

impl Engine {
    fn new(models: Models, limits: Limits) -> Result<Self, ModelError> {
        let Models { base: decoder, draft } = models;
        let pool = decoder.new_pool(limits.kv_memory, limits.kv_cache_dtype)?;
        let draft = draft.filter(|_| limits.speculation);
        let kv_memory = limits.kv_memory.0 + draft.as_ref().map_or(0, |draft| draft.kv_memory.0);
        let draft = draft.map(|Draft { base, kv_memory }| {
            let pool = base.new_pool(kv_memory, limits.kv_cache_dtype)?;
            DraftModel::new(base, pool, &decoder)
        });
        let draft = draft.transpose()?;
        let positions = usize::try_from(decoder.architecture().max_position_embeddings).unwrap_or(usize::MAX);
        let context = pool.tokens().min(positions);
        KV_CACHE_BYTES_MAX.set([], kv_memory as f64);
        let (waiting, running, prefixes) = (Turns::default(), Vec::new(), Prefixes::default());
        Ok(Self { decoder, limits, pool, context, waiting, running, turns: 0, prefixes, draft })
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
        let drafts = self.draft.as_ref().map_or(0, |draft| draft.pool().used().0);
        KV_CACHE_BYTES.set([], (self.pool.used().0 + drafts) as f64);
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
        self.waiting.retain(&Running::of(&self.running), |sequence| {
            let is_live = sequence.priority() == Priority::Live;
            let late = is_live && !sequence.has_started() && sequence.age() > max_wait;
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
        let members = shares::members(&self.running, |project| self.waiting.served(project), self.turns);
        self.turns += 1;
        for &at in &members {
            let sequence = &mut self.running[at];
            let price = sequence.price();
            self.waiting.charge(sequence.project(), sequence.adapter(), price);
        }
        if self.limits.speculation {
            forward_step::draft(&mut self.running, &members);
        }
        if let Some(draft) = &mut self.draft {
            draft.propose(&mut self.running, &members);
        }
        let is_decoding = members.iter().all(|&at| self.running[at].is_decoding());
        let began = Instant::now();
        let done = forward_step::run(&self.decoder, &mut self.running, &members);
        if let Some(draft) = self.draft.as_mut().filter(|_| is_decoding && !members.is_empty()) {
            draft.observe_target(began.elapsed());
        }
        for &at in &members {
            let sequence = &mut self.running[at];
            let price = sequence.accepted_price();
            self.waiting.charge(sequence.project(), sequence.adapter(), price);
        }
        for at in done.into_iter().rev() {
            self.leave(at);
        }
    }

    /// Removes a finished or abandoned request, and keeps its prompt's cache for later requests.
    fn leave(&mut self, at: usize) {
        let sequence = self.running.remove(at);
        if let Some(cache) = &sequence.cache {
            self.prefixes.keep(Owner::of(&sequence), sequence.prompt(), cache);
        }
    }

    /// Admits waiting requests, in turns, while a slot and memory are free.
    fn admit(&mut self) {
        let most = (self.limits.max_batch - self.limits.max_batch / OTHERS_SHARE).max(1);
        loop {
            let running = Running::of(&self.running);
            let Some(mut sequence) = self.waiting.next(&running, most) else { return };
            if self.running.len() >= self.limits.max_batch && !self.free_slot(&sequence) {
                return self.waiting.push_front(sequence);
            }
            match self.cache_for(&sequence) {
                Ok(Some((cache, cached))) => {
                    sequence.cache = Some(cache);
                    sequence.count_cached(cached);
                    self.running.push(sequence);
                }
                Ok(None) => {
                    let is_freed = self.free_slot(&sequence);
                    self.waiting.push_front(sequence);
                    if !is_freed {
                        return;
                    }
                }
                Err(failure) => sequence.fail(failure),
            }
        }
    }

    /// Preempts an answer so that `sequence` can run. Returns `false` if it has to wait instead.
    fn free_slot(&mut self, sequence: &Sequence) -> bool {
        let Some(at) = victim_for(&self.running, sequence) else { return false };
        self.preempt(at);
        true
    }

    /// Returns the first cache of a sequence, with the longest prefix that another request has processed, and that
    /// prefix's length; `None` if not enough memory is free now.
    fn cache_for(&mut self, sequence: &Sequence) -> Result<Option<(KvCache, usize)>, Failure> {
        let (has, end) = sequence.extent();
        // A preempted sequence requests more each time, so that two sequences do not preempt each other indefinitely.
        let capacity = (has + AHEAD * (1 + sequence.interruptions)).min(end);
        let mut cache = if sequence.wants_prompt_scores() { self.pool.new_cache() } else { self.beginning(sequence) };
        while !grow(&mut cache, capacity)? {
            if !self.prefixes.forget_one() {
                return Ok(None);
            }
        }
        let cached = cache.len();
        Ok(Some((cache, cached)))
    }

    /// Returns a cache with the longest prefix that a running or a cached prompt of the same owner has in common with
    /// this one.
    fn beginning(&mut self, sequence: &Sequence) -> KvCache {
        let (owner, prompt) = (Owner::of(sequence), sequence.prompt());
        let running = self.running.iter().filter(|other| Owner::of(*other) == owner).filter_map(|other| {
            let cache = other.cache.as_ref()?;
            let read = other.fed().min(other.prompt().len());
            Some((shared(prompt, &other.prompt()[..read]), cache))
        });
        let kept = self.prefixes.longest(&owner, prompt).map(|(prefix, length)| (length, &prefix.cache));
        match running.chain(kept).max_by_key(|(length, _)| *length) {
            Some((length, cache)) => cache.share_prefix(length),
            None => self.pool.new_cache(),
        }
    }

    /// Ensures that every running request has memory for its next step; preempts requests if necessary.
    fn ensure_capacity(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            match self.grow(at) {
                Ok(true) => at += 1,
                Ok(false) if self.prefixes.forget_one() => {}
                Ok(false) => {
                    let Some(gone) = victim(&self.running) else { return };
                    self.preempt(gone);
                    if gone < at {
                        at -= 1;
                    }
                }
                Err(failure) => self.running.remove(at).fail(failure),
            }
        }
    }

    /// Ensures memory for the next step of request `at`. Returns `false` if not enough is free.
    fn grow(&mut self, at: usize) -> Result<bool, Failure> {
        let Some(sequence) = self.running.get_mut(at) else { return Ok(true) };
        let (needs, (_, end)) = (sequence.needs(), sequence.extent());
        match &mut sequence.cache {
            Some(cache) if needs > cache.capacity() => grow(cache, (needs + AHEAD).min(end).max(needs)),
            Some(_) | None => Ok(true),
        }
    }

    /// Preempts the request `at`: it returns to the head of its queue, without its memory.
    fn preempt(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        tracing::debug!(tokens = sequence.fed(), "a request is preempted");
        sequence.release();
        self.waiting.push_front(sequence);
    }
}

/// Allocates memory for `capacity` tokens. Returns `false` if not enough is free.
fn grow(cache: &mut KvCache, capacity: usize) -> Result<bool, Failure> {
    cache.grow_to(capacity).map_err(|e| Failure::Internal(chain(&e)))
}
