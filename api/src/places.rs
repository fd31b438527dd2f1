//! Slots for work that needs much memory or processor time: a limit for all projects, and a lower one for each, so that
//! no project blocks the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use attune_domain::id::ProjectId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::error::ApiError;

/// The time for which a request waits for a slot, in seconds.
const PATIENCE_SECONDS: u64 = 30;

/// The slots for one kind of work.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    of_project: usize,
    projects: Mutex<HashMap<ProjectId, Arc<Semaphore>>>,
    patience: Duration,
}

/// A slot, which is freed when this is dropped.
#[derive(Debug)]
pub struct Place {
    _of_project: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Places {
    /// Creates `all` slots, of which a project holds at most `of_project`.
    #[must_use]
    pub fn new(all: usize, of_project: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            of_project,
            projects: Mutex::default(),
            patience: Duration::from_secs(PATIENCE_SECONDS),
        }
    }

    /// Takes a slot for `work` of the project; waits while all are taken.
    ///
    /// # Errors
    /// [`ApiError::Busy`]: no slot was freed in time.
    pub async fn take(&self, project: ProjectId, work: &str) -> Result<Place, ApiError> {
        let own = self.own(project);
        let both = async {
            let of_project = own.acquire_owned().await.map_err(ApiError::internal)?;
            let of_all = Arc::clone(&self.all).acquire_owned().await.map_err(ApiError::internal)?;
            Ok(Place { _of_project: of_project, _of_all: of_all })
        };
        timeout(self.patience, both).await.unwrap_or_else(|_| {
            let message = format!("All slots for {work} were in use for {PATIENCE_SECONDS} s. Retry later.");
            Err(ApiError::Busy { message, retry_after_seconds: PATIENCE_SECONDS })
        })
    }

    fn own(&self, project: ProjectId) -> Arc<Semaphore> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        projects.retain(|_, own| Arc::strong_count(own) > 1);
        Arc::clone(projects.entry(project).or_insert_with(|| Arc::new(Semaphore::new(self.of_project))))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn limit_one_project_does_not_hold_all_places() {
        let (one, other) = (ProjectId::new(Uuid::from_u128(1)), ProjectId::new(Uuid::from_u128(2)));
        let places = Places { patience: Duration::from_millis(50), ..Places::new(2, 1) };
        let first = places.take(one, "imports").await.unwrap();
        let refused = places.take(one, "imports").await.unwrap_err();
        assert!(matches!(refused, ApiError::Busy { .. }), "{refused}");
        let theirs = places.take(other, "imports").await.unwrap();
        drop(first);
        let again = places.take(one, "imports").await.unwrap();
        drop((theirs, again));
        assert_eq!(places.projects.lock().unwrap().len(), 2);
        drop(places.take(one, "imports").await.unwrap());
        assert!(places.projects.lock().unwrap().len() <= 1, "what nobody holds is forgotten");
    }
}
