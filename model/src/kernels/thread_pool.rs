//! Threads that stand ready for work of some ten microseconds. A training step has more than a thousand such pieces of work,
//! and most are done before a thread that sleeps, as those of a thread pool do in between, would have woken.
//!
//! So a helper goes on looking for a while after its last work ([`PATIENCE`]) before it sleeps; and nobody waits for a
//! helper that comes too late: whoever called does all pieces that are left, and goes on.

use std::{
    hint,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// For how long a helper looks for work before it sleeps, if it is to be patient.
const PATIENCE: Duration = Duration::from_micros(200);

/// See [`be_patient`].
static PATIENT: AtomicBool = AtomicBool::new(false);

/// Says whether helpers look for more work for a while, or sleep at once: while libtorch makes the matmuls, its own threads
/// want the processors.
pub(crate) fn be_patient(patient: bool) {
    PATIENT.store(patient, Ordering::Relaxed);
}

/// Looks at the clock are dear; so many looks for work lie between two of them.
const LOOKS: u32 = 64;

/// What is to be done, on each thread that comes in time.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: it leads to something `Sync`.
#[expect(unsafe_code, reason = "a reference would have to name how long it is good for")]
unsafe impl Send for Job {}

/// What caller and helpers share.
#[derive(Default)]
struct Shared {
    /// Counts the jobs.
    round: AtomicU64,
    job: Mutex<Option<Job>>,
    /// Helpers that are at work. Goes up only under the lock of `job`, and only while there is one.
    inside: AtomicUsize,
    failed: AtomicBool,
}

/// The helpers, and the right to call them.
struct Team {
    shared: &'static Shared,
    helpers: Vec<Thread>,
    turn: Mutex<()>,
}

/// Ends the job: from then on no helper is inside or comes in.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        *lock(&self.0.job) = None;
        while self.0.inside.load(Ordering::Acquire) > 0 {
            hint::spin_loop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` for all pieces, this thread and its helpers taking one after the other. Where another caller has the helpers,
/// this thread does all.
///
/// # Panics
/// `work` did, on any thread.
pub(crate) fn at_once<P: Send>(pieces: impl Iterator<Item = P>, work: impl Fn(P) + Sync) {
    let pieces: Vec<P> = pieces.collect();
    let others = pieces.len().saturating_sub(1);
    let pieces = Mutex::new(pieces.into_iter());
    let next = || lock(&pieces).next();
    let all = || {
        while let Some(piece) = next() {
            work(piece);
        }
    };
    if others == 0 {
        return all();
    }
    let team = team();
    match team.turn.try_lock() {
        Ok(_turn) if !team.helpers.is_empty() => team.run(&all, others),
        _ => all(),
    }
}

fn team() -> &'static Team {
    static TEAM: OnceLock<Team> = OnceLock::new();
    TEAM.get_or_init(|| {
        let shared: &'static Shared = Box::leak(Box::default());
        let count = thread::available_parallelism().map_or(0, |threads| threads.get() - 1);
        let helper = |at| thread::Builder::new().name(format!("team-{at}")).spawn(|| help(shared));
        // Fewer helpers are slower, and no mistake.
        let helpers = (1..=count).filter_map(|at| Some(helper(at).ok()?.thread().clone())).collect();
        Team { shared, helpers, turn: Mutex::new(()) }
    })
}

impl Team {
    fn run(&self, work: &(dyn Fn() + Sync), wanted: usize) {
        let shared = self.shared;
        // SAFETY: only how long it is good for is taken off its type. `Closing` takes the job back and waits for whoever
        // is inside, before this function ends in any way.
        #[expect(unsafe_code, reason = "no thread that lives on can hold a borrow of the caller's")]
        let job = Job(unsafe { std::mem::transmute::<*const (dyn Fn() + Sync), *const (dyn Fn() + Sync)>(work) });
        *lock(&shared.job) = Some(job);
        let closing = Closing(shared);
        shared.round.fetch_add(1, Ordering::Release);
        self.helpers.iter().take(wanted).for_each(Thread::unpark);
        work();
        drop(closing);
        assert!(!shared.failed.swap(false, Ordering::Relaxed), "a helper panicked");
    }
}

/// A helper's life.
fn help(shared: &Shared) {
    let mut seen = 0;
    loop {
        seen = next_round(shared, seen);
        let job = {
            let job = lock(&shared.job);
            if job.is_some() {
                shared.inside.fetch_add(1, Ordering::Relaxed);
            }
            *job
        };
        let Some(Job(work)) = job else { continue };
        // SAFETY: the caller waits while somebody is inside, and this thread went in while the job was there.
        #[expect(unsafe_code, reason = "see `Job`")]
        let work = unsafe { &*work };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            shared.failed.store(true, Ordering::Relaxed);
        }
        shared.inside.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for another job than the one of this number.
fn next_round(shared: &Shared, seen: u64) -> u64 {
    let mut since = Instant::now();
    loop {
        for _ in 0..LOOKS {
            let round = shared.round.load(Ordering::Acquire);
            if round != seen {
                return round;
            }
            hint::spin_loop();
        }
        if !PATIENT.load(Ordering::Relaxed) || since.elapsed() > PATIENCE {
            thread::park();
            since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_whoever_calls() {
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for count in (0..200).chain([5000]) {
                        let mut done = vec![0_u32; count];
                        at_once(done.iter_mut().enumerate(), |(at, place)| *place += at as u32 + 1);
                        assert!(done.iter().enumerate().all(|(at, place)| *place == at as u32 + 1));
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_take_their_share() {
        let seen = Mutex::new(std::collections::HashSet::new());
        // A helper that sleeps needs its time; each piece leaves it some.
        at_once(0..50, |_| {
            lock(&seen).insert(thread::current().id());
            thread::sleep(Duration::from_millis(1));
        });
        let threads = thread::available_parallelism().unwrap().get();
        assert!(lock(&seen).len() > 1 || threads == 1);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_ends_nothing() {
        for _ in 0..3 {
            let failed = catch_unwind(|| at_once(0..20, |piece| assert!(piece != 7 && piece != 12)));
            assert!(failed.is_err());
            let done = AtomicUsize::new(0);
            at_once(0..20, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 20);
        }
    }
}
