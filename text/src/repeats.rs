//! Duplicate rows: the same text, or the same except for case and white space. Memory is bounded: of a file with very
//! many rows, a sample chosen by digest is remembered, and the counts are estimates.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use attune_domain::dataset::{Message, Row};

use crate::row_stats::Lines;

/// The maximum number of digests that are remembered.
const REMEMBERED: usize = 1 << 19;

/// The digests that identify a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    exact: u64,
    normalised: u64,
}

impl Marks {
    /// Computes the digests of a row.
    #[must_use]
    pub fn of(row: &Row) -> Self {
        let (mut exact, mut normalised) = (DefaultHasher::new(), DefaultHasher::new());
        for_each_text(row, &mut |text| {
            text.hash(&mut exact);
            for word in text.split_whitespace() {
                word.to_lowercase().hash(&mut normalised);
            }
            u8::MAX.hash(&mut normalised); // separates texts
        });
        Self { exact: exact.finish(), normalised: normalised.finish() }
    }
}

/// Calls `each` with every text of a row, and with the role before each message's text.
pub(crate) fn for_each_text(row: &Row, each: &mut impl FnMut(&str)) {
    let mut say = |messages: &[Message]| {
        for message in messages {
            each(message.role.as_str());
            each(message.text());
            if let Some(calls) = &message.tool_calls {
                each(&calls.to_string());
            }
        }
    };
    match row {
        Row::Chat { messages, tools, .. } => {
            say(messages);
            if let Some(tools) = tools {
                each(&tools.to_string());
            }
        }
        Row::Preference { input, preferred, non_preferred } => {
            [input, preferred, non_preferred].into_iter().for_each(|messages| say(messages));
        }
        Row::Completion { prompt, completion } => [prompt, completion].into_iter().for_each(|text| each(text)),
        Row::Text { text } => each(text),
    }
}

/// The number of duplicate rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeats {
    /// Rows with the same text as an earlier row.
    pub exact: Lines,
    /// Rows with the same text except for case and white space, including those of `exact`.
    pub normalised: Lines,
    /// Flag for counts that are estimates.
    pub estimated: bool,
}

/// The rows seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    exact: Digests,
    normalised: Digests,
}

impl Seen {
    /// Remembers a row, and counts it if it is a duplicate.
    pub fn add(&mut self, line: u64, marks: Marks, repeats: &mut Repeats) {
        count(&mut repeats.exact, line, self.exact.add(marks.exact));
        count(&mut repeats.normalised, line, self.normalised.add(marks.normalised));
        repeats.estimated |= self.is_a_share();
    }

    /// Counts a row of another file if it is a duplicate of one of these.
    pub fn find(&self, line: u64, marks: Marks, repeats: &mut Repeats) {
        count(&mut repeats.exact, line, self.exact.find(marks.exact));
        count(&mut repeats.normalised, line, self.normalised.find(marks.normalised));
        repeats.estimated |= self.is_a_share();
    }

    const fn is_a_share(&self) -> bool {
        self.exact.halvings > 0 || self.normalised.halvings > 0
    }
}

/// Counts a duplicate with the weight of the sample: each represents 2^`halvings` rows.
fn count(lines: &mut Lines, line: u64, stands_for: u64) {
    if stands_for > 0 {
        lines.add(line, 1);
        lines.count += stands_for - 1;
    }
}

/// Digests, or a sample of them: those that begin with `halvings` zero bits.
#[derive(Debug, Default)]
struct Digests {
    kept: HashSet<u64>,
    halvings: u32,
}

impl Digests {
    /// Returns the number of duplicates that this row represents; 0: it is new, or outside the sample.
    fn add(&mut self, digest: u64) -> u64 {
        if digest.leading_zeros() < self.halvings {
            return 0;
        }
        if !self.kept.insert(digest) {
            return 1 << self.halvings;
        }
        while self.kept.len() > REMEMBERED {
            self.halvings += 1;
            let least = self.halvings;
            self.kept.retain(|digest| digest.leading_zeros() >= least);
        }
        0
    }

    fn find(&self, digest: u64) -> u64 {
        if self.kept.contains(&digest) { 1 << self.halvings } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &str, completion: &str) -> Row {
        Row::Completion { prompt: prompt.into(), completion: completion.into() }
    }

    #[test]
    fn a_row_that_was_there_is_counted_with_its_line() {
        let (mut seen, mut repeats) = (Seen::default(), Repeats::default());
        let rows = [row("a b", "c"), row("A  b", "C"), row("a b", "c"), row("a", "b c")];
        for (line, row) in (1..).zip(&rows) {
            seen.add(line, Marks::of(row), &mut repeats);
        }
        assert_eq!((repeats.exact.count, repeats.exact.first.as_slice()), (1, [(3, 1)].as_slice()));
        assert_eq!(repeats.normalised.count, 2);
        assert!(!repeats.estimated);
        let mut leaked = Repeats::default();
        seen.find(7, Marks::of(&row("A B", "C")), &mut leaked);
        assert_eq!((leaked.exact.count, leaked.normalised.first.as_slice()), (0, [(7, 1)].as_slice()));
    }

    #[test]
    fn of_very_many_rows_a_share_is_remembered_and_the_count_is_near() {
        let (mut seen, mut repeats) = (Seen::default(), Repeats::default());
        for pass in 0..2 {
            for i in 0..1_500_000_u64 {
                let digest = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                seen.add(i + pass, Marks { exact: digest, normalised: digest }, &mut repeats);
            }
        }
        assert!(repeats.estimated && seen.exact.kept.len() <= REMEMBERED);
        let off = repeats.exact.count as f64 / 1_500_000.0 - 1.0;
        assert!(off.abs() < 0.02, "{off}");
    }
}
