//! The places of copies of requests to shadows. A place is held from the beginning of the answer until the copy is
//! compared, so a project whose clients read slowly holds its places for long, and none of other projects.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attune_domain::id::ProjectId;

/// The maximum number of requests that one process copies to shadows at the same time, those included whose answer is
/// still being sent.
const SHADOWS: usize = 64;
/// The maximum number of them of one project.
const PROJECT_SHADOWS: usize = 8;

/// The places of one process. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShadowPlaces {
    held: Arc<Mutex<HashMap<ProjectId, usize>>>,
}

/// A place. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct ShadowPlace {
    places: ShadowPlaces,
    project: ProjectId,
}

impl ShadowPlaces {
    /// Returns a place for a copy of a project's request, if one is free.
    pub(crate) fn take(&self, project: ProjectId) -> Option<ShadowPlace> {
        let mut held = self.held();
        let (all, own) = (held.values().sum::<usize>(), held.get(&project).copied().unwrap_or(0));
        if all >= SHADOWS || own >= PROJECT_SHADOWS {
            return None;
        }
        held.insert(project, own + 1);
        Some(ShadowPlace { places: self.clone(), project })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<ProjectId, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ShadowPlace {
    fn drop(&mut self) {
        let mut held = self.places.held();
        if let Some(own) = held.get_mut(&self.project) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.project);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn take(places: &ShadowPlaces, project: usize) -> Option<ShadowPlace> {
        places.take(ProjectId::new(Uuid::from_u128(project as u128)))
    }

    #[test]
    fn limit_copies_of_one_project_leave_places_to_others() {
        let places = ShadowPlaces::default();
        let mut own: Vec<_> = (0..PROJECT_SHADOWS).map(|_| take(&places, 0).unwrap()).collect();
        assert!(take(&places, 0).is_none());
        assert!(take(&places, 1).is_some());
        own.pop();
        own.push(take(&places, 0).unwrap());
        let others: Vec<_> = (PROJECT_SHADOWS..SHADOWS).map(|at| take(&places, at).unwrap()).collect();
        assert!(take(&places, 1).is_none(), "all places are taken");
        drop((own, others));
        assert!(places.held().is_empty());
    }
}
