//! Stop strings: found in an answer's text across token boundaries.
//!
//! Text is returned as soon as no stop string can start in it. Incomplete characters never reach this scanner: the
//! detokenizer holds them back. Each byte is processed once per stop string, however long that is (Knuth, Morris,
//! Pratt), and all answers to a request share one copy of the strings.
//!
//! Source: Knuth, Morris, Pratt, "Fast Pattern Matching in Strings", SIAM J. Comput. 6(2), 1977.

use std::sync::Arc;

/// The stop strings of a request, with their failure tables.
#[derive(Debug, Default)]
pub struct StopStrings(Vec<Pattern>);

/// A stop string and its failure table.
#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// The failure table: for each prefix length, the length of the longest proper prefix that is also a suffix of it.
    failure: Vec<usize>,
}

/// A scanner for stop strings in a text that arrives in chunks.
#[derive(Debug, Clone)]
pub struct StopScanner {
    stops: Arc<StopStrings>,
    /// For each stop string, the number of its bytes that the text ends with.
    matched: Vec<usize>,
    held: String,
}

/// The result of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// The text that is final, possibly empty.
    pub text: String,
    /// `true` if a stop string was found: the text ends here.
    pub stopped: bool,
}

impl StopStrings {
    /// Builds the failure tables. Empty stop strings are ignored: they would end every answer before its first
    /// character.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self(stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Pattern::new(stop)).collect())
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut pattern = Self { failure: vec![0; bytes.len() + 1], bytes };
        let mut length = 0;
        for at in 1..pattern.bytes.len() {
            length = pattern.next(length, pattern.bytes[at]);
            pattern.failure[at + 1] = length;
        }
        pattern
    }

    /// Returns the number of the pattern's bytes that a text ends with, after `byte` was added to one that ended with
    /// `matched`.
    fn next(&self, mut matched: usize, byte: u8) -> usize {
        loop {
            if self.bytes.get(matched) == Some(&byte) {
                return matched + 1;
            }
            if matched == 0 {
                return 0;
            }
            matched = self.failure[matched];
        }
    }
}

impl StopScanner {
    /// Creates a scanner at the start of a text.
    #[must_use]
    pub fn new(stops: Arc<StopStrings>) -> Self {
        Self { matched: vec![0; stops.0.len()], stops, held: String::new() }
    }

    /// Processes the next chunk. The stop string that is complete first counts, so the result does not depend on how
    /// the text was split into chunks; of those that are complete at the same byte, the longest.
    pub fn push(&mut self, piece: &str) -> Scanned {
        let seen = self.held.len();
        self.held.push_str(piece);
        for (at, byte) in (seen + 1..).zip(piece.bytes()) {
            let mut complete = 0;
            for (pattern, matched) in self.stops.0.iter().zip(&mut self.matched) {
                *matched = pattern.next(*matched, byte);
                if *matched == pattern.bytes.len() {
                    complete = complete.max(*matched);
                }
            }
            if complete > 0 {
                let mut text = std::mem::take(&mut self.held);
                text.truncate(at - complete);
                return Scanned { text, stopped: true };
            }
        }
        // A stop string starts with a whole character, and the text ends with one: so the held suffix starts at a
        // character.
        let free = self.held.len() - self.matched.iter().max().unwrap_or(&0);
        let rest = self.held.split_off(free);
        Scanned { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Ends the text. Returns the text that was held back.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut scanner = StopScanner::new(Arc::new(StopStrings::new(&stops)));
        let mut out = Vec::new();
        for piece in pieces {
            let scanned = scanner.push(piece);
            out.push(scanned.text);
            if scanned.stopped {
                return (out, true);
            }
        }
        out.push(scanner.finish());
        (out, false)
    }

    #[test]
    fn what_may_be_a_stop_is_held_until_it_is_known() {
        for (stops, pieces, want, stopped) in [
            (vec!["\n\n"], vec!["a\n", "b", "\n", "\nc"], vec!["a", "\nb", "", ""], true),
            (vec!["END"], vec!["xE", "N", "d"], vec!["x", "", "ENd", ""], false),
            (vec!["END"], vec!["xE"], vec!["x", "E"], false),
            (vec!["", "b"], vec!["abc"], vec!["a"], true),
            (vec!["aab"], vec!["aaa", "b"], vec!["a", ""], true),
            (vec!["é"], vec!["caf", "é!"], vec!["caf", ""], true),
            (vec!["abcd", "bc"], vec!["ab", "c", "d"], vec!["", "a"], true),
            (vec![], vec!["any", "thing"], vec!["any", "thing", ""], false),
            (vec!["bcd", "cd"], vec!["abc", "d"], vec!["a", ""], true),
            (vec!["abab"], vec!["ababa"], vec![""], true),
        ] {
            assert_eq!(run(&stops, &pieces), (want.iter().map(ToString::to_string).collect(), stopped), "{stops:?}");
        }
    }

    /// The reference implementation: the whole text, cut at the stop string that is complete first.
    fn cut(text: &str, stops: &[String]) -> Option<usize> {
        let ends = (0..=text.len()).filter(|at| text.is_char_boundary(*at));
        ends.filter_map(|end| {
            let here = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            here.map(|stop| end - stop.len()).min()
        })
        .next()
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_text_up_to_the_first_stop(
            pieces in vec("[abé]{0,4}", 0..12), stops in vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let (out, stopped) = run(
                &stops.iter().map(String::as_str).collect::<Vec<_>>(),
                &pieces.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            let at = cut(&text, &stops);
            prop_assert_eq!(stopped, at.is_some());
            prop_assert_eq!(out.concat(), &text[..at.unwrap_or(text.len())]);
        }
    }

    /// Eight answers over four long strings that keep nearly matching. Searching each string again for each chunk took
    /// minutes; a copy of the strings per answer, 256 MB.
    #[test]
    fn attack_a06_long_stop_strings_cost_one_copy_and_one_look_at_each_byte() {
        let stops: Vec<String> = (0..4).map(|n| "a".repeat(2_000_000 + n) + "b").collect();
        let began = std::time::Instant::now();
        let shared = Arc::new(StopStrings::new(&stops));
        for _ in 0..8 {
            let mut scanner = StopScanner::new(shared.clone());
            for _ in 0..1000 {
                assert_eq!(scanner.push("aaaa"), Scanned { text: String::new(), stopped: false });
            }
            assert_eq!(scanner.push("c").text.len(), 4001);
        }
        assert_eq!(Arc::strong_count(&shared), 1);
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
