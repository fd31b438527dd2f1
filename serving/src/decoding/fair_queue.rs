//! The fair queue: projects take turns, and within a project its adapters do. Live requests precede those of batches.
//!
//! Of each class, the project with the fewest running answers is next; of several, the one that was served least, in
//! priced tokens ([`crate::decoding::counters`]); of its adapters, the one that was served least.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use attune_domain::serve::{AdapterKey, Priority};

use crate::decoding::counters::Counters;

/// The properties of a request that its turns depend on.
pub(crate) trait Scheduled {
    /// Returns the project of the request.
    fn project(&self) -> &Arc<str>;
    /// Returns the adapter of the request.
    fn adapter(&self) -> Option<AdapterKey>;
    /// Returns the priority class of the request.
    fn priority(&self) -> Priority;
    /// Returns whether the prompt is still being processed.
    fn is_reading(&self) -> bool;
    /// Returns the number of sampled tokens.
    fn sampled_tokens(&self) -> usize;
}

/// The running answers of each class and project, and the adapters that they use.
pub(crate) struct Running {
    counts: BTreeMap<(Priority, Arc<str>), usize>,
    adapters: BTreeSet<(Arc<str>, Option<AdapterKey>)>,
}

impl Running {
    /// Counts the running answers.
    pub(crate) fn of<T: Scheduled>(requests: &[T]) -> Self {
        let (mut counts, mut adapters) = (BTreeMap::new(), BTreeSet::new());
        for request in requests {
            *counts.entry((request.priority(), request.project().clone())).or_default() += 1;
            adapters.insert((request.project().clone(), request.adapter()));
        }
        Self { counts, adapters }
    }

    /// Returns the number of a project's running answers of one class.
    pub(crate) fn count(&self, class: Priority, project: &Arc<str>) -> usize {
        self.counts.get(&(class, project.clone())).copied().unwrap_or(0)
    }

    fn holds(&self, project: &Arc<str>) -> bool {
        [Priority::Live, Priority::Batch].iter().any(|class| self.count(*class, project) > 0)
    }
}

/// The waiting requests of all projects.
pub(crate) struct Turns<T> {
    projects: BTreeMap<Arc<str>, Queues<T>>,
    served: Counters<Arc<str>>,
}

/// The waiting requests of one project.
struct Queues<T> {
    adapters: BTreeMap<Option<AdapterKey>, Lanes<T>>,
    served: Counters<Option<AdapterKey>>,
}

/// The waiting requests of one adapter, the oldest first. Preempted ones precede those that never ran.
struct Lanes<T> {
    live: VecDeque<T>,
    batch: VecDeque<T>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { projects: BTreeMap::new(), served: Counters::default() }
    }
}

impl<T> Default for Queues<T> {
    fn default() -> Self {
        Self { adapters: BTreeMap::new(), served: Counters::default() }
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { live: VecDeque::new(), batch: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    fn of(&self, class: Priority) -> &VecDeque<T> {
        match class {
            Priority::Live => &self.live,
            Priority::Batch => &self.batch,
        }
    }

    fn of_mut(&mut self, class: Priority) -> &mut VecDeque<T> {
        match class {
            Priority::Live => &mut self.live,
            Priority::Batch => &mut self.batch,
        }
    }

    fn len(&self) -> usize {
        self.live.len() + self.batch.len()
    }
}

impl<T> Queues<T> {
    fn len(&self) -> usize {
        self.adapters.values().map(Lanes::len).sum()
    }

    fn waits(&self, class: Priority) -> bool {
        self.adapters.values().any(|lanes| !lanes.of(class).is_empty())
    }

    /// Removes and returns the next request of a class, of the adapter that was served least.
    fn pop(&mut self, class: Priority) -> Option<T> {
        let waiting = self.adapters.iter_mut().filter(|(_, lanes)| !lanes.of(class).is_empty());
        let (_, lanes) = waiting.min_by_key(|(adapter, _)| self.served.served(adapter))?;
        lanes.of_mut(class).pop_front()
    }
}

impl<T: Scheduled> Turns<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of waiting requests.
    pub(crate) fn len(&self) -> usize {
        self.projects.values().map(Queues::len).sum()
    }

    /// Appends a request to its queue.
    pub(crate) fn push_back(&mut self, request: T) {
        self.lane(&request).push_back(request);
    }

    /// Prepends a request to its queue.
    pub(crate) fn push_front(&mut self, request: T) {
        self.lane(&request).push_front(request);
    }

    /// Adds the price of work to the counts of a project and of its adapter.
    pub(crate) fn charge(&mut self, project: &Arc<str>, adapter: Option<AdapterKey>, price: u64) {
        self.served.charge(project, price);
        self.projects.entry(project.clone()).or_default().served.charge(&adapter, price);
    }

    /// Returns a project's count.
    pub(crate) fn served(&self, project: &Arc<str>) -> u64 {
        self.served.served(project)
    }

    /// Keeps the requests for which `wanted` returns `true`, and removes projects with nothing waiting or running.
    pub(crate) fn retain(&mut self, running: &Running, mut wanted: impl FnMut(&T) -> bool) {
        for (project, queues) in &mut self.projects {
            for lanes in queues.adapters.values_mut() {
                lanes.live.retain(&mut wanted);
                lanes.batch.retain(&mut wanted);
            }
            queues.adapters.retain(|_, lanes| lanes.len() > 0);
            let Queues { adapters, served } = queues;
            let runs = |adapter: &Option<AdapterKey>| running.adapters.contains(&(project.clone(), *adapter));
            served.settle(|adapter| adapters.contains_key(adapter) || runs(adapter));
        }
        self.projects.retain(|project, queues| queues.len() > 0 || running.holds(project));
        let Self { projects, served } = self;
        served.settle(|project| projects.contains_key(project));
    }

    /// Removes and returns the next request, of a project with fewer than `most` running ones of its class.
    pub(crate) fn next(&mut self, running: &Running, most: usize) -> Option<T> {
        [Priority::Live, Priority::Batch].into_iter().find_map(|class| self.next_of(class, running, most))
    }

    fn next_of(&mut self, class: Priority, running: &Running, most: usize) -> Option<T> {
        let count = |project: &Arc<str>| running.count(class, project);
        let may = self.projects.iter().filter(|(project, queues)| queues.waits(class) && count(project) < most);
        let (project, _) = may.min_by_key(|(project, _)| (count(project), self.served(project)))?;
        let project = project.clone();
        self.projects.get_mut(&project)?.pop(class)
    }

    fn lane(&mut self, request: &T) -> &mut VecDeque<T> {
        let (project, adapter) = (request.project(), request.adapter());
        self.served.lift(project);
        let queues = self.projects.entry(project.clone()).or_default();
        queues.served.lift(&adapter);
        queues.adapters.entry(adapter).or_default().of_mut(request.priority())
    }
}

/// Returns the index of the request to preempt when memory is short: of a batch, if one runs; the youngest of the
/// project with the most running ones, so that no project loses its only one to a project that has several. `None`:
/// nothing runs.
pub(crate) fn victim<T: Scheduled>(requests: &[T]) -> Option<usize> {
    let running = Running::of(requests);
    let rank = |at: &usize| {
        let request = &requests[*at];
        (request.priority(), running.count(request.priority(), request.project()), *at)
    };
    (0..requests.len()).max_by_key(rank)
}

/// Returns the index of the request to preempt so that `waiting` can run. A live request gets the place of any request
/// of a batch. Otherwise a project with nothing running gets a place of one with several, within the class. `None`: the
/// request has to wait.
pub(crate) fn victim_for<T: Scheduled>(requests: &[T], waiting: &T) -> Option<usize> {
    let running = Running::of(requests);
    let at = victim(requests)?;
    let (class, count) = (requests[at].priority(), running.count(requests[at].priority(), requests[at].project()));
    let has_none = running.count(waiting.priority(), waiting.project()) == 0;
    let may = match (waiting.priority(), class) {
        (Priority::Live, Priority::Batch) => true,
        (Priority::Batch, Priority::Live) => false,
        (Priority::Live, Priority::Live) | (Priority::Batch, Priority::Batch) => has_none && count > 1,
    };
    may.then_some(at)
}

#[cfg(test)]
mod tests;
