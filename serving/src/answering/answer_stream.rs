//! Converts one answer's tokens into events: complete characters, without any part of a stop string, and with each text
//! its tokens, if log-probabilities were requested. Tool calls become events of their own instead of text.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use attune_domain::serve::{FinishReason, GenerateEvent, Likely, Scored};
use attune_text::{
    detokenizer::Detokenizer,
    error::TextError,
    model::TextModel,
    tokenizer::Tokenizer,
    tools::{Found, ToolFormat, ToolScanner},
};
use tokio::sync::mpsc;

use crate::{
    answering::stop::{StopScanner, StopStrings},
    decoding::{scores::TokenScore, sequence::Drawn},
    error::{Failure, chain},
};

/// The statistics of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told {
    /// The number of sampled tokens, a stop token included.
    pub(crate) tokens: u64,
    /// The time of the first token.
    pub(crate) first: Option<Instant>,
}

/// The event stream of one answer.
pub(crate) struct Telling<'a> {
    choice: u32,
    tokenizer: &'a Tokenizer,
    letters: Detokenizer<'a>,
    stops: StopScanner,
    out: &'a mpsc::Sender<GenerateEvent>,
    /// Tokens that have not been sent, each with the offset in the text at which it starts.
    untold: VecDeque<(usize, Scored)>,
    /// The length in bytes of the text of all tokens so far.
    known: usize,
    /// The length in bytes of the text that has been sent.
    told: usize,
    calls: Option<Calls>,
}

/// The detection of an answer's tool calls.
struct Calls {
    format: ToolFormat,
    scanner: ToolScanner,
    /// The token that precedes calls, if it is a special token without text.
    opening: Option<u32>,
    /// The number of calls that have started.
    count: u32,
}

impl<'a> Telling<'a> {
    pub(crate) fn new(
        choice: u32,
        (text, letters): (&'a TextModel, Detokenizer<'a>),
        stop: Arc<StopStrings>,
        out: &'a mpsc::Sender<GenerateEvent>,
    ) -> Self {
        let (tokenizer, stops) = (text.tokenizer(), StopScanner::new(stop));
        Self { choice, tokenizer, letters, stops, out, untold: VecDeque::new(), known: 0, told: 0, calls: None }
    }

    /// Detects calls in this format, of tools with these names.
    pub(crate) fn with_calls(mut self, calls: Option<(ToolFormat, Arc<[String]>)>) -> Self {
        self.calls = calls.map(|(format, names)| Calls {
            format,
            scanner: ToolScanner::new(format, names),
            opening: self.tokenizer.id_of(format.opening()).filter(|id| self.tokenizer.is_special(*id)),
            count: 0,
        });
        self
    }

    /// Sends the events of all tokens that the engine samples. Returns the answer's statistics.
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
                        // Dropping the receiver cancels the request in the engine.
                        self.end_calls().await;
                        self.finished(FinishReason::Stop).await;
                        return Ok(told);
                    }
                }
                Some(Drawn::End { reason, end_token }) => {
                    told.tokens += u64::from(end_token);
                    let stopped = self.end().await;
                    let reason = if stopped { FinishReason::Stop } else { reason };
                    let ended = reason == FinishReason::Stop && self.called();
                    self.finished(if ended { FinishReason::ToolCalls } else { reason }).await;
                    return Ok(told);
                }
                Some(Drawn::Failed(failure)) => return Err(failure),
                None => return Err(Failure::Internal("the engine has stopped".into())),
            }
        }
    }

    /// Processes a token. Returns whether a stop string was found.
    async fn token(&mut self, id: u32, score: Option<TokenScore>) -> Result<bool, Failure> {
        if let Some(score) = score {
            self.untold.push_back((self.known, scored(self.tokenizer, &score).map_err(failed)?));
        }
        if let Some(calls) = self.calls.as_ref().filter(|calls| calls.opening == Some(id)) {
            let opening = calls.format.opening();
            let letters = std::mem::replace(&mut self.letters, Detokenizer::new(self.tokenizer));
            let before = letters.finish().unwrap_or_default();
            return Ok(self.piece(&before).await || self.piece(opening).await);
        }
        let Some(piece) = self.letters.push(id).map_err(failed)? else { return Ok(false) };
        Ok(self.piece(&piece).await)
    }

    /// Sends the remaining text after the last token. Returns whether a stop string was found in it.
    async fn end(&mut self) -> bool {
        let letters = std::mem::replace(&mut self.letters, Detokenizer::new(self.tokenizer));
        let rest = letters.finish().unwrap_or_default();
        let stopped = self.piece(&rest).await;
        if !stopped {
            let held = std::mem::replace(&mut self.stops, StopScanner::new(Arc::default())).finish();
            let tokens = std::mem::take(&mut self.untold).into_iter().map(|(_, token)| token).collect();
            self.say_text(held, tokens).await;
        }
        self.end_calls().await;
        stopped
    }

    /// Sends the text that was held back because it might have become a call.
    async fn end_calls(&mut self) {
        if let Some(calls) = &mut self.calls {
            let scanner = std::mem::replace(&mut calls.scanner, ToolScanner::new(calls.format, Arc::default()));
            self.say_found(scanner.finish(), Vec::new()).await;
        }
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

    async fn say_text(&mut self, text: String, tokens: Vec<Scored>) {
        if let Some(calls) = &mut self.calls {
            let found = calls.scanner.push(&text);
            return self.say_found(found, tokens).await;
        }
        self.say_piece(text, tokens).await;
    }

    async fn say_piece(&self, text: String, tokens: Vec<Scored>) {
        if !text.is_empty() || !tokens.is_empty() {
            self.say(GenerateEvent::Piece { choice: self.choice, text, tokens }).await;
        }
    }

    /// Sends text and calls. The tokens of calls are sent with the text around them.
    async fn say_found(&mut self, found: Vec<Found>, mut tokens: Vec<Scored>) {
        let choice = self.choice;
        for found in found {
            match found {
                Found::Text(text) => self.say_piece(text, std::mem::take(&mut tokens)).await,
                Found::Call { name } => {
                    let (call, id) = self.next_call();
                    self.say(GenerateEvent::Called { choice, call, id, name }).await;
                }
                Found::Arguments(text) => {
                    let call = self.calls.as_ref().map_or(0, |calls| calls.count.saturating_sub(1));
                    self.say(GenerateEvent::Arguments { choice, call, text }).await;
                }
            }
        }
        self.say_piece(String::new(), tokens).await;
    }

    /// Returns the index of a new call, and an ID for it that the model's template accepts when the call is sent back.
    fn next_call(&mut self) -> (u32, String) {
        let Some(calls) = &mut self.calls else { return (0, String::new()) };
        let digits = format!("{:032x}", rand::random::<u128>());
        calls.count += 1;
        // Mistral's templates require nine letters or digits.
        let id = if calls.format == ToolFormat::Mistral {
            digits[..9].to_owned()
        } else {
            format!("call_{}", &digits[..24])
        };
        (calls.count - 1, id)
    }

    fn called(&self) -> bool {
        self.calls.as_ref().is_some_and(|calls| calls.count > 0)
    }

    async fn finished(&self, finish_reason: FinishReason) {
        self.say(GenerateEvent::Finished { choice: self.choice, finish_reason }).await;
    }

    /// Sends an event. If the client is gone, this task is cancelled from outside, so an error is ignored here.
    async fn say(&self, event: GenerateEvent) {
        let _ = self.out.send(event).await;
    }
}

fn failed(error: TextError) -> Failure {
    Failure::Internal(chain(&error))
}

/// Converts a token's score, with its top alternatives, to bytes.
///
/// # Errors
/// An error of the tokenizer.
pub(crate) fn scored(tokenizer: &Tokenizer, score: &TokenScore) -> Result<Scored, TextError> {
    let likely = |(id, logprob): &(u32, f64)| Ok(Likely { bytes: tokenizer.token_bytes(*id)?, logprob: *logprob });
    Ok(Scored {
        bytes: tokenizer.token_bytes(score.id)?,
        logprob: score.logprob,
        top: score.top.iter().map(likely).collect::<Result<_, TextError>>()?,
    })
}
