//! The fair queue: projects take turns, and each has a queue of its own.
//!
//! The project with the fewest running answers is next; of several, the one that was served least, in processed and
//! sampled tokens. A project that returns after a pause starts with the count of the least served project: idle time
//! gives no credit, so it cannot block projects that were busy meanwhile.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::decoding::sequence::Sequence;

/// The number of running answers per project.
pub(crate) type Running = BTreeMap<Arc<str>, usize>;

/// Counts the running answers of each project.
pub(crate) fn running(sequences: &[Sequence]) -> Running {
    let mut running = Running::new();
    for sequence in sequences {
        *running.entry(sequence.project().clone()).or_default() += 1;
    }
    running
}

/// The waiting sequences of all projects.
#[derive(Default)]
pub(crate) struct Turns {
    queues: BTreeMap<Arc<str>, Queue>,
}

#[derive(Default)]
struct Queue {
    /// The waiting sequences, the oldest first. Preempted sequences precede those that never ran.
    waiting: VecDeque<Sequence>,
    /// The number of tokens processed and sampled for the project.
    served: u64,
}

impl Turns {
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.values().all(|queue| queue.waiting.is_empty())
    }

    /// Returns the number of waiting sequences.
    pub(crate) fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.waiting.len()).sum()
    }

    /// Appends a sequence to its project's queue.
    pub(crate) fn push_back(&mut self, sequence: Sequence) {
        self.queue(sequence.project().clone()).waiting.push_back(sequence);
    }

    /// Prepends a sequence to its project's queue.
    pub(crate) fn push_front(&mut self, sequence: Sequence) {
        self.queue(sequence.project().clone()).waiting.push_front(sequence);
    }

    /// Adds processed or sampled tokens to a project's count.
    pub(crate) fn charge(&mut self, project: &Arc<str>, tokens: usize) {
        self.queue(project.clone()).served += tokens as u64;
    }

    /// Returns the number of tokens processed and sampled for a project.
    pub(crate) fn served(&self, project: &str) -> u64 {
        self.queues.get(project).map_or(0, |queue| queue.served)
    }

    /// Keeps the sequences for which `wanted` returns `true`, and removes projects with nothing waiting or running.
    pub(crate) fn retain(&mut self, running: &Running, mut wanted: impl FnMut(&Sequence) -> bool) {
        for queue in self.queues.values_mut() {
            queue.waiting.retain(&mut wanted);
        }
        self.queues.retain(|project, queue| !queue.waiting.is_empty() || running.contains_key(project));
    }

    /// Removes and returns the next sequence, of a project with fewer than `most` running.
    pub(crate) fn next(&mut self, running: &Running, most: usize) -> Option<Sequence> {
        let count = |project: &Arc<str>| running.get(project).copied().unwrap_or(0);
        let may = self.queues.iter().filter(|(project, queue)| !queue.waiting.is_empty() && count(project) < most);
        let (project, _) = may.min_by_key(|(project, queue)| (count(project), queue.served))?;
        let project = project.clone();
        self.queues.get_mut(&project)?.waiting.pop_front()
    }

    fn queue(&mut self, project: Arc<str>) -> &mut Queue {
        let least = self.queues.values().map(|queue| queue.served).min().unwrap_or(0);
        self.queues.entry(project).or_insert_with(|| Queue { waiting: VecDeque::new(), served: least })
    }
}

/// Limits every project in an iteration to the number of answers of the project with the fewest, since each answer
/// makes the iteration longer for all. Answers with the fewest sampled tokens have precedence. A single project has no
/// limit.
pub(crate) fn within_shares(sequences: &[Sequence], members: Vec<usize>) -> Vec<usize> {
    let mut projects = BTreeMap::<&Arc<str>, Vec<usize>>::new();
    for &at in &members {
        projects.entry(sequences[at].project()).or_default().push(at);
    }
    let fewest = projects.values().map(Vec::len).min().unwrap_or(0);
    if projects.len() < 2 {
        return members;
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(members.len());
    for mut of_project in projects.into_values() {
        of_project.sort_by_key(|at| (sequences[*at].sampled_tokens(), *at));
        chosen.extend(of_project.iter().take(fewest));
    }
    chosen.sort_unstable();
    chosen
}

/// Returns the index of the sequence to preempt: the youngest of the project with the most running answers, so that no
/// project loses its only one to a project that has several. `None`: nothing runs.
pub(crate) fn victim(sequences: &[Sequence]) -> Option<usize> {
    let running = running(sequences);
    let count = |at: &usize| running.get(sequences[*at].project()).copied().unwrap_or(0);
    (0..sequences.len()).max_by_key(|at| (count(at), *at))
}
