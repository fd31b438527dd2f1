//! Admission control: limits the answers per project, waiting and running, and the prompts that are prepared
//! concurrently.
//!
//! A request that would exceed a limit is refused immediately, so that its caller can retry later instead of waiting in
//! a queue that stalls.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use attune_domain::serve::Priority;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;

/// The maximum number of answers of a priority class, waiting and running, of all projects.
const MOST_ANSWERS: usize = 2048;
/// The maximum number of answers of a priority class, waiting and running, of one project. Those of batches refuse no
/// live request.
const PROJECT_ANSWERS: usize = 256;
/// The wait for a first slot from which a project's new requests are refused: that of its oldest request, or the one
/// that a new request is expected to have.
const SLOW_QUEUE: Duration = Duration::from_secs(60);
/// The time over which a project's starts are counted, to compute the expected wait of a new request.
const RATE_WINDOW: Duration = Duration::from_secs(20);
/// The number of live prompts that are rendered, tokenized and compiled into grammars concurrently. At most one per
/// project.
const PREPARE_PLACES: usize = 2;
/// The number of prompts of batches that are prepared in addition.
const BATCH_PREPARE_PLACES: usize = 1;

/// The admitted requests of all projects.
#[derive(Debug)]
pub struct Admission {
    books: Mutex<Books>,
    prepare: Arc<Semaphore>,
    prepare_batch: Arc<Semaphore>,
    /// One preparation permit per project that holds or awaits it for live prompts.
    preparing: Mutex<HashMap<String, Weak<Semaphore>>>,
}

#[derive(Debug, Default)]
struct Books {
    answers: Answers,
    requests: u64,
    projects: HashMap<String, Held>,
}

/// The numbers of admitted answers, by priority class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Answers {
    live: usize,
    batch: usize,
}

impl Answers {
    const fn of(&mut self, class: Priority) -> &mut usize {
        match class {
            Priority::Live => &mut self.live,
            Priority::Batch => &mut self.batch,
        }
    }
}

/// The admitted requests of one project.
#[derive(Debug, Default)]
struct Held {
    answers: Answers,
    /// The arrival times of live requests that wait for their first slot, by request number.
    waiting: BTreeMap<u64, Instant>,
    /// The times within [`RATE_WINDOW`] at which requests got their first slot, the oldest first.
    starts: VecDeque<Instant>,
}

impl Held {
    /// Refuses a new live request that would wait too long.
    fn check_wait(&self, now: Instant) -> Result<(), Failure> {
        let oldest = self.waiting.values().next().map(|came| now.saturating_duration_since(*came));
        if let Some(waited) = oldest.filter(|waited| *waited > SLOW_QUEUE) {
            return Err(Failure::ProjectBusy(format!(
                "this project's requests to the model have waited for {} s; a new one would wait too long",
                waited.as_secs()
            )));
        }
        match self.expected_wait(now).filter(|wait| *wait > SLOW_QUEUE) {
            None => Ok(()),
            Some(wait) => Err(Failure::ProjectBusy(format!(
                "at the rate at which this project's requests to the model are answered, a new one would wait for {} s",
                wait.as_secs()
            ))),
        }
    }

    /// Returns the expected wait of a new request: the waiting ones over the rate at which the project's requests
    /// started. `None`: no request has waited for that time.
    fn expected_wait(&self, now: Instant) -> Option<Duration> {
        let oldest = self.waiting.values().next()?;
        if now.saturating_duration_since(*oldest) < RATE_WINDOW {
            return None;
        }
        let is_recent = |start: &&Instant| now.saturating_duration_since(**start) <= RATE_WINDOW;
        let started = self.starts.iter().filter(is_recent).count().max(1);
        Some(RATE_WINDOW.mul_f64(self.waiting.len() as f64 / started as f64))
    }
}

/// The admitted answers of one request. Dropping it releases them.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    project: String,
    priority: Priority,
    answers: usize,
    number: u64,
}

/// A permit to prepare a prompt. Dropping it releases the permit.
#[derive(Debug)]
pub struct Preparing {
    _own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Default for Admission {
    fn default() -> Self {
        let (books, preparing) = (Mutex::default(), Mutex::default());
        let places = |count| Arc::new(Semaphore::new(count));
        Self { books, prepare: places(PREPARE_PLACES), prepare_batch: places(BATCH_PREPARE_PLACES), preparing }
    }
}

impl Admission {
    /// Admits a request with `answers` answers. One of a batch may wait as long as it takes, and delays no live
    /// request.
    ///
    /// # Errors
    /// [`Failure::ProjectBusy`]: the project has too many, or its requests wait too long. [`Failure::ReplicaBusy`]: all
    /// projects together have too many.
    pub fn enter(self: &Arc<Self>, project: &str, priority: Priority, answers: usize) -> Result<Admitted, Failure> {
        let mut books = self.books();
        let (all, now) = (*books.answers.of(priority) + answers, Instant::now());
        if let Some(held) = books.projects.get_mut(project) {
            let has = *held.answers.of(priority);
            if has + answers > PROJECT_ANSWERS {
                return Err(Failure::ProjectBusy(format!(
                    "this project has {has} answers waiting or running on the model, and {answers} more would exceed \
                     the limit of {PROJECT_ANSWERS}"
                )));
            }
            if priority == Priority::Live {
                held.check_wait(now)?;
            }
        }
        if all > MOST_ANSWERS {
            return Err(Failure::ReplicaBusy(format!("the model has {MOST_ANSWERS} answers waiting or running")));
        }
        *books.answers.of(priority) = all;
        books.requests += 1;
        let number = books.requests;
        let held = books.projects.entry(project.to_owned()).or_default();
        *held.answers.of(priority) += answers;
        if priority == Priority::Live {
            held.waiting.insert(number, now);
        }
        drop(books);
        Ok(Admitted { admission: self.clone(), project: project.to_owned(), priority, answers, number })
    }

    /// Waits for a permit to prepare a prompt. A project has one for live prompts, so these wait for each other, and
    /// those of other projects only for the few that are being prepared. Prompts of batches delay no live prompt.
    ///
    /// # Errors
    /// [`Failure::Internal`]: never, since the semaphores are never closed.
    pub async fn prepare(&self, project: &str, priority: Priority) -> Result<Preparing, Failure> {
        let closed = |error: tokio::sync::AcquireError| Failure::Internal(error.to_string());
        if priority == Priority::Batch {
            let all = self.prepare_batch.clone().acquire_owned().await.map_err(closed)?;
            return Ok(Preparing { _own: None, _all: all });
        }
        let own = {
            let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            preparing.retain(|_, place| place.strong_count() > 0);
            let known = preparing.get(project).and_then(Weak::upgrade);
            let own = known.unwrap_or_else(|| Arc::new(Semaphore::new(1)));
            preparing.insert(project.to_owned(), Arc::downgrade(&own));
            own
        };
        let own = own.acquire_owned().await.map_err(closed)?;
        let all = self.prepare.clone().acquire_owned().await.map_err(closed)?;
        Ok(Preparing { _own: Some(own), _all: all })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Records that the request has its first slot.
    pub fn started(&self) {
        let now = Instant::now();
        if let Some(held) = self.admission.books().projects.get_mut(&self.project)
            && held.waiting.remove(&self.number).is_some()
        {
            held.starts.retain(|start| now.saturating_duration_since(*start) <= RATE_WINDOW);
            held.starts.push_back(now);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut books = self.admission.books();
        let all = books.answers.of(self.priority);
        *all = all.saturating_sub(self.answers);
        if let Some(held) = books.projects.get_mut(&self.project) {
            let own = held.answers.of(self.priority);
            *own = own.saturating_sub(self.answers);
            held.waiting.remove(&self.number);
            if held.answers == Answers::default() {
                books.projects.remove(&self.project);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<Admitted, Failure>) -> &'static str {
        result.map_or_else(|failure| failure.code(), |_| "ok")
    }

    #[test]
    fn limit_of_answers_a_project_may_have_and_all_may() {
        let admission = Arc::new(Admission::default());
        let mut all: Vec<_> = (0..2).map(|_| admission.enter("a", Priority::Live, 128).unwrap()).collect();
        assert_eq!(code(admission.enter("a", Priority::Live, 1)), "project_busy");
        assert_eq!(code(admission.enter("b", Priority::Live, 1)), "ok");
        all.pop();
        assert_eq!(code(admission.enter("a", Priority::Live, 128)), "ok");
        all.extend((0..15).map(|project| admission.enter(&project.to_string(), Priority::Live, 128).unwrap()));
        assert_eq!(code(admission.enter("c", Priority::Live, 1)), "replica_busy");
        all.clear();
        assert!(admission.books().projects.is_empty());
        assert_eq!(admission.books().answers, Answers::default());
    }

    #[test]
    fn limit_of_answers_of_batches_refuses_no_live_request() {
        let admission = Arc::new(Admission::default());
        let batch: Vec<_> = (0..2).map(|_| admission.enter("a", Priority::Batch, 128).unwrap()).collect();
        assert_eq!(code(admission.enter("a", Priority::Batch, 1)), "project_busy");
        let live = admission.enter("a", Priority::Live, 256).unwrap();
        assert_eq!(code(admission.enter("a", Priority::Live, 1)), "project_busy");
        drop(batch);
        assert_eq!(admission.books().answers, Answers { live: 256, batch: 0 });
        drop(live);
        assert!(admission.books().projects.is_empty());
    }

    #[test]
    fn limit_of_waiting_refuses_what_would_wait_too_long() {
        let admission = Arc::new(Admission::default());
        let first = admission.enter("a", Priority::Live, 1).unwrap();
        let Some(long_ago) = Instant::now().checked_sub(SLOW_QUEUE + Duration::from_secs(1)) else { return };
        admission.books().projects.get_mut("a").unwrap().waiting.insert(first.number, long_ago);
        assert_eq!(code(admission.enter("a", Priority::Live, 1)), "project_busy");
        assert_eq!(code(admission.enter("b", Priority::Live, 1)), "ok");
        let _batch = admission.enter("a", Priority::Batch, 1).unwrap();
        first.started();
        assert_eq!(admission.books().projects["a"].waiting.len(), 0, "a batch is not waited for");
        assert_eq!(code(admission.enter("a", Priority::Live, 1)), "ok");
    }

    #[test]
    fn limit_of_the_expected_wait_refuses_at_once_what_would_wait_too_long() {
        let admission = Arc::new(Admission::default());
        let waiting: Vec<_> = (0..64).map(|_| admission.enter("a", Priority::Live, 1).unwrap()).collect();
        let Some(before) = Instant::now().checked_sub(RATE_WINDOW) else { return };
        assert_eq!(code(admission.enter("a", Priority::Live, 1)), "ok", "no request has waited for long");
        admission.books().projects.get_mut("a").unwrap().waiting.values_mut().for_each(|came| *came = before);
        // One starts in 20 s: 63 would wait for 1,260 s. If 21 start in 20 s, 43 wait for 40 s.
        waiting[0].started();
        let Err(Failure::ProjectBusy(why)) = admission.enter("a", Priority::Live, 1) else { panic!("admitted") };
        assert!(why.ends_with("would wait for 1260 s"), "{why}");
        assert_eq!(code(admission.enter("a", Priority::Batch, 1)), "ok");
        waiting[1..21].iter().for_each(Admitted::started);
        assert_eq!(code(admission.enter("a", Priority::Live, 1)), "ok");
    }

    /// A project with many prompts leaves a permit for other projects.
    #[tokio::test]
    async fn limit_of_places_to_prepare_leaves_one_to_others() {
        let admission = Arc::new(Admission::default());
        let first = admission.prepare("a", Priority::Live).await.unwrap();
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let admission = admission.clone();
                tokio::spawn(async move { admission.prepare("a", Priority::Live).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let other = admission.prepare("b", Priority::Live).await.unwrap();
        // A prompt of a batch has a permit of its own.
        let _batch = admission.prepare("a", Priority::Batch).await.unwrap();
        assert!(waiting.iter().all(|one| !one.is_finished()));
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, admission.prepare("c", Priority::Live)).await.is_err());
        drop((first, other));
        tokio::time::timeout(Duration::from_secs(5), admission.prepare("c", Priority::Live)).await.unwrap().unwrap();
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
