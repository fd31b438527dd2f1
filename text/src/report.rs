//! Statistics and quality warnings of a dataset before training: lengths in tokens, the effect of each policy on rows
//! that are too long, duplicate rows, and rows that look like mistakes. Blocking; memory does not grow with the file.

use std::collections::BTreeMap;

use attune_domain::{
    dataset::{KEPT_DEFECTS, Message, Role, Row, RowDefect},
    spec::OverLength,
};
use serde_json::Value;

use crate::{
    encode::Example,
    model::TextModel,
    repeats::{Marks, Repeats, Seen, for_each_text},
    row_stats::Lines,
    rows::{Refusal, RowOutcome, RowPolicy, windows},
};

/// The report on a dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The number of rows.
    pub rows: u64,
    /// Lengths in tokens; all zero without a model.
    pub lengths: Lengths,
    /// Rows above `max_length` tokens, with their token counts.
    pub too_long: Lines,
    /// The outcome of each policy except `error` for those rows.
    pub policies: BTreeMap<&'static str, Outcome>,
    /// Duplicate rows.
    pub repeats: Repeats,
    /// Quality warnings, with the lines of the rows.
    pub odd: BTreeMap<&'static str, Lines>,
    /// The first rows that cannot be trained on.
    pub unusable: Vec<RowDefect>,
    /// The number of rows that cannot be trained on.
    pub unusable_count: u64,
}

/// Lengths of rows in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths {
    /// The number of rows by token count.
    pub counts: BTreeMap<u64, u64>,
    /// The number of all tokens.
    pub tokens: u64,
    /// The number of trained tokens.
    pub trained: u64,
}

impl Lengths {
    fn add(&mut self, example: &Example) {
        let tokens = example.ids.len() as u64;
        *self.counts.entry(tokens).or_default() += 1;
        self.tokens += tokens;
        self.trained += example.trained_tokens() as u64;
    }

    /// Returns the smallest length that at least `share` of the rows do not exceed.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let rows: u64 = self.counts.values().sum();
        let rank = ((rows as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let found = self.counts.iter().find(|(_, count)| {
            below += *count;
            below >= rank
        });
        found.map_or(0, |(length, _)| *length)
    }
}

/// The outcome of a policy for rows that are too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows that the policy changes.
    pub changed: u64,
    /// Rows that result from them.
    pub rows: u64,
    /// Tokens that are not used.
    pub tokens_lost: u64,
    /// Trained tokens that are not used.
    pub trained_tokens_lost: u64,
    /// Rows for which a job would fail, since no trained token remains.
    pub refused: u64,
}

/// Builds the report from a file's rows.
#[derive(Debug)]
pub struct Reporter<'a> {
    model: Option<(&'a TextModel, RowPolicy)>,
    report: Report,
    seen: Seen,
}

impl<'a> Reporter<'a> {
    /// Creates an empty reporter. Without a model it counts no tokens.
    #[must_use]
    pub fn new(model: Option<(&'a TextModel, RowPolicy)>) -> Self {
        Self { model, report: Report::default(), seen: Seen::default() }
    }

    /// Adds a row.
    pub fn take(&mut self, line: u64, row: &Row) {
        self.report.rows += 1;
        self.seen.add(line, Marks::of(row), &mut self.report.repeats);
        quality_warnings(row, &mut |what| self.report.odd.entry(what).or_default().add(line, 1));
        let Some((model, policy)) = self.model else { return };
        match policy.encode(model, row) {
            Ok(whole) => {
                self.report.lengths.add(&whole);
                if whole.ids.len() > policy.max_length as usize {
                    self.report.too_long.add(line, whole.ids.len() as u64);
                    self.weigh(policy, &whole);
                }
            }
            Err(refusal) => self.refuse(line, refusal),
        }
    }

    fn weigh(&mut self, policy: RowPolicy, whole: &Example) {
        for over_length in [OverLength::Truncate, OverLength::Drop, OverLength::Split] {
            let outcome = self.report.policies.entry(over_length.name()).or_default();
            let Ok(shaped) = (RowPolicy { over_length, ..policy }).cut(whole.clone()) else {
                outcome.refused += 1;
                continue;
            };
            outcome.changed += 1;
            outcome.rows += shaped.examples.len() as u64;
            outcome.tokens_lost += lost(whole, &shaped.examples, shaped.outcome, policy.max_length as usize);
            let kept: usize = shaped.examples.iter().map(Example::trained_tokens).sum();
            outcome.trained_tokens_lost += (whole.trained_tokens().saturating_sub(kept)) as u64;
        }
    }

    fn refuse(&mut self, line: u64, refusal: Refusal) {
        let message = match refusal {
            Refusal::Unusable(message) => message,
            Refusal::Format(wrong) => wrong.to_string(),
            Refusal::TooLong(tokens) => format!("the row has {tokens} tokens"),
        };
        self.report.unusable_count += 1;
        if self.report.unusable.len() < KEPT_DEFECTS {
            self.report.unusable.push(RowDefect { line, message });
        }
    }

    /// Ends the file. The rows seen can be compared with another file.
    #[must_use]
    pub fn finish(self) -> (Report, Seen) {
        (self.report, self.seen)
    }
}

/// Returns the number of tokens of a row that are in none of its parts.
fn lost(whole: &Example, kept: &[Example], outcome: RowOutcome, most: usize) -> u64 {
    let there = match outcome {
        RowOutcome::Split { .. } => covered(whole, most),
        _ => kept.iter().map(|example| example.ids.len()).sum(),
    };
    (whole.ids.len() - there) as u64
}

/// Returns the number of tokens in parts with a trained token. A part begins with the last token of the one before.
fn covered(whole: &Example, most: usize) -> usize {
    let (mut start, mut until, mut covered) = (0, 0, 0);
    for part in windows(whole, most) {
        let end = start + part.ids.len();
        if part.trained_tokens() > 0 {
            covered += end - start.max(until);
            until = end;
        }
        start = end - 1;
    }
    covered
}

/// Calls `odd` for each quality warning of a row that is valid otherwise.
fn quality_warnings(row: &Row, odd: &mut impl FnMut(&'static str)) {
    match row {
        Row::Chat { messages, tools, parallel_tool_calls } => {
            chat_oddities(messages, odd);
            tool_oddities(messages, tools.as_ref(), *parallel_tool_calls, odd);
        }
        Row::Completion { prompt, completion } => {
            if prompt.trim().is_empty() {
                odd("empty_prompt");
            }
            if completion.trim().is_empty() {
                odd("blank_answer");
            }
            if prompt.trim() == completion.trim() {
                odd("answer_repeats_prompt");
            }
        }
        Row::Text { text } if text.trim().is_empty() => odd("blank_text"),
        Row::Text { .. } => {}
        Row::Preference { preferred, non_preferred, .. } => {
            if preferred.iter().map(Message::text).eq(non_preferred.iter().map(Message::text)) {
                odd("equal_answers");
            }
        }
    }
    let (mut replaced, mut control) = (false, false);
    for_each_text(row, &mut |text| {
        replaced |= text.contains(char::REPLACEMENT_CHARACTER);
        control |= text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    });
    if replaced {
        odd("replacement_character");
    }
    if control {
        odd("control_character");
    }
}

fn chat_oddities(messages: &[Message], odd: &mut impl FnMut(&'static str)) {
    if messages.iter().any(|message| message.is_trained() && says_nothing(message)) {
        odd("blank_answer");
    }
    if messages.iter().any(|message| message.role == Role::User && says_nothing(message)) {
        odd("empty_prompt");
    }
    if !messages.iter().any(|message| message.role == Role::User) {
        odd("no_user_message");
    }
    if messages.iter().skip(1).any(|message| message.role == Role::System) {
        odd("system_message_not_first");
    }
    if messages.windows(2).any(|pair| pair[0].role == pair[1].role && pair[0].role != Role::Tool) {
        odd("same_role_twice");
    }
    let repeats = |pair: &[Message]| pair[1].is_trained() && pair[0].text().trim() == pair[1].text().trim();
    if messages.windows(2).any(|pair| repeats(pair) && pair[1].tool_calls.is_none()) {
        odd("answer_repeats_prompt");
    }
}

fn says_nothing(message: &Message) -> bool {
    message.tool_calls.is_none() && message.text().trim().is_empty()
}

fn tool_oddities(
    messages: &[Message],
    tools: Option<&Value>,
    parallel_tool_calls: Option<bool>,
    odd: &mut impl FnMut(&'static str),
) {
    let offered: Vec<_> = tools.and_then(Value::as_array).into_iter().flatten().collect();
    let is_offered = |name: &str| offered.iter().any(|tool| tool["function"]["name"] == name);
    if messages.iter().flat_map(Message::called).any(|name| !is_offered(name)) {
        odd("called_tool_not_offered");
    }
    if parallel_tool_calls == Some(false) && messages.iter().any(|message| message.called().count() > 1) {
        odd("parallel_calls_not_allowed");
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::dataset::parse_row;

    use super::*;
    use crate::testing::{word_model, word_policy};

    fn report(rows: &[&str]) -> Report {
        let model = word_model().unwrap();
        let mut reporter = Reporter::new(Some((&model, word_policy(OverLength::Error))));
        for (line, row) in (1..).zip(rows) {
            reporter.take(line, &parse_row(line, row.as_bytes()).unwrap());
        }
        reporter.finish().0
    }

    #[test]
    fn lengths_and_what_each_policy_would_do() {
        let found = report(&[
            r#"{"prompt": "a", "completion": " a"}"#,
            r#"{"prompt": "a", "completion": " a a"}"#,
            // 7 tokens: 1 of the prompt, 6 trained.
            r#"{"prompt": "a", "completion": " a a a a a"}"#,
            // 8 tokens, of which 2 are trained: none among the first 4.
            r#"{"prompt": "a a a a a a", "completion": " a"}"#,
        ]);
        assert_eq!((found.rows, found.lengths.tokens, found.lengths.trained), (4, 3 + 4 + 7 + 8, 2 + 3 + 6 + 2));
        assert_eq!([0.0, 0.5, 0.9, 1.0].map(|share| found.lengths.quantile(share)), [3, 4, 8, 8]);
        assert_eq!(found.too_long.first, [(3, 7), (4, 8)]);
        let truncated = Outcome { changed: 1, rows: 1, tokens_lost: 3, trained_tokens_lost: 3, refused: 1 };
        assert_eq!(found.policies["truncate"], truncated);
        let dropped = Outcome { changed: 2, rows: 0, tokens_lost: 15, trained_tokens_lost: 8, refused: 0 };
        assert_eq!(found.policies["drop"], dropped);
        // Parts of 4 and 4; and of 4, 4 and 2, of which the first has no trained token but shares its last token with
        // the second.
        let split = Outcome { changed: 2, rows: 4, tokens_lost: 3, trained_tokens_lost: 0, refused: 0 };
        assert_eq!(found.policies["split"], split);
    }

    #[test]
    fn what_looks_like_a_mistake_has_its_lines() {
        let found = report(&[
            r#"{"prompt": " ", "completion": "a"}"#,
            r#"{"prompt": "a", "completion": " a"}"#,
            r#"{"prompt": "a", "completion": " \n"}"#,
            r#"{"prompt": "a", "completion": "caf\ufffd \u0007"}"#,
        ]);
        let lines = |what| found.odd[what].first.iter().map(|(line, _)| *line).collect::<Vec<_>>();
        assert_eq!(lines("empty_prompt"), [1]);
        assert_eq!(lines("answer_repeats_prompt"), [2]);
        assert_eq!(lines("blank_answer"), [3]);
        assert_eq!((lines("replacement_character"), lines("control_character")), (vec![4], vec![4]));
        let chat = r#"{"messages": [{"role": "assistant", "content": "a"}, {"role": "system", "content": "b"},
            {"role": "assistant", "content": "b"}]}"#
            .replace('\n', " ");
        let found = report(&[&chat]);
        let odd: Vec<_> = found.odd.keys().copied().collect();
        assert_eq!(odd, ["answer_repeats_prompt", "no_user_message", "system_message_not_first"]);
        assert!(found.unusable[0].message.contains("chat template"), "{:?}", found.unusable);
    }
}
