//! Conversion of a file's rows to training sequences, under a job's policy. Validation, training and preview all use
//! this code, so counts, truncation and masks are the same in all of them.
//!
//! A row above `max_length` tokens is refused, truncated, dropped or split; documents are packed. Every change to a row
//! is recorded in the `RowStats`, with its line.

use attune_domain::{
    dataset::{Defects, KEPT_DEFECTS, Row, RowChecker, RowDefect},
    spec::{Method, OverLength, TrainSpec, TrainerSpec, WrongFormat},
};

use crate::encode::{Example, Learnt};
use crate::model::TextModel;
use crate::row_stats::{Lines, RowStats, RowsError};

/// The part of a job that decides how its rows are processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPolicy {
    /// The training method: the format of the rows, and packing.
    pub method: Method,
    /// Flag to train on prompts too.
    pub train_on_prompt: bool,
    /// The policy for a row above `max_length`.
    pub over_length: OverLength,
    /// The maximum number of tokens of a row.
    pub max_length: u32,
    /// The current time for chat templates, in seconds since 1970. For a job, it is the time of the job's creation: in
    /// validation, in training, and after each pause.
    pub now: i64,
}

/// A row, ready for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainRow {
    /// The row's line in the file, from 1; for packed documents, the line of the first.
    pub line: u64,
    /// One example, or the packed documents, which do not attend to each other.
    pub examples: Vec<Example>,
}

impl TrainRow {
    /// Returns the number of tokens that go through the model.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }
}

/// The result of the policy for one row, before packing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapedRow {
    /// The row's examples: one; none if the row was dropped, several if it was split.
    pub examples: Vec<Example>,
    /// The number of tokens of the original row.
    pub tokens: u64,
    /// The change to the row.
    pub outcome: RowOutcome,
}

/// The change to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOutcome {
    /// No change.
    Whole,
    /// Only the first `max_length` tokens were kept.
    Truncated,
    /// The row was dropped.
    Dropped,
    /// The row was split; parts without a trained token were dropped.
    Split {
        /// The number of parts kept.
        parts: u64,
        /// The number of parts dropped.
        left_out: u64,
    },
}

/// The reason why the policy refuses a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A row that cannot be trained on, with the message for the user.
    Unusable(String),
    /// A row with this many tokens, where the policy is to refuse long rows.
    TooLong(u64),
    /// A row in a format that the method does not support.
    Format(WrongFormat),
}

impl RowPolicy {
    /// Returns the policy of a job with this `spec`.
    #[must_use]
    pub const fn new(spec: &TrainSpec, now: i64) -> Self {
        let TrainerSpec { train_on_prompt, over_length, max_length, .. } = spec.trainer;
        Self { method: spec.method, train_on_prompt, over_length, max_length, now }
    }

    /// Encodes a row and applies the policy.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn shape(&self, model: &TextModel, row: &Row) -> Result<ShapedRow, Refusal> {
        self.cut(self.encode(model, row)?)
    }

    /// Encodes all tokens of a row, without a limit.
    ///
    /// # Errors
    /// [`Refusal::Unusable`], [`Refusal::Format`].
    pub fn encode(&self, model: &TextModel, row: &Row) -> Result<Example, Refusal> {
        self.method.takes(row.format()).map_err(Refusal::Format)?;
        let learnt = if self.train_on_prompt { Learnt::All } else { Learnt::Answers };
        model.encode_row(row, learnt, self.now).map_err(|why| Refusal::Unusable(why.to_string()))
    }

    /// Applies the policy to a row's tokens.
    ///
    /// # Errors
    /// [`Refusal::Unusable`], [`Refusal::TooLong`].
    pub fn cut(&self, whole: Example) -> Result<ShapedRow, Refusal> {
        let (tokens, most) = (whole.ids.len() as u64, self.max_length as usize);
        if whole.ids.len() <= most {
            return Ok(ShapedRow { examples: vec![whole], tokens, outcome: RowOutcome::Whole });
        }
        let (examples, outcome) = match self.over_length {
            OverLength::Error => return Err(Refusal::TooLong(tokens)),
            OverLength::Drop => (Vec::new(), RowOutcome::Dropped),
            OverLength::Truncate => {
                let Example { mut ids, mut trained } = whole;
                ids.truncate(most);
                trained.truncate(most);
                (learnable(vec![Example { ids, trained }]), RowOutcome::Truncated)
            }
            OverLength::Split => {
                let parts = windows(&whole, most);
                let all = parts.len() as u64;
                let parts = learnable(parts);
                let kept = parts.len() as u64;
                (parts, RowOutcome::Split { parts: kept, left_out: all - kept })
            }
        };
        if examples.is_empty() && outcome != RowOutcome::Dropped {
            let part = if outcome == RowOutcome::Truncated { "the first" } else { "any" };
            return Err(Refusal::Unusable(format!(
                "the row has {tokens} tokens, and no token in {part} {most} (trainer.max_length) is trained"
            )));
        }
        Ok(ShapedRow { examples, tokens, outcome })
    }
}

fn learnable(mut examples: Vec<Example>) -> Vec<Example> {
    examples.retain(|example| example.trained_tokens() > 0);
    examples
}

/// Splits a row into parts of at most `most` tokens. Each part except the first begins with the last token of the one
/// before, which is not trained again: so every token is still predicted exactly once, with context.
pub(crate) fn windows(whole: &Example, most: usize) -> Vec<Example> {
    let mut parts = Vec::new();
    let (mut start, mut end) = (0, 0);
    while most > 1 && end < whole.ids.len() {
        end = (start + most).min(whole.ids.len());
        parts.push(Example::new(whole.ids[start..end].to_vec(), whole.trained[start..end].to_vec()));
        start = end - 1;
    }
    parts
}

/// A reader of a file's bytes as they stream, which yields training rows. Memory: one line, and one sequence while
/// documents are packed.
#[derive(Debug)]
pub struct RowReader<'a> {
    checker: RowChecker,
    maker: Maker<'a>,
}

#[derive(Debug)]
struct Maker<'a> {
    model: &'a TextModel,
    policy: RowPolicy,
    /// The documents of the sequence that is not full yet.
    open: Option<TrainRow>,
    stats: RowStats,
    defects: Vec<RowDefect>,
    defect_count: u64,
    too_long: Lines,
    wrong: Option<WrongFormat>,
}

impl<'a> RowReader<'a> {
    /// Creates a reader at the beginning of a file.
    #[must_use]
    pub fn new(model: &'a TextModel, policy: RowPolicy) -> Self {
        let maker = Maker {
            model,
            policy,
            open: None,
            stats: RowStats::default(),
            defects: Vec::new(),
            defect_count: 0,
            too_long: Lines::default(),
            wrong: None,
        };
        Self { checker: RowChecker::new(), maker }
    }

    /// Adds the next bytes, and calls `each` with each row that is ready.
    pub fn push(&mut self, piece: &[u8], each: &mut impl FnMut(TrainRow)) {
        let maker = &mut self.maker;
        self.checker.push_with(piece, &mut |line, row| maker.take(line, &row, each));
    }

    /// Ends the file. The rows are valid only if this returns no error.
    ///
    /// # Errors
    /// [`RowsError`]: the lines that failed.
    pub fn finish(self, each: &mut impl FnMut(TrainRow)) -> Result<RowStats, RowsError> {
        let Self { checker, mut maker } = self;
        let checked = checker.finish_with(&mut |line, row| maker.take(line, &row, each));
        if let Some(wrong) = maker.wrong {
            return Err(wrong.into());
        }
        maker.close(each);
        maker.verdict(checked.err())
    }
}

impl Maker<'_> {
    fn take(&mut self, line: u64, row: &Row, each: &mut impl FnMut(TrainRow)) {
        if self.wrong.is_some() {
            return;
        }
        match self.policy.shape(self.model, row) {
            Ok(shaped) => self.keep(line, shaped, each),
            Err(Refusal::Format(wrong)) => self.wrong = Some(wrong),
            Err(Refusal::TooLong(tokens)) => self.too_long.add(line, tokens),
            Err(Refusal::Unusable(message)) => {
                self.defect_count += 1;
                if self.defects.len() < KEPT_DEFECTS {
                    self.defects.push(RowDefect { line, message });
                }
            }
        }
    }

    fn keep(&mut self, line: u64, shaped: ShapedRow, each: &mut impl FnMut(TrainRow)) {
        match shaped.outcome {
            RowOutcome::Whole => {}
            RowOutcome::Truncated => self.stats.truncated.add(line, shaped.tokens),
            RowOutcome::Dropped => self.stats.dropped.add(line, shaped.tokens),
            RowOutcome::Split { parts, left_out } => {
                self.stats.split.add(line, parts);
                if left_out > 0 {
                    self.stats.left_out.add(line, left_out);
                }
            }
        }
        if !self.policy.method.packs_rows() {
            for example in shaped.examples {
                self.hand_on(TrainRow { line, examples: vec![example] }, each);
            }
            return;
        }
        self.stats.documents += u64::from(!shaped.examples.is_empty());
        for example in shaped.examples {
            match &mut self.open {
                Some(open) if open.tokens() + example.ids.len() <= self.policy.max_length as usize => {
                    open.examples.push(example);
                }
                _ => {
                    self.close(each);
                    self.open = Some(TrainRow { line, examples: vec![example] });
                }
            }
        }
    }

    /// Hands on the open sequence.
    fn close(&mut self, each: &mut impl FnMut(TrainRow)) {
        if let Some(row) = self.open.take() {
            self.hand_on(row, each);
        }
    }

    fn hand_on(&mut self, row: TrainRow, each: &mut impl FnMut(TrainRow)) {
        self.stats.count(&row.examples);
        each(row);
    }

    fn verdict(mut self, checked: Option<Defects>) -> Result<RowStats, RowsError> {
        let max_length = self.policy.max_length.into();
        let checked = checked.unwrap_or(Defects { first: Vec::new(), total: 0 });
        if checked.total + self.defect_count > 0 {
            let total = checked.total + self.defect_count + self.too_long.count;
            self.defects.extend(self.too_long.first.iter().map(|&(line, tokens)| RowDefect {
                line,
                message: format!("the row has {tokens} tokens, and trainer.max_length is {max_length}"),
            }));
            let mut first = [checked.first, self.defects].concat();
            first.sort_by_key(|defect| defect.line);
            first.truncate(KEPT_DEFECTS);
            return Err(RowsError::Defects(Defects { first, total }));
        }
        if self.too_long.count > 0 {
            return Err(RowsError::TooLong { lines: self.too_long, max_length });
        }
        if self.stats.facts.rows == 0 {
            return Err(RowsError::NoneLeft { count: self.stats.dropped.count, max_length });
        }
        Ok(self.stats)
    }
}
