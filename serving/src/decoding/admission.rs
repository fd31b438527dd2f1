//! Who may come in: how many answers a project may have here, waiting and running, and how many prompts are prepared at
//! once.
//!
//! A request that would exceed a bound is refused at once, so that its caller knows when to come again instead of waiting
//! behind a queue that does not move.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;

/// The most answers, waiting and running, of all projects.
const MOST_ANSWERS: usize = 2048;
/// The most answers, waiting and running, of one project.
const PROJECT_ANSWERS: usize = 256;
/// While a project's oldest request has waited so long for its first place, the project's new ones are refused.
const SLOW_QUEUE: Duration = Duration::from_secs(60);
/// Prompts that are rendered and tokenised, and grammars that are made, at once. One for each project.
const PREPARE_PLACES: usize = 2;

/// All that is admitted.
#[derive(Debug)]
pub struct Admission {
    books: Mutex<Books>,
    prepare: Arc<Semaphore>,
    /// One place to prepare for each project that has or wants one.
    preparing: Mutex<HashMap<String, Weak<Semaphore>>>,
}

#[derive(Debug, Default)]
struct Books {
    answers: usize,
    requests: u64,
    projects: HashMap<String, Held>,
}

/// What a project has here.
#[derive(Debug, Default)]
struct Held {
    answers: usize,
    /// When its requests came that have no place yet, in order.
    waiting: BTreeMap<u64, Instant>,
}

/// The answers of one request. Dropping it gives them back.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    project: String,
    answers: usize,
    number: u64,
}

/// A place to prepare a prompt. Dropping it gives it back.
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
    /// Admits a request with so many answers.
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
                    "this project has {has} answers waiting or running on the model, and {answers} more would exceed the \
                     limit of {PROJECT_ANSWERS}"
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

    /// Waits for a place to prepare a prompt. A project has one, so one project's prompts wait for each other, and
    /// another's only for the few that are being prepared.
    ///
    /// # Errors
    /// [`Failure::Internal`]: never, as the places are never closed.
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
    /// The request has its first place.
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

    /// However many prompts a project has, another's is prepared beside one of them.
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
