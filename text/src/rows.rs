//! A file's rows to what is trained on, under a job's policy. Validation, training and preview all go through here, so
//! none of them can count, cut or mask differently from the others.
//!
//! A row above `max_length` tokens is refused, cut, left out or split; documents are packed. Nothing is done in silence:
//! whatever changes a row is in the [`Tally`], with its line.

use attune_domain::{
    dataset::{Defects, KEPT_DEFECTS, Row, RowChecker, RowDefect},
    spec::{Method, OverLength, TrainSpec, WrongFormat},
};

use crate::encode::{Example, Learnt};
use crate::model::TextModel;
use crate::tally::{Lines, RowsError, Tally};

/// The part of a job that decides what becomes of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPolicy {
    /// Which rows, and whether they are packed.
    pub method: Method,
    /// Prompts are learnt too.
    pub train_on_prompt: bool,
    /// What becomes of a row above `max_length`.
    pub over_length: OverLength,
    /// Tokens of a row, at most.
    pub max_length: u32,
    /// What chat templates take for now, in seconds since 1970. Of a job, it is when the job was made: at its check, in training, and after each
    /// pause.
    pub now: i64,
}

/// One row, ready to be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainRow {
    /// Its line in the file, from 1; that of its first document, if several were packed.
    pub line: u64,
    /// One, or the documents that were packed: none of them sees another.
    pub examples: Vec<Example>,
}

impl TrainRow {
    /// How many tokens go through the model.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }
}

/// What the policy makes of one row, before any packing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shaped {
    /// One; none if the row was dropped, several if it was split.
    pub examples: Vec<Example>,
    /// Tokens that the row has by itself.
    pub tokens: u64,
    /// What was done to it.
    pub fate: Fate,
}

/// What was done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Whole,
    /// Its first `max_length` tokens were kept.
    Truncated,
    /// It was left out.
    Dropped,
    /// It became several; parts in which nothing is trained were left out.
    Split {
        /// Parts, those left out not counted.
        parts: u64,
        /// Parts left out.
        left_out: u64,
    },
}

/// Why the policy makes nothing of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It cannot be learnt from; a sentence says why.
    Unusable(String),
    /// It has so many tokens, and too long rows are refused.
    TooLong(u64),
    /// The method does not learn from such rows.
    Format(WrongFormat),
}

impl RowPolicy {
    /// The policy of a job that asks for `spec`.
    #[must_use]
    pub const fn new(spec: &TrainSpec, now: i64) -> Self {
        let TrainSpec { method, train_on_prompt, over_length, max_length, .. } = *spec;
        Self { method, train_on_prompt, over_length, max_length, now }
    }

    /// Makes of one row what is trained on.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn shape(&self, model: &TextModel, row: &Row) -> Result<Shaped, Refusal> {
        self.cut(self.encode(model, row)?)
    }

    /// All tokens of a row, however many they are.
    ///
    /// # Errors
    /// [`Refusal::Unusable`], [`Refusal::Format`].
    pub fn encode(&self, model: &TextModel, row: &Row) -> Result<Example, Refusal> {
        self.method.takes(row.format()).map_err(Refusal::Format)?;
        let learnt = if self.train_on_prompt { Learnt::All } else { Learnt::Answers };
        model.encode_row(row, learnt, self.now).map_err(|why| Refusal::Unusable(why.to_string()))
    }

    /// Makes of a row's tokens what is trained on.
    ///
    /// # Errors
    /// [`Refusal::Unusable`], [`Refusal::TooLong`].
    pub fn cut(&self, whole: Example) -> Result<Shaped, Refusal> {
        let (tokens, most) = (whole.ids.len() as u64, self.max_length as usize);
        if whole.ids.len() <= most {
            return Ok(Shaped { examples: vec![whole], tokens, fate: Fate::Whole });
        }
        let (examples, fate) = match self.over_length {
            OverLength::Error => return Err(Refusal::TooLong(tokens)),
            OverLength::Drop => (Vec::new(), Fate::Dropped),
            OverLength::Truncate => {
                let Example { mut ids, mut trained } = whole;
                ids.truncate(most);
                trained.truncate(most);
                (learnable(vec![Example { ids, trained }]), Fate::Truncated)
            }
            OverLength::Split => {
                let parts = windows(&whole, most);
                let all = parts.len() as u64;
                let parts = learnable(parts);
                let kept = parts.len() as u64;
                (parts, Fate::Split { parts: kept, left_out: all - kept })
            }
        };
        if examples.is_empty() && fate != Fate::Dropped {
            let part = if fate == Fate::Truncated { "the first" } else { "any" };
            return Err(Refusal::Unusable(format!(
                "the row has {tokens} tokens, and no token in {part} {most} (trainer.max_length) is trained"
            )));
        }
        Ok(Shaped { examples, tokens, fate })
    }
}

fn learnable(mut examples: Vec<Example>) -> Vec<Example> {
    examples.retain(|example| example.trained_tokens() > 0);
    examples
}

/// Parts of at most `most` tokens. Each but the first begins with the last token of the one before, which is not trained
/// again: so every token is still predicted once, and the text goes on where it was cut.
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

/// Reads a file's bytes as they come, and hands on what is trained on. Memory: one line, and one sequence while
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
    /// Documents that do not fill a sequence yet.
    open: Option<TrainRow>,
    tally: Tally,
    defects: Vec<RowDefect>,
    defect_count: u64,
    too_long: Lines,
    wrong: Option<WrongFormat>,
}

impl<'a> RowReader<'a> {
    /// A reader that has seen nothing.
    #[must_use]
    pub fn new(model: &'a TextModel, policy: RowPolicy) -> Self {
        let maker = Maker {
            model,
            policy,
            open: None,
            tally: Tally::default(),
            defects: Vec::new(),
            defect_count: 0,
            too_long: Lines::default(),
            wrong: None,
        };
        Self { checker: RowChecker::new(), maker }
    }

    /// Takes the next bytes; hands each row that is ready to `each`.
    pub fn push(&mut self, piece: &[u8], each: &mut impl FnMut(TrainRow)) {
        let maker = &mut self.maker;
        self.checker.push_with(piece, &mut |line, row| maker.take(line, &row, each));
    }

    /// The file has ended. What was handed out counts only if this is no error.
    ///
    /// # Errors
    /// [`RowsError`]: with the lines at fault.
    pub fn finish(self, each: &mut impl FnMut(TrainRow)) -> Result<Tally, RowsError> {
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

    fn keep(&mut self, line: u64, shaped: Shaped, each: &mut impl FnMut(TrainRow)) {
        match shaped.fate {
            Fate::Whole => {}
            Fate::Truncated => self.tally.truncated.add(line, shaped.tokens),
            Fate::Dropped => self.tally.dropped.add(line, shaped.tokens),
            Fate::Split { parts, left_out } => {
                self.tally.split.add(line, parts);
                if left_out > 0 {
                    self.tally.left_out.add(line, left_out);
                }
            }
        }
        if self.policy.method == Method::Supervised {
            for example in shaped.examples {
                self.hand_on(TrainRow { line, examples: vec![example] }, each);
            }
            return;
        }
        self.tally.documents += u64::from(!shaped.examples.is_empty());
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

    /// The open sequence is full.
    fn close(&mut self, each: &mut impl FnMut(TrainRow)) {
        if let Some(row) = self.open.take() {
            self.hand_on(row, each);
        }
    }

    fn hand_on(&mut self, row: TrainRow, each: &mut impl FnMut(TrainRow)) {
        self.tally.count(&row.examples);
        each(row);
    }

    fn verdict(mut self, checked: Option<Defects>) -> Result<Tally, RowsError> {
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
        if self.tally.facts.rows == 0 {
            return Err(RowsError::NoneLeft { count: self.tally.dropped.count, max_length });
        }
        Ok(self.tally)
    }
}
