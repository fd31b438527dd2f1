//! Who comes next: projects take turns, and each has a queue of its own.
//!
//! The project with the fewest running answers comes first; of several, the one that was served least, in tokens read and
//! drawn. One that comes back after a pause begins with what the least served of the others has: idle time gives no
//! credit, so it cannot hold up those that were busy meanwhile.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::decoding::sequence::Sequence;

/// Answers of each project that are running.
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
    /// The oldest in front; those that gave way stand before those that never ran.
    waiting: VecDeque<Sequence>,
    /// Tokens that were read and drawn for the project.
    served: u64,
}

impl Turns {
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.values().all(|queue| queue.waiting.is_empty())
    }

    /// Puts a sequence behind those of its project.
    pub(crate) fn push_back(&mut self, sequence: Sequence) {
        self.queue(sequence.project().clone()).waiting.push_back(sequence);
    }

    /// Puts a sequence before those of its project.
    pub(crate) fn push_front(&mut self, sequence: Sequence) {
        self.queue(sequence.project().clone()).waiting.push_front(sequence);
    }

    /// Notes that tokens were read or drawn for a project.
    pub(crate) fn charge(&mut self, project: &Arc<str>, tokens: usize) {
        self.queue(project.clone()).served += tokens as u64;
    }

    /// Tokens that were read and drawn for a project.
    pub(crate) fn served(&self, project: &str) -> u64 {
        self.queues.get(project).map_or(0, |queue| queue.served)
    }

    /// Keeps the sequences that are wanted, and forgets projects that neither wait nor run.
    pub(crate) fn retain(&mut self, running: &Running, mut wanted: impl FnMut(&Sequence) -> bool) {
        for queue in self.queues.values_mut() {
            queue.waiting.retain(&mut wanted);
        }
        self.queues.retain(|project, queue| !queue.waiting.is_empty() || running.contains_key(project));
    }

    /// The next sequence, of a project with less than `most` running.
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

/// Lets no project take part in a turn with more answers than the project with the fewest, since each answer makes the
/// turn longer for all; those with the fewest tokens come first. A project alone has no such bound.
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
        of_project.sort_by_key(|at| (sequences[*at].drawn_tokens(), *at));
        chosen.extend(of_project.iter().take(fewest));
    }
    chosen.sort_unstable();
    chosen
}

/// The sequence that gives way: the youngest of the project with the most running answers, so that nobody loses the last
/// one to another who has several. `None`: nothing runs.
pub(crate) fn victim(sequences: &[Sequence]) -> Option<usize> {
    let running = running(sequences);
    let count = |at: &usize| running.get(sequences[*at].project()).copied().unwrap_or(0);
    (0..sequences.len()).max_by_key(|at| (count(at), *at))
}
