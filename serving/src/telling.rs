//! One answer's tokens turned into events: whole characters, nothing of a stop string, and with each text the tokens that
//! it is of, if their log-probabilities were asked for.

use std::{collections::VecDeque, time::Instant};

use attune_domain::serve::{FinishReason, GenerateEvent, Likely, Scored};
use attune_text::{
    error::TextError,
    model::TextModel,
    tokenizer::{Detokenizer, Tokenizer},
};
use tokio::sync::mpsc;

use crate::{adapters::chain, error::Failure, scores::TokenScore, sequence::Drawn, stop::StopScanner};

/// What came of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told {
    /// Tokens drawn, an end token included.
    pub(crate) tokens: u64,
    /// When the first of them came.
    pub(crate) first: Option<Instant>,
}

/// Tells one answer.
pub(crate) struct Telling<'a> {
    choice: u32,
    tokenizer: &'a Tokenizer,
    letters: Detokenizer<'a>,
    stops: StopScanner,
    out: &'a mpsc::Sender<GenerateEvent>,
    /// Tokens that are not told yet, each with the place in the text where it begins.
    untold: VecDeque<(usize, Scored)>,
    /// Bytes of text that the tokens have given.
    known: usize,
    /// Bytes of it that are told.
    told: usize,
}

impl<'a> Telling<'a> {
    pub(crate) fn new(choice: u32, text: &'a TextModel, stop: &[String], out: &'a mpsc::Sender<GenerateEvent>) -> Self {
        let tokenizer = text.tokenizer();
        let (letters, stops) = (Detokenizer::new(tokenizer), StopScanner::new(stop));
        Self { choice, tokenizer, letters, stops, out, untold: VecDeque::new(), known: 0, told: 0 }
    }

    /// Tells all that the engine draws.
    ///
    /// # Errors
    /// The engine's failure, or the tokenizer's.
    pub(crate) async fn tell(mut self, mut drawn: mpsc::UnboundedReceiver<Drawn>) -> Result<Told, Failure> {
        let mut told = Told::default();
        loop {
            match drawn.recv().await {
                Some(Drawn::Started { .. }) => {}
                Some(Drawn::Token { id, score }) => {
                    told.first.get_or_insert_with(Instant::now);
                    told.tokens += 1;
                    if self.token(id, score).await? {
                        // Dropping `drawn` tells the engine to leave off.
                        self.finished(FinishReason::Stop).await;
                        return Ok(told);
                    }
                }
                Some(Drawn::End { reason, end_token }) => {
                    told.tokens += u64::from(end_token);
                    let stopped = self.end().await?;
                    self.finished(if stopped { FinishReason::Stop } else { reason }).await;
                    return Ok(told);
                }
                Some(Drawn::Failed(failure)) => return Err(failure),
                None => return Err(Failure::Internal("the engine has stopped".into())),
            }
        }
    }

    /// `true`: a stop string came.
    async fn token(&mut self, id: u32, score: Option<TokenScore>) -> Result<bool, Failure> {
        if let Some(score) = score {
            self.untold.push_back((self.known, scored(self.tokenizer, &score).map_err(failed)?));
        }
        let Some(piece) = self.letters.push(id).map_err(failed)? else { return Ok(false) };
        Ok(self.piece(&piece).await)
    }

    /// No token follows; `true` if a stop string came at last.
    async fn end(&mut self) -> Result<bool, Failure> {
        let letters = std::mem::replace(&mut self.letters, Detokenizer::new(self.tokenizer));
        let rest = letters.finish().map_err(failed)?.unwrap_or_default();
        let stopped = self.piece(&rest).await;
        if !stopped {
            let held = std::mem::replace(&mut self.stops, StopScanner::new(&[])).finish();
            let tokens = std::mem::take(&mut self.untold).into_iter().map(|(_, token)| token).collect();
            self.say_text(held, tokens).await;
        }
        Ok(stopped)
    }

    async fn piece(&mut self, piece: &str) -> bool {
        self.known += piece.len();
        let scanned = self.stops.push(piece);
        self.told += scanned.text.len();
        let count = self.untold.iter().take_while(|(start, _)| *start < self.told).count();
        let tokens = self.untold.drain(..count).map(|(_, token)| token).collect();
        self.say_text(scanned.text, tokens).await;
        scanned.stopped
    }

    async fn say_text(&self, text: String, tokens: Vec<Scored>) {
        if !text.is_empty() || !tokens.is_empty() {
            self.say(GenerateEvent::Piece { choice: self.choice, text, tokens }).await;
        }
    }

    async fn finished(&self, finish_reason: FinishReason) {
        self.say(GenerateEvent::Finished { choice: self.choice, finish_reason }).await;
    }

    /// A client that is gone ends this task from outside, so nothing is done about it here.
    async fn say(&self, event: GenerateEvent) {
        let _ = self.out.send(event).await;
    }
}

fn failed(error: TextError) -> Failure {
    Failure::Internal(chain(&error))
}

/// A token and its rivals in bytes.
///
/// # Errors
/// The tokenizer's.
pub(crate) fn scored(tokenizer: &Tokenizer, score: &TokenScore) -> Result<Scored, TextError> {
    let likely = |(id, logprob): &(u32, f64)| Ok(Likely { bytes: tokenizer.token_bytes(*id)?, logprob: *logprob });
    Ok(Scored {
        bytes: tokenizer.token_bytes(score.id)?,
        logprob: score.logprob,
        top: score.top.iter().map(likely).collect::<Result<_, TextError>>()?,
    })
}
