//! Slots for concurrent validations. Each project has one: its jobs are validated one after the other, and the
//! remaining slots are for other projects.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attune_domain::id::{JobId, ProjectId};

/// The maximum number of concurrent validations, each of another project.
pub(crate) const MAX_VALIDATIONS: usize = 3;

/// The projects with a validation in progress, and its job.
#[derive(Debug, Clone, Default)]
pub(crate) struct Validations(Arc<Mutex<HashMap<ProjectId, JobId>>>);

/// A project's slot; released on drop.
#[derive(Debug)]
pub(crate) struct Place {
    project: ProjectId,
    all: Validations,
}

impl Validations {
    /// Returns the project's slot, if it is free.
    pub(crate) fn enter(&self, project: ProjectId, job: JobId) -> Option<Place> {
        match self.held().entry(project) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(job);
                Some(Place { project, all: self.clone() })
            }
        }
    }

    /// Returns the jobs in validation.
    pub(crate) fn jobs(&self) -> Vec<JobId> {
        self.held().values().copied().collect()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<ProjectId, JobId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.held().remove(&self.project);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_a_project_has_one_place_and_gives_it_back() {
        let (all, [one, other]) = (Validations::default(), [1, 2].map(|n| ProjectId::new(uuid::Uuid::from_u128(n))));
        let job = JobId::new(uuid::Uuid::from_u128(3));
        let held = all.enter(one, job);
        assert!(held.is_some() && all.enter(one, job).is_none() && all.enter(other, job).is_some());
        assert_eq!(all.jobs(), [job]);
        drop(held);
        assert!(all.enter(one, job).is_some());
        const { assert!(MAX_VALIDATIONS > 1, "with one place in all a project could hold them all") };
    }
}
