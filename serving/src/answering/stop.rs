//! Where an answer ends in its text: stop strings, found across the borders of tokens.
//!
//! Text goes in as it becomes whole and comes out as soon as no stop string can begin in it. Bytes that are not yet a
//! character never come this far: the detokenizer holds them back. Each byte is looked at once for each stop string,
//! however long that is (Knuth, Morris, Pratt), and all answers to a request share one copy of the strings.
//!
//! Source: Knuth, Morris, Pratt, "Fast Pattern Matching in Strings", SIAM J. Comput. 6(2), 1977.

use std::sync::Arc;

/// The stop strings of a request, with their failure tables.
#[derive(Debug, Default)]
pub struct StopStrings(Vec<Pattern>);

/// A stop string.
#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each length of a beginning: the length of the longest shorter beginning that also ends it.
    failure: Vec<usize>,
}

/// Looks for stop strings in a text that comes in pieces.
#[derive(Debug, Clone)]
pub struct StopScanner {
    stops: Arc<StopStrings>,
    /// How many bytes of each stop string the text ends with.
    matched: Vec<usize>,
    held: String,
}

/// What a piece led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Final text, maybe empty.
    pub text: String,
    /// A stop string came: the text ends here.
    pub stopped: bool,
}

impl StopStrings {
    /// Empty stop strings are left out: they would end every answer before its first letter.
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

    /// How many bytes of the pattern a text ends with, after `byte` was added to one that ended with `matched` of them.
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
    /// A scanner that has seen nothing.
    #[must_use]
    pub fn new(stops: Arc<StopStrings>) -> Self {
        Self { matched: vec![0; stops.0.len()], stops, held: String::new() }
    }

    /// Takes the next piece. Of several stop strings the first to be complete counts, so the cut does not depend on how
    /// the text was cut into pieces; of those that are complete together, the longest.
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
        // A stop string begins with a whole character, and the text ends with one: so does what may be its beginning.
        let free = self.held.len() - self.matched.iter().max().unwrap_or(&0);
        let rest = self.held.split_off(free);
        Scanned { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// No text follows: what was held back is final.
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

    /// The plain way: the whole text, cut at the stop string that is complete first.
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

    /// Eight answers over four long strings that keep nearly matching. Looking through each string again at each piece
    /// took minutes; so many strings in so many copies, 256 MB.
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
