//! One forward pass through the decoder for many requests, each with its own adapter.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Instant,
};

use attune_model::{
    adapter::LoraAdapter,
    decoder::{Decoder, Step},
    error::ModelError,
};
use attune_process::{
    error_chain::chain,
    metrics::{BATCH_SIZE, FORWARD_TIME, PROMPT_TOKENS},
};

use crate::{
    adapters::Resident,
    decoding::{drafter::allowance, fair_queue::Scheduled, sequence::Sequence},
    error::Failure,
};

/// Runs the next step of `members` of `running`, given in ascending order. Returns those that are finished, in order.
///
/// If the pass fails, each member's step runs alone, so that only those fail that cause the failure.
pub(crate) fn run(decoder: &Decoder, running: &mut [Sequence], members: &[usize]) -> Vec<usize> {
    match forward(decoder, running, members) {
        Ok(done) => done,
        Err(_) if members.len() > 1 => members.iter().flat_map(|&at| run(decoder, running, &[at])).collect(),
        Err(why) => {
            tracing::error!(why = chain(&why), "a step of the decoder failed");
            let failure = || Failure::Internal(chain(&why));
            members.iter().inspect(|&&at| running[at].fail(failure())).copied().collect()
        }
    }
}

/// Prepares drafts of the answers among `members` of `running`, which the next step verifies.
pub(crate) fn draft(running: &mut [Sequence], members: &[usize]) {
    let answers: Vec<usize> = members.iter().copied().filter(|&at| running[at].is_decoding()).collect();
    let most = allowance(answers.len());
    for at in answers {
        running[at].draft(most);
    }
}

fn forward(decoder: &Decoder, running: &mut [Sequence], members: &[usize]) -> Result<Vec<usize>, ModelError> {
    if members.is_empty() {
        return Ok(Vec::new());
    }
    let began = Instant::now();
    let plans: Vec<Plan> = members.iter().map(|&at| Plan::of(&running[at])).collect();
    let residents = residents(running, members);
    let factors: Vec<MutexGuard<'_, LoraAdapter>> =
        residents.iter().map(|resident| resident.factors.lock().unwrap_or_else(PoisonError::into_inner)).collect();
    let mut steps: Vec<Step<'_>> = Vec::with_capacity(members.len());
    for (at, sequence) in running.iter_mut().enumerate() {
        if members.binary_search(&at).is_err() {
            continue;
        }
        let place =
            sequence.resident().and_then(|wanted| residents.iter().position(|known| Arc::ptr_eq(known, wanted)));
        let adapter = place.map(|place| &*factors[place]);
        steps.extend(sequence.step(adapter));
    }
    let logits = decoder.forward_cached(&mut steps)?; // [rows, v]
    drop(steps);

    PROMPT_TOKENS.add([], plans.iter().map(|plan| plan.prompt_tokens).sum::<usize>() as f64);
    BATCH_SIZE.observe([], members.len() as f64);
    let (rows, width) = logits.size2()?;
    let (rows, width) = (usize::try_from(rows).unwrap_or(0), usize::try_from(width).unwrap_or(0));
    let mut numbers = vec![0f32; rows * width];
    logits.f_copy_data(&mut numbers, rows * width)?;
    let mut done = Vec::new();
    let mut rest = numbers.as_slice();
    for (&at, plan) in members.iter().zip(plans) {
        let (rows, others) = rest.split_at(rest.len().min(plan.rows * width));
        rest = others;
        running[at].score_prompt(plan.from, rows, width);
        if plan.samples && running[at].sample_after(rows, width) {
            done.push(at);
        }
    }
    FORWARD_TIME.observe([], began.elapsed().as_secs_f64());
    Ok(done)
}

/// The properties of a member's step, read before the step changes them.
struct Plan {
    /// The number of tokens in the cache.
    from: usize,
    /// The number of the prompt's tokens in the step.
    prompt_tokens: usize,
    /// The number of rows of logits that the step returns.
    rows: usize,
    /// `true` if tokens are sampled.
    samples: bool,
}

impl Plan {
    fn of(sequence: &Sequence) -> Self {
        let from = sequence.fed();
        let prompt_tokens = if sequence.is_reading() { sequence.needs() - from } else { 0 };
        Self { from, prompt_tokens, rows: sequence.rows(), samples: sequence.samples_next() }
    }
}

/// Returns the adapters of the members, without duplicates.
fn residents(running: &[Sequence], members: &[usize]) -> Vec<Arc<Resident>> {
    let mut all: Vec<Arc<Resident>> = Vec::new();
    for resident in members.iter().filter_map(|&at| running[at].resident()) {
        if !all.iter().any(|known| Arc::ptr_eq(known, resident)) {
            all.push(resident.clone());
        }
    }
    all
}
