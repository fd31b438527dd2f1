//! Drafts of the next tokens, from earlier text of the same sequence: what followed the last tokens where they occurred
//! before. Answers that quote their prompt, such as edits, extractions and summaries, repeat much of it.
//!
//! The length of a draft adapts to how many of its tokens are accepted, and drafts that are rejected entirely make
//! pauses. So text that repeats nothing costs few rows.
//!
//! Sources: Saxena, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding), as vLLM's n-gram
//! speculator has it (`vllm/v1/spec_decode/ngram_proposer.py`).

use attune_model::nn::low_rank::FEW_ROWS;

/// The minimum number of tokens that must occur again.
const SHORTEST: usize = 3;
/// The maximum number of tokens that are compared: of several occurrences, the one with the longest match is used.
const LONGEST: usize = 8;
/// The length of the first draft of a sequence, and of the first one after a pause.
const FIRST: usize = 4;
/// The logarithm, to the base 2, of the maximum number of steps of a pause.
const MOST_MISSES: u32 = 6;

/// The drafts of one sequence.
#[derive(Debug)]
pub(crate) struct Drafter {
    /// The maximum length of the next draft.
    length: usize,
    /// The number of steps until the next draft.
    pause: u32,
    /// The number of drafts in a row that were rejected entirely.
    misses: u32,
}

impl Default for Drafter {
    fn default() -> Self {
        Self { length: FIRST, pause: 0, misses: 0 }
    }
}

/// Returns the maximum length of the draft of each of `answers` sequences that sample in one pass: with more rows, a
/// pass is no longer limited by the memory bandwidth, and takes longer for each row.
pub(crate) const fn allowance(answers: usize) -> usize {
    match FEW_ROWS.checked_div(answers) {
        Some(rows) => rows.saturating_sub(1),
        None => 0,
    }
}

impl Drafter {
    /// Returns a draft of at most `most` tokens that may follow `known`. Empty: none for this step.
    pub(crate) fn propose(&mut self, known: &[u32], most: usize) -> Vec<u32> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        lookup(known, most.min(self.length))
    }

    /// Adapts to the outcome of a draft.
    pub(crate) fn observe(&mut self, drafted: usize, accepted: usize) {
        if accepted == 0 {
            self.misses = (self.misses + 1).min(MOST_MISSES);
            (self.length, self.pause) = (FIRST, 1 << self.misses);
        } else {
            self.misses = 0;
            self.length = if accepted == drafted { (2 * self.length).min(FEW_ROWS) } else { accepted + 1 };
        }
    }
}

/// Returns the `most` tokens after the earlier occurrence of the last tokens that agrees on most of them, the latest of
/// several. If it is so close to the end that fewer tokens follow it, they repeat.
fn lookup(known: &[u32], most: usize) -> Vec<u32> {
    let matching = |end: usize| {
        let pairs = known[..end].iter().rev().zip(known.iter().rev()).take(LONGEST);
        pairs.take_while(|(earlier, last)| earlier == last).count()
    };
    let best = (SHORTEST..known.len()).map(|end| (matching(end), end)).max();
    match best {
        Some((length, start)) if length >= SHORTEST => known[start..].iter().cycle().take(most).copied().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_is_continued_and_the_latest_of_several() {
        let cases: [(&[u32], usize, &[u32]); 10] = [
            (&[1, 2, 3, 4, 5, 9, 1, 2, 3], 2, &[4, 5]),
            (&[1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], 1, &[5]), // longer: 9 1 2 3
            (&[1, 2, 3, 4, 8, 1, 2, 3, 5, 9, 1, 2, 3], 1, &[5]), // as long, and later
            (&[7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3], 1, &[4]),
            (&[1, 2, 1, 2, 1, 2], 5, &[1, 2, 1, 2, 1]),
            (&[6, 6, 6, 6], 3, &[6, 6, 6]),
            (&[1, 2, 9, 1, 2], 3, &[]), // two tokens are too few
            (&[1, 2, 3, 4, 1, 2, 3], 0, &[]),
            (&[1, 2, 3], 3, &[]),
            (&[], 3, &[]),
        ];
        for (known, most, want) in cases {
            assert_eq!(lookup(known, most), want, "{known:?}");
        }
    }

    #[test]
    fn the_length_follows_the_acceptance() {
        let known = [5; 40];
        let mut drafter = Drafter::default();
        let mut lengths = Vec::new();
        for accepted in [4, 8, 16, 3, 1, 2] {
            let drafted = drafter.propose(&known, 100).len();
            lengths.push(drafted);
            drafter.observe(drafted, accepted.min(drafted));
        }
        assert_eq!(lengths, [FIRST, 8, 16, 16, 4, 2]);
        assert_eq!(drafter.propose(&known, 1).len(), 1);
    }

    #[test]
    fn rejected_drafts_make_longer_and_longer_pauses() {
        let known = [5; 40];
        let mut drafter = Drafter::default();
        let mut drafts = 0;
        for _ in 0..1000 {
            let drafted = drafter.propose(&known, 100).len();
            if drafted > 0 {
                drafts += 1;
                drafter.observe(drafted, 0);
            }
        }
        // Drafts that are followed by pauses of 2 to 64 steps, and then one draft in 65 steps.
        assert_eq!(drafts, 20);
        drafter.pause = 0;
        drafter.observe(4, 1);
        assert_eq!((drafter.misses, drafter.pause), (0, 0));
    }

    #[test]
    fn many_answers_have_no_drafts() {
        assert_eq!([0, 1, 2, 4, 8, 9, 300].map(allowance), [0, FEW_ROWS - 1, 7, 3, 1, 0, 0]);
    }
}
