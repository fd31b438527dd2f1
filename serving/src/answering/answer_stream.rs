//! Converts one answer's tokens into events: complete characters, without any part of a stop string, and with each text
//! its tokens, if log-probabilities were requested. Tool calls become events of their own instead of text.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use attune_domain::serve::{FinishReason, GenerateEvent, GenerateRequest, TokenLogprob, ToolChoice, TopLogprob};
use attune_process::error_chain::chain;
use attune_text::{
    detokenizer::Detokenizer,
    error::TextError,
    model::TextModel,
    tokenizer::Tokenizer,
    tools::{Found, ToolFormat, ToolScanner},
};
use tokio::sync::mpsc;

use crate::{
    answering::{
        grammar_rules::format_of,
        stop::{StopScanner, StopStrings},
    },
    decoding::{scores::TokenScore, sequence::EngineEvent},
    error::Failure,
};

/// The statistics of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StreamStats {
    /// The number of sampled tokens, a stop token included.
    pub(crate) tokens: u64,
    /// The time of the first token.
    pub(crate) first: Option<Instant>,
}

/// The event stream of one answer.
pub(crate) struct AnswerStream<'a> {
    choice: u32,
    tokenizer: &'a Tokenizer,
    letters: Detokenizer<'a>,
    stops: StopScanner,
    out: &'a mpsc::Sender<GenerateEvent>,
    /// Tokens that have not been sent, each with the offset in the text at which it starts.
    pending: VecDeque<(usize, TokenLogprob)>,
    /// The length in bytes of the text of all tokens so far.
    known: usize,
    /// The length in bytes of the text that has been sent.
    sent: usize,
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

impl<'a> AnswerStream<'a> {
    pub(crate) fn new(
        choice: u32,
        (text, letters): (&'a TextModel, Detokenizer<'a>),
        stop: Arc<StopStrings>,
        out: &'a mpsc::Sender<GenerateEvent>,
    ) -> Self {
        let (tokenizer, stops) = (text.tokenizer(), StopScanner::new(stop));
        Self { choice, tokenizer, letters, stops, out, pending: VecDeque::new(), known: 0, sent: 0, calls: None }
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
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<EngineEvent>,
    ) -> Result<StreamStats, Failure> {
        let mut stats = StreamStats::default();
        loop {
            match events.recv().await {
                Some(EngineEvent::Started { .. }) => {}
                Some(EngineEvent::Token { id, score }) => {
                    stats.first.get_or_insert_with(Instant::now);
                    stats.tokens += 1;
                    if self.token(id, score).await? {
                        // Dropping the receiver cancels the request in the engine.
                        self.end_calls().await;
                        let end_tokens = self.unsent();
                        self.finished(FinishReason::Stop, true, end_tokens).await;
                        return Ok(stats);
                    }
                }
                Some(EngineEvent::End { reason, end_token, score, .. }) => {
                    stats.tokens += u64::from(end_token);
                    let stopped = self.end().await;
                    let reason = if stopped { FinishReason::Stop } else { reason };
                    let ended = reason == FinishReason::Stop && self.called();
                    let reason = if ended { FinishReason::ToolCalls } else { reason };
                    let mut end_tokens = self.unsent();
                    if let Some(score) = score.filter(|_| !stopped) {
                        end_tokens.push(token_logprob(self.tokenizer, &score).map_err(failed)?);
                    }
                    self.finished(reason, stopped, end_tokens).await;
                    return Ok(stats);
                }
                Some(EngineEvent::Failed(failure)) => return Err(failure),
                None => return Err(Failure::Internal("the engine has stopped".into())),
            }
        }
    }

    /// Processes a token. Returns whether a stop string was found.
    async fn token(&mut self, id: u32, score: Option<TokenScore>) -> Result<bool, Failure> {
        if let Some(score) = score {
            self.pending.push_back((self.known, token_logprob(self.tokenizer, &score).map_err(failed)?));
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
            let tokens = self.unsent();
            self.send_text(held, tokens).await;
        }
        self.end_calls().await;
        stopped
    }

    /// Sends the text that was held back because it might have become a call.
    async fn end_calls(&mut self) {
        if let Some(calls) = &mut self.calls {
            let scanner = std::mem::replace(&mut calls.scanner, ToolScanner::new(calls.format, Arc::default()));
            self.send_found(scanner.finish(), Vec::new()).await;
        }
    }

    async fn piece(&mut self, piece: &str) -> bool {
        self.known += piece.len();
        let scanned = self.stops.push(piece);
        self.sent += scanned.text.len();
        let count = self.pending.iter().take_while(|(start, _)| *start < self.sent).count();
        let tokens = self.pending.drain(..count).map(|(_, token)| token).collect();
        self.send_text(scanned.text, tokens).await;
        scanned.stopped
    }

    async fn send_text(&mut self, text: String, tokens: Vec<TokenLogprob>) {
        if let Some(calls) = &mut self.calls {
            let found = calls.scanner.push(&text);
            return self.send_found(found, tokens).await;
        }
        self.send_piece(text, tokens).await;
    }

    async fn send_piece(&self, text: String, tokens: Vec<TokenLogprob>) {
        if !text.is_empty() || !tokens.is_empty() {
            self.send(GenerateEvent::Piece { choice: self.choice, text, tokens }).await;
        }
    }

    /// Sends text and calls. The tokens of calls are sent with the text around them.
    async fn send_found(&mut self, found: Vec<Found>, mut tokens: Vec<TokenLogprob>) {
        let choice = self.choice;
        for found in found {
            match found {
                Found::Text(text) => self.send_piece(text, std::mem::take(&mut tokens)).await,
                Found::Call { name } => {
                    let (call, id) = self.next_call();
                    self.send(GenerateEvent::ToolCallStart { choice, call, id, name }).await;
                }
                Found::Arguments(text) => {
                    let call = self.calls.as_ref().map_or(0, |calls| calls.count.saturating_sub(1));
                    self.send(GenerateEvent::Arguments { choice, call, text }).await;
                }
            }
        }
        self.send_piece(String::new(), tokens).await;
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

    /// Removes and returns the tokens that have not been sent.
    fn unsent(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.pending).into_iter().map(|(_, token)| token).collect()
    }

    async fn finished(&self, finish_reason: FinishReason, stop_string: bool, end_tokens: Vec<TokenLogprob>) {
        let choice = self.choice;
        self.send(GenerateEvent::Finished { choice, finish_reason, stop_string, end_tokens }).await;
    }

    /// Sends an event. If the client is gone, this task is cancelled from outside, so an error is ignored here.
    async fn send(&self, event: GenerateEvent) {
        let _ = self.out.send(event).await;
    }
}

fn failed(error: TextError) -> Failure {
    Failure::Internal(chain(&error))
}

/// The format of tool calls, and the names of the tools that may be called.
type Callable = (ToolFormat, Arc<[String]>);

/// Returns the format of tool calls and the names of the tools that the model may call; `None`: it may call none.
///
/// # Errors
/// As [`format_of`].
pub(crate) fn callable(request: &GenerateRequest, text: &TextModel) -> Result<Option<Callable>, Failure> {
    let Some(tools) = request.tools.as_ref().filter(|tools| tools.choice != ToolChoice::None) else { return Ok(None) };
    let names = tools.definitions.iter().map(|tool| tool.name.clone()).collect();
    Ok(Some((format_of(text)?, names)))
}

/// Converts a token's score, with its top alternatives, to bytes.
///
/// # Errors
/// An error of the tokenizer.
pub(crate) fn token_logprob(tokenizer: &Tokenizer, score: &TokenScore) -> Result<TokenLogprob, TextError> {
    let likely = |(id, logprob): &(u32, f64)| Ok(TopLogprob { bytes: tokenizer.token_bytes(*id)?, logprob: *logprob });
    Ok(TokenLogprob {
        id: score.id,
        special: tokenizer.is_special(score.id),
        bytes: tokenizer.token_bytes(score.id)?,
        logprob: score.logprob,
        top: score.top.iter().map(likely).collect::<Result<_, TextError>>()?,
    })
}
