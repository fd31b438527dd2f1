//! Admission control: limits the answers per project, waiting and running, and the prompts that are prepared
//! concurrently.
//!
//! A request that would exceed a limit is refused immediately, so that its caller can retry later instead of waiting in
//! a queue that stalls.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;

/// The maximum number of answers, waiting and running, of all projects.
const MOST_ANSWERS: usize = 2048;
/// The maximum number of answers, waiting and running, of one project.
const PROJECT_ANSWERS: usize = 256;
/// The wait of a project's oldest request for its first slot from which the project's new requests are refused.
const SLOW_QUEUE: Duration = Duration::from_secs(60);
/// The number of prompts that are rendered, tokenized and compiled into grammars concurrently. At most one per project.
const PREPARE_PLACES: usize = 2;

/// The admitted requests of all projects.
#[derive(Debug)]
pub struct Admission {
    books: Mutex<Books>,
    prepare: Arc<Semaphore>,
    /// One preparation permit per project that holds or awaits it.
    preparing: Mutex<HashMap<String, Weak<Semaphore>>>,
}

#[derive(Debug, Default)]
struct Books {
    answers: usize,
    requests: u64,
    projects: HashMap<String, Held>,
}

/// The admitted requests of one project.
#[derive(Debug, Default)]
struct Held {
    answers: usize,
    /// The arrival times of requests that wait for their first slot, by request number.
    waiting: BTreeMap<u64, Instant>,
}

/// The admitted answers of one request. Dropping it releases them.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    project: String,
    answers: usize,
    number: u64,
}

/// A permit to prepare a prompt. Dropping it releases the permit.
#[derive(Debug)]
pub struct Preparing {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Default for Admission {
    fn default() -> Self {
        let (books, preparing) = (Mutex::default(), Mutex::default());
        Self { books, prepare: Arc::new(Semaphore::new(PREPARE_PLACES)), preparing }
    }
}

impl Admission {
    /// Admits a request with `answers` answers.
    ///
    /// # Errors
    /// [`Failure::ProjectBusy`]: the project has too many, or its requests wait too long. [`Failure::ReplicaBusy`]: all
    /// projects together have too many.
    pub fn enter(self: &Arc<Self>, project: &str, answers: usize) -> Result<Admitted, Failure> {
        let mut books = self.books();
        let (all, now) = (books.answers + answers, Instant::now());
        if let Some(held) = books.projects.get(project) {
            let has = held.answers;
            if has + answers > PROJECT_ANSWERS {
                return Err(Failure::ProjectBusy(format!(
                    "this project has {has} answers waiting or running on the model, and {answers} more would exceed \
                     the limit of {PROJECT_ANSWERS}"
                )));
            }
            let oldest = held.waiting.values().next().map(|came| now.saturating_duration_since(*came));
            if let Some(waited) = oldest.filter(|waited| *waited > SLOW_QUEUE) {
                return Err(Failure::ProjectBusy(format!(
                    "this project's requests to the model have waited for {} s; a new one would wait too long",
                    waited.as_secs()
                )));
            }
        }
        if all > MOST_ANSWERS {
            return Err(Failure::ReplicaBusy(format!("the model has {MOST_ANSWERS} answers waiting or running")));
        }
        books.answers = all;
        books.requests += 1;
        let number = books.requests;
        let held = books.projects.entry(project.to_owned()).or_default();
        held.answers += answers;
        held.waiting.insert(number, now);
        drop(books);
        Ok(Admitted { admission: self.clone(), project: project.to_owned(), answers, number })
    }

    /// Waits for a permit to prepare a prompt. A project has one, so its prompts wait for each other, and those of
    /// other projects only for the few that are being prepared.
    ///
    /// # Errors
    /// [`Failure::Internal`]: never, since the semaphores are never closed.
    pub async fn prepare(&self, project: &str) -> Result<Preparing, Failure> {
        let own = {
            let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            preparing.retain(|_, place| place.strong_count() > 0);
            let known = preparing.get(project).and_then(Weak::upgrade);
            let own = known.unwrap_or_else(|| Arc::new(Semaphore::new(1)));
            preparing.insert(project.to_owned(), Arc::downgrade(&own));
            own
        };
        let closed = |error: tokio::sync::AcquireError| Failure::Internal(error.to_string());
        let own = own.acquire_owned().await.map_err(closed)?;
        let all = self.prepare.clone().acquire_owned().await.map_err(closed)?;
        Ok(Preparing { _own: own, _all: all })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Records that the request has its first slot.
    pub fn started(&self) {
        if let Some(held) = self.admission.books().projects.get_mut(&self.project) {
            held.waiting.remove(&self.number);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut books = self.admission.books();
        books.answers -= self.answers.min(books.answers);
        if let Some(held) = books.projects.get_mut(&self.project) {
            held.answers -= self.answers.min(held.answers);
            held.waiting.remove(&self.number);
            if held.answers == 0 {
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
        let mut all: Vec<_> = (0..2).map(|_| admission.enter("a", 128).unwrap()).collect();
        assert_eq!(code(admission.enter("a", 1)), "project_busy");
        assert_eq!(code(admission.enter("b", 1)), "ok");
        all.pop();
        assert_eq!(code(admission.enter("a", 128)), "ok");
        all.extend((0..15).map(|project| admission.enter(&project.to_string(), 128).unwrap()));
        assert_eq!(code(admission.enter("c", 1)), "replica_busy");
        all.clear();
        assert!(admission.books().projects.is_empty());
        assert_eq!(admission.books().answers, 0);
    }

    #[test]
    fn limit_of_waiting_refuses_what_would_wait_too_long() {
        let admission = Arc::new(Admission::default());
        let first = admission.enter("a", 1).unwrap();
        let Some(long_ago) = Instant::now().checked_sub(SLOW_QUEUE + Duration::from_secs(1)) else { return };
        admission.books().projects.get_mut("a").unwrap().waiting.insert(first.number, long_ago);
        assert_eq!(code(admission.enter("a", 1)), "project_busy");
        assert_eq!(code(admission.enter("b", 1)), "ok");
        first.started();
        assert_eq!(code(admission.enter("a", 1)), "ok");
    }

    /// A project with many prompts leaves a permit for other projects.
    #[tokio::test]
    async fn limit_of_places_to_prepare_leaves_one_to_others() {
        let admission = Arc::new(Admission::default());
        let first = admission.prepare("a").await.unwrap();
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let admission = admission.clone();
                tokio::spawn(async move { admission.prepare("a").await })
            })
            .collect();
        tokio::task::yield_now().await;
        let other = admission.prepare("b").await.unwrap();
        assert!(waiting.iter().all(|one| !one.is_finished()));
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, admission.prepare("c")).await.is_err());
        drop((first, other));
        tokio::time::timeout(Duration::from_secs(5), admission.prepare("c")).await.unwrap().unwrap();
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
