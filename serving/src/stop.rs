//! Where an answer ends in its text: stop strings, found across the borders of tokens.
//!
//! Text goes in as it becomes whole and comes out as soon as no stop string can begin in it. Bytes that are not yet a
//! character never come this far: the detokenizer holds them back.

/// Looks for stop strings in a text that comes in pieces.
#[derive(Debug, Clone)]
pub struct StopScanner {
    stops: Vec<String>,
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

impl StopScanner {
    /// Empty stop strings are left out: they would end every answer before its first letter.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece. Of several stop strings the first to be complete counts, so the cut does not depend on how
    /// the text was cut into pieces.
    pub fn push(&mut self, piece: &str) -> Scanned {
        let seen = self.held.len();
        self.held.push_str(piece);
        if let Some(start) = self.first_stop(seen) {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Scanned { text, stopped: true };
        }
        let free = self.held.len() - self.beginning_of_a_stop();
        let rest = self.held.split_off(free);
        Scanned { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// No text follows: what was held back is final.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }

    /// Where the stop string begins that ends first; it ends behind `seen`. Of those that end together, the longest.
    fn first_stop(&self, seen: usize) -> Option<usize> {
        let end_of = |stop: &String| {
            let from = self.held.floor_char_boundary(seen.saturating_sub(stop.len()));
            self.held[from..].find(stop.as_str()).map(|at| (from + at + stop.len(), from + at))
        };
        self.stops.iter().filter_map(end_of).min().map(|(_, start)| start)
    }

    /// The length of the longest end of the held text that begins a stop string.
    fn beginning_of_a_stop(&self) -> usize {
        let begins = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
            ends.filter(|&end| self.held.ends_with(&stop[..end])).max()
        };
        self.stops.iter().filter_map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut scanner = StopScanner::new(&stops);
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
}
