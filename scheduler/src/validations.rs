//! Slots for concurrent validations. Each project has one: its jobs are validated one after the other, and the
//! remaining slots are for other projects. The projects with waiting jobs take turns.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use attune_dataprep::rows::Stop;
use attune_domain::id::{JobId, ProjectId};

/// The maximum number of concurrent validations, each of another project.
pub(crate) const MAX_VALIDATIONS: usize = 3;

/// The maximum duration of a validation.
const MAX_VALIDATION_TIME: Duration = Duration::from_secs(3600);

/// The validations in progress, and their time limit.
#[derive(Debug, Clone)]
pub(crate) struct Validations {
    turns: Arc<Mutex<Turns>>,
    limit: Duration,
}

/// The projects with a validation in progress, and the order in which projects had one.
#[derive(Debug, Default)]
struct Turns {
    held: HashMap<ProjectId, JobId>,
    /// The number of each project's last turn. A project without waiting jobs is forgotten.
    last: HashMap<ProjectId, u64>,
    count: u64,
}

/// A project's slot. It is released when all clones are dropped: the thread that reads the rows holds one.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    project: ProjectId,
    all: Validations,
    stop: Stop,
}

impl Default for Validations {
    fn default() -> Self {
        Self { turns: Arc::default(), limit: MAX_VALIDATION_TIME }
    }
}

impl Validations {
    /// Creates free slots with another time limit.
    #[cfg(test)]
    pub(crate) fn limited(limit: Duration) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Returns the maximum duration of a validation.
    pub(crate) const fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns the project's slot, if it is free.
    pub(crate) fn enter(&self, project: ProjectId, job: JobId) -> Option<Place> {
        let mut turns = self.turns();
        if turns.held.contains_key(&project) {
            return None;
        }
        turns.held.insert(project, job);
        turns.count += 1;
        let turn = turns.count;
        turns.last.insert(project, turn);
        Some(Place(Arc::new(Held { project, all: self.clone(), stop: Stop::default() })))
    }

    /// Returns the jobs in validation.
    pub(crate) fn jobs(&self) -> Vec<JobId> {
        self.turns().held.values().copied().collect()
    }

    /// Returns the projects with a validation in progress.
    pub(crate) fn busy(&self) -> Vec<ProjectId> {
        self.turns().held.keys().copied().collect()
    }

    /// Selects the next of the waiting jobs, one of each project: that of the project whose last turn is the longest
    /// ago; at a tie, the oldest.
    pub(crate) fn next(&self, waiting: &[(ProjectId, JobId)]) -> Option<JobId> {
        let mut turns = self.turns();
        let Turns { held, last, .. } = &mut *turns;
        last.retain(|project, _| held.contains_key(project) || waiting.iter().any(|(waits, _)| waits == project));
        let turn = |(project, job): &&(ProjectId, JobId)| (last.get(project).copied().unwrap_or(0), *job);
        waiting.iter().min_by_key(turn).map(|&(_, job)| job)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Returns the signal to read no further rows.
    pub(crate) fn stop(&self) -> &Stop {
        &self.0.stop
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.turns().held.remove(&self.project);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(number: u128) -> ProjectId {
        ProjectId::new(uuid::Uuid::from_u128(number))
    }

    fn job(number: u128) -> JobId {
        JobId::new(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn limit_a_project_has_one_place_and_gives_it_back() {
        let (all, [one, other]) = (Validations::default(), [1, 2].map(project));
        let job = job(3);
        let held = all.enter(one, job);
        assert!(held.is_some() && all.enter(one, job).is_none() && all.enter(other, job).is_some());
        assert_eq!((all.jobs(), all.busy()), (vec![job], vec![one]));
        let thread = held.clone();
        drop(held);
        assert!(all.enter(one, job).is_none(), "a thread still reads");
        drop(thread);
        assert!(all.enter(one, job).is_some());
        const { assert!(MAX_VALIDATIONS > 1, "with one place in all a project could hold them all") };
    }

    #[test]
    fn projects_take_turns_however_many_jobs_wait() {
        let all = Validations::default();
        // Project 1 has a long line of older jobs.
        let mut seen = Vec::new();
        for first in [10, 11, 12, 13] {
            let waiting = [(project(1), job(first)), (project(2), job(50)), (project(3), job(40))];
            let waiting: Vec<_> = waiting.into_iter().filter(|(_, job)| !seen.contains(job)).collect();
            let next = all.next(&waiting).unwrap();
            let owner = waiting.iter().find(|&&(_, job)| job == next).unwrap().0;
            drop(all.enter(owner, next));
            seen.push(next);
        }
        assert_eq!(seen, [10, 40, 50, 13].map(job));
        assert_eq!(all.next(&[]), None);
        assert!(all.turns().last.is_empty(), "a project without waiting jobs is forgotten");
    }
}
