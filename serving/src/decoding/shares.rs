//! The shares of an iteration: each request that takes part makes it longer for all.

use std::{collections::BTreeMap, sync::Arc};

use attune_domain::serve::Priority;

use crate::decoding::{
    counters::INPUT_PRICE,
    fair_queue::{Running, Scheduled},
    sequence::CHUNK,
};

/// The number of iterations of which work that yields takes part in one.
const YIELD_TURNS: u64 = 32;
/// The number of answers of batches that take part in every iteration of live requests. A pass with one row more takes
/// little longer, and the batches' projects share it.
const BATCH_ANSWERS: usize = 1;
/// The number of priced tokens by which a project may be ahead of another one before its prompts yield: sixteen chunks,
/// so that a long prompt is not interrupted.
pub(crate) const LEAD: u64 = 16 * CHUNK as u64 * INPUT_PRICE;

/// Returns the indices of the requests that take part in iteration number `turn`, in ascending order: the answers,
/// within each project's share, and one prompt that is still being processed. `served` returns a project's count.
///
/// Batches have all that no live request uses: every iteration while none runs. Otherwise [`BATCH_ANSWERS`] of their
/// answers take part, and in one of [`YIELD_TURNS`] iterations all of them, and a prompt of theirs in place of a live
/// one.
///
/// The prompt of a project yields too, while answers of another project of its class are sampled that has fewer running
/// ones, or was served less by more than [`LEAD`]: a chunk of a prompt takes as long as several tokens.
pub(crate) fn members<T: Scheduled>(requests: &[T], served: impl Fn(&Arc<str>) -> u64, turn: u64) -> Vec<usize> {
    let (running, is_turn) = (Running::of(requests), turn.is_multiple_of(YIELD_TURNS));
    let iteration = Iteration { requests, running, served, is_turn };
    let (live, batch) = (iteration.work(Priority::Live), iteration.work(Priority::Batch));
    let mut members = if live.is_none() {
        iteration.within_shares(batch.with_prompt())
    } else if is_turn {
        let prompt = live.prompt.filter(|_| batch.prompt.is_none());
        let mut members = iteration.within_shares(Work { prompt, ..live }.with_prompt());
        members.extend(iteration.within_shares(batch.with_prompt()));
        members
    } else {
        let mut members = iteration.within_shares(live.with_prompt());
        members.extend(iteration.least_served(batch.answers));
        members
    };
    members.sort_unstable();
    members
}

/// The work of a class that may take part in an iteration.
struct Work {
    /// The indices of the answers.
    answers: Vec<usize>,
    /// The index of the prompt.
    prompt: Option<usize>,
}

impl Work {
    const fn is_none(&self) -> bool {
        self.answers.is_empty() && self.prompt.is_none()
    }

    fn with_prompt(mut self) -> Vec<usize> {
        self.answers.extend(self.prompt);
        self.answers
    }
}

/// The running requests in one iteration.
struct Iteration<'a, T, F> {
    requests: &'a [T],
    running: Running,
    served: F,
    is_turn: bool,
}

impl<T: Scheduled, F: Fn(&Arc<str>) -> u64> Iteration<'_, T, F> {
    fn count(&self, at: usize) -> usize {
        self.running.count(self.requests[at].priority(), self.requests[at].project())
    }

    fn served(&self, at: usize) -> u64 {
        (self.served)(self.requests[at].project())
    }

    /// Returns the answers of a class, and its next prompt, unless that yields. If no answer runs, none yields.
    fn work(&self, class: Priority) -> Work {
        let own = (0..self.requests.len()).filter(|at| self.requests[*at].priority() == class);
        let (reading, answers): (Vec<usize>, Vec<usize>) = own.partition(|at| self.requests[*at].is_reading());
        let first = reading.into_iter().min_by_key(|at| (self.count(*at), self.served(*at), *at));
        let prompt = first.filter(|first| {
            let waits = |at: &usize| {
                let is_other = self.requests[*at].project() != self.requests[*first].project();
                let is_behind =
                    || self.count(*at) < self.count(*first) || self.served(*at) + LEAD < self.served(*first);
                is_other && is_behind()
            };
            self.is_turn || !answers.iter().any(waits)
        });
        Work { answers, prompt }
    }

    /// Returns [`BATCH_ANSWERS`] of `answers`, of the projects that were served least.
    fn least_served(&self, mut answers: Vec<usize>) -> Vec<usize> {
        answers.sort_by_key(|at| (self.served(*at), self.requests[*at].sampled_tokens(), *at));
        answers.truncate(BATCH_ANSWERS);
        answers
    }

    /// Limits every project to the number of members of the project with the fewest. Answers with the fewest sampled
    /// tokens have precedence. A single project has no limit.
    fn within_shares(&self, members: Vec<usize>) -> Vec<usize> {
        let mut projects = BTreeMap::<&Arc<str>, Vec<usize>>::new();
        for &at in &members {
            projects.entry(self.requests[at].project()).or_default().push(at);
        }
        let fewest = projects.values().map(Vec::len).min().unwrap_or(0);
        if projects.len() < 2 {
            return members;
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(members.len());
        for mut of_project in projects.into_values() {
            of_project.sort_by_key(|at| (self.requests[*at].sampled_tokens(), *at));
            chosen.extend(of_project.iter().take(fewest));
        }
        chosen
    }
}
