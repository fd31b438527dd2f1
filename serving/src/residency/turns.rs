//! The turns of projects for memory: one request of each project and class waits for memory at a time, and the others
//! of the project wait for it. So a project that requests many adapters delays another one by few loads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use attune_domain::serve::Priority;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One permit for each project and class that holds or awaits it.
#[derive(Debug, Default)]
pub(crate) struct ProjectTurns(Mutex<BTreeMap<(String, Priority), Weak<Semaphore>>>);

impl ProjectTurns {
    /// Waits for the permit of a project and a class. It is released when it is dropped. `None`: never, since the
    /// semaphores are never closed.
    pub(crate) async fn turn(&self, project: &str, priority: Priority) -> Option<OwnedSemaphorePermit> {
        self.permits(project, priority).acquire_owned().await.ok()
    }

    fn permits(&self, project: &str, priority: Priority) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, permits| permits.strong_count() > 0);
        let key = (project.to_owned(), priority);
        if let Some(permits) = all.get(&key).and_then(Weak::upgrade) {
            return permits;
        }
        let permits = Arc::new(Semaphore::new(1));
        all.insert(key, Arc::downgrade(&permits));
        permits
    }
}
