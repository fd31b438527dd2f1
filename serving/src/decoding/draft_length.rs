//! The length of the drafts of a draft model, for one sequence: as many tokens as make decoding fastest, by the rate at
//! which the sequence's drafts are accepted and by the time of the draft's steps. Where no length pays, there are none.
//!
//! Source: Leviathan et al., arXiv:2211.17192, §3.3, theorem 3.8: with the acceptance `α`, the time `c` of a step of
//! the draft relative to one of the base, and drafts of `γ` tokens, decoding is faster by the factor
//! `(1 - α^(γ+1)) / ((1 - α)(γ·c + 1))`.

/// The acceptance that is assumed before a sequence has any drafts, and the number of tokens that it counts as. The
/// paper's measurements are from 0.53 to 0.90 (table 2).
const PRIOR: (f64, f64) = (0.7, 4.0);
/// The weight of the tokens before at each draft.
const DECAY: f64 = 0.9;
/// The number of steps without a draft where none pays. The draft after it is a new measurement.
const PAUSE: u32 = 64;
/// The length of the draft after a pause.
const PROBE: usize = 2;

/// The length of one sequence's drafts.
#[derive(Debug)]
pub(crate) struct DraftLength {
    /// The number of accepted tokens, with decay.
    accepted: f64,
    /// The number of tokens whose acceptance was decided, with decay.
    decided: f64,
    /// The number of steps until the next draft.
    pause: u32,
}

impl Default for DraftLength {
    fn default() -> Self {
        let (rate, count) = PRIOR;
        Self { accepted: rate * count, decided: count, pause: 0 }
    }
}

impl DraftLength {
    /// Returns the length of the next draft, at most `most`, where a step of the draft takes `cost` times as long as
    /// one of the base.
    pub(crate) fn next(&mut self, cost: f64, most: usize) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return if self.pause == 0 { most.min(PROBE) } else { 0 };
        }
        let length = best(self.accepted / self.decided, cost, most);
        if length == 0 && most > 0 {
            self.pause();
        }
        length
    }

    /// Adapts to the outcome of a draft. The tokens after the first rejected one are not decided.
    pub(crate) fn observe(&mut self, drafted: usize, accepted: usize) {
        self.accepted = self.accepted * DECAY + accepted as f64;
        self.decided = self.decided * DECAY + drafted.min(accepted + 1) as f64;
    }

    /// Makes no drafts for some steps.
    pub(crate) const fn pause(&mut self) {
        self.pause = PAUSE;
    }
}

/// Returns the length at which decoding is fastest, 0 where no draft makes it faster.
fn best(acceptance: f64, cost: f64, most: usize) -> usize {
    let (mut best, mut fastest) = (0, 1.0);
    let (mut tokens, mut power) = (1.0, 1.0); // the sum of the powers of the acceptance up to that of the length
    for length in 1..=most {
        power *= acceptance;
        tokens += power;
        let factor = tokens / (1.0 + length as f64 * cost);
        if factor > fastest {
            (best, fastest) = (length, factor);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_follows_acceptance_and_cost() {
        for (acceptance, cost, want) in [
            (0.5, 0.05, 3),
            (0.8, 0.05, 8),
            (0.8, 0.1, 6),
            (0.8, 0.5, 2),
            (0.5, 0.5, 0), // (1 + 0.5) / (1 + 0.5) is no gain
            (1.0, 0.1, 16),
            (0.0, 0.01, 0),
            (1.0, 1.0, 0),
        ] {
            assert_eq!(best(acceptance, cost, 16), want, "{acceptance} {cost}");
        }
        assert_eq!((best(0.8, 0.05, 3), best(0.8, 0.05, 0)), (3, 0));
    }

    #[test]
    fn rejected_drafts_become_shorter_and_pause_until_a_new_measurement() {
        let mut length = DraftLength::default();
        let first = length.next(0.1, 15);
        assert!(first >= 3, "{first}");
        let mut steps = 0;
        loop {
            let drafted = length.next(0.1, 15);
            if drafted == 0 {
                break;
            }
            length.observe(drafted, 0);
            steps += 1;
            assert!(drafted <= first && steps < 20, "{drafted}");
        }
        let pause: Vec<usize> = (0..PAUSE).map(|_| length.next(0.1, 15)).collect();
        assert_eq!((pause.iter().sum::<usize>(), pause.last()), (PROBE, Some(&PROBE)));
        for _ in 0..20 {
            length.observe(PROBE, PROBE);
        }
        assert!(length.next(0.1, 15) > first);
    }

    /// A batch without room for drafts is no measurement.
    #[test]
    fn a_full_batch_makes_no_pause() {
        let mut length = DraftLength::default();
        assert_eq!(length.next(0.1, 0), 0);
        assert!(length.next(0.1, 15) > 0);
    }
}
