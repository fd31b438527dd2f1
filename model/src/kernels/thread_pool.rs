//! A thread pool for work of about ten microseconds. A training step has more than a thousand such tasks, and most are
//! done before a sleeping thread, as in an ordinary thread pool, would have woken.
//!
//! So a worker spins for a while after its last task ([`PATIENCE`]) before it sleeps. No caller waits for a worker that
//! is late: the calling thread processes all remaining pieces itself.

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

/// The time for which a patient worker spins before it sleeps.
const PATIENCE: Duration = Duration::from_micros(200);

/// The mode of idle workers, see [`be_patient`].
static PATIENT: AtomicBool = AtomicBool::new(false);

/// Sets whether idle workers spin for a while or sleep immediately. While libtorch computes the matmuls, its own
/// threads need the processors.
pub(crate) fn be_patient(patient: bool) {
    PATIENT.store(patient, Ordering::Relaxed);
}

/// The number of polls between two reads of the clock, which are expensive.
const LOOKS: u32 = 64;

/// A task that each worker runs that is in time.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: the pointer leads to a value that is `Sync`.
#[expect(unsafe_code, reason = "a reference would need a lifetime")]
unsafe impl Send for Job {}

/// The state that the caller and the workers share.
#[derive(Default)]
struct Shared {
    /// The number of jobs started.
    round: AtomicU64,
    job: Mutex<Option<Job>>,
    /// The number of workers that run the job. Incremented only under the lock of `job`, and only while there is a job.
    inside: AtomicUsize,
    failed: AtomicBool,
}

/// The workers, and the lock for using them.
struct ThreadPool {
    shared: &'static Shared,
    workers: Vec<Thread>,
    turn: Mutex<()>,
}

/// Guard that ends the job when it is dropped: afterwards no worker runs it or starts it.
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

/// Calls `work` for all pieces: this thread and the workers each take the next one, together at most as many threads as
/// libtorch has. If another caller uses the workers, this thread does everything.
///
/// # Panics
/// `work` panicked, on any thread.
pub(crate) fn parallel_for<P: Send>(pieces: impl Iterator<Item = P>, work: impl Fn(P) + Sync) {
    let pieces: Vec<P> = pieces.collect();
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let helpers = pieces.len().min(threads).saturating_sub(1);
    let pieces = Mutex::new(pieces.into_iter());
    let next = || lock(&pieces).next();
    let all = || {
        while let Some(piece) = next() {
            work(piece);
        }
    };
    if helpers == 0 {
        return all();
    }
    // A worker that spins sees each job, also if it was not woken for it.
    let joined = AtomicUsize::new(0);
    let help = || {
        if joined.fetch_add(1, Ordering::Relaxed) < helpers {
            all();
        }
    };
    let pool = pool();
    match pool.turn.try_lock() {
        Ok(_turn) if !pool.workers.is_empty() => pool.run(&help, &all, helpers),
        _ => all(),
    }
}

fn pool() -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let shared: &'static Shared = Box::leak(Box::default());
        let count = thread::available_parallelism().map_or(0, |threads| threads.get() - 1);
        let worker = |at| thread::Builder::new().name(format!("worker-{at}")).spawn(|| work_loop(shared));
        // With fewer workers it is slower, but not wrong.
        let workers = (1..=count).filter_map(|at| Some(worker(at).ok()?.thread().clone())).collect();
        ThreadPool { shared, workers, turn: Mutex::new(()) }
    })
}

impl ThreadPool {
    /// Runs `help` on `wanted` workers or fewer, and `own` on this thread.
    fn run(&self, help: &(dyn Fn() + Sync), own: &dyn Fn(), wanted: usize) {
        let shared = self.shared;
        // SAFETY: the cast only removes the lifetime. `Closing` removes the job and waits for the workers that run it,
        // before this function ends in any way.
        #[expect(unsafe_code, reason = "a borrow of the caller cannot be sent to a long-lived thread")]
        let job = Job(unsafe { std::mem::transmute::<*const (dyn Fn() + Sync), *const (dyn Fn() + Sync)>(help) });
        *lock(&shared.job) = Some(job);
        let closing = Closing(shared);
        shared.round.fetch_add(1, Ordering::Release);
        self.workers.iter().take(wanted).for_each(Thread::unpark);
        own();
        drop(closing);
        assert!(!shared.failed.swap(false, Ordering::Relaxed), "a worker panicked");
    }
}

/// Runs a worker.
fn work_loop(shared: &Shared) {
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
        // SAFETY: the caller waits while any worker runs the job, and this thread was counted while the job existed.
        #[expect(unsafe_code, reason = "see `Job`")]
        let work = unsafe { &*work };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            shared.failed.store(true, Ordering::Relaxed);
        }
        shared.inside.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for a job with another number than `seen`.
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
    fn every_piece_is_done_once_in_any_calling_thread() {
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for count in (0..200).chain([5000]) {
                        let mut done = vec![0_u32; count];
                        parallel_for(done.iter_mut().enumerate(), |(at, place)| *place += at as u32 + 1);
                        assert!(done.iter().enumerate().all(|(at, place)| *place == at as u32 + 1));
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_take_their_share() {
        let threads = thread::available_parallelism().unwrap().get();
        tch::set_num_threads(threads as i32);
        let seen = Mutex::new(std::collections::HashSet::new());
        // A sleeping worker needs time to wake; each piece gives it some.
        parallel_for(0..50, |_| {
            lock(&seen).insert(thread::current().id());
            thread::sleep(Duration::from_millis(1));
        });
        assert!(lock(&seen).len() > 1 || threads == 1);
    }

    #[test]
    fn no_more_threads_work_than_libtorch_has() {
        let before = tch::get_num_threads();
        for threads in [1, 2] {
            tch::set_num_threads(threads);
            let seen = Mutex::new(std::collections::HashSet::new());
            parallel_for(0..50, |_| {
                lock(&seen).insert(thread::current().id());
                thread::sleep(Duration::from_millis(1));
            });
            assert!(lock(&seen).len() <= threads as usize);
        }
        tch::set_num_threads(before);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_ends_nothing() {
        for _ in 0..3 {
            let failed = catch_unwind(|| parallel_for(0..20, |piece| assert!(piece != 7 && piece != 12)));
            assert!(failed.is_err());
            let done = AtomicUsize::new(0);
            parallel_for(0..20, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 20);
        }
    }
}
