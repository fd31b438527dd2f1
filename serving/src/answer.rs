//! One request's way: adapter, prompt, engine, text. Runs on its own task and ends when the client is gone.

use std::time::Instant;

use attune_domain::serve::{FinishReason, GenerateEvent, GenerateRequest, Prompt};
use attune_text::{model::TextModel, template::Turn, tokenizer::Detokenizer};
use tokio::sync::mpsc;

use crate::{
    adapters::{Adapters, chain},
    engine::EngineHandle,
    error::Failure,
    sampling::Sampler,
    sequence::{Drawn, Work},
    stop::StopScanner,
};

/// Answers `request` into `out`. Returns early if nobody listens there any more.
pub async fn answer(
    adapters: &Adapters,
    engine: &EngineHandle,
    request: GenerateRequest,
    out: mpsc::Sender<GenerateEvent>,
) {
    let began = Instant::now();
    let request_id = request.request_id.clone();
    let outcome = tokio::select! {
        outcome = try_answer(adapters, engine, request, &out) => outcome,
        () = out.closed() => {
            tracing::debug!(request_id, "the client is gone");
            return;
        }
    };
    match outcome {
        Ok(told) => told.log(&request_id, began),
        Err(failure) => {
            tracing::debug!(request_id, code = failure.code(), %failure, "no answer");
            let _ = out.send(failure.into()).await; // the client may have left in this moment
        }
    }
}

/// What an answer was like, for the log.
struct Told {
    prompt_tokens: usize,
    completion_tokens: u64,
    first: Option<Instant>,
}

impl Told {
    fn log(&self, request_id: &str, began: Instant) {
        let first = self.first.unwrap_or_else(Instant::now);
        let rest = first.elapsed().as_secs_f64();
        let per_second = if rest > 0.0 { (self.completion_tokens as f64 - 1.0) / rest } else { 0.0 };
        tracing::debug!(
            request_id,
            prompt_tokens = self.prompt_tokens,
            completion_tokens = self.completion_tokens,
            first_token_ms = u64::try_from((first - began).as_millis()).unwrap_or(u64::MAX),
            tokens_per_second = format!("{per_second:.1}"),
            "answered"
        );
    }
}

async fn try_answer(
    adapters: &Adapters,
    engine: &EngineHandle,
    request: GenerateRequest,
    out: &mpsc::Sender<GenerateEvent>,
) -> Result<Told, Failure> {
    let lease = match &request.adapter {
        Some(wanted) => Some(adapters.lease(wanted).await?),
        None => None,
    };
    let adapter_text = lease.as_ref().and_then(|lease| lease.resident()).map(|resident| resident.text.clone());
    let text = adapter_text.unwrap_or_else(|| adapters.base_text().clone());

    let (sampling, prompt) = (request.sampling, request.prompt);
    let encoder = text.clone();
    let encoded = tokio::task::spawn_blocking(move || encode(&encoder, &prompt)).await;
    let prompt = encoded.map_err(|e| Failure::Internal(e.to_string()))??;

    let prompt_tokens = prompt.len();
    let (tokens, drawn) = mpsc::unbounded_channel();
    engine.submit(Work {
        prompt,
        lease,
        sampler: Sampler::new(&sampling),
        max_tokens: sampling.max_tokens,
        stop_ids: text.stop_ids().to_vec(),
        out: tokens,
    })?;
    Telling { text: &text, stops: StopScanner::new(&sampling.stop), out, prompt_tokens }.tell(drawn).await
}

fn encode(text: &TextModel, prompt: &Prompt) -> Result<Vec<u32>, Failure> {
    let ids = match prompt {
        Prompt::Chat { messages } => {
            let turns: Vec<Turn<'_>> =
                messages.iter().map(|m| Turn { role: &m.role, content: &m.content, name: None }).collect();
            text.encode_chat(&turns)?
        }
        Prompt::Text { text: prompt } => text.encode_prompt(prompt)?,
    };
    if ids.is_empty() { Err(Failure::EmptyPrompt) } else { Ok(ids) }
}

/// Turns drawn tokens into events.
struct Telling<'a> {
    text: &'a TextModel,
    stops: StopScanner,
    out: &'a mpsc::Sender<GenerateEvent>,
    prompt_tokens: usize,
}

impl Telling<'_> {
    async fn tell(mut self, mut drawn: mpsc::UnboundedReceiver<Drawn>) -> Result<Told, Failure> {
        let mut told = Told { prompt_tokens: self.prompt_tokens, completion_tokens: 0, first: None };
        let mut letters = Detokenizer::new(self.text.tokenizer());
        let failed = |e| Failure::Internal(chain(&e));
        loop {
            match drawn.recv().await {
                Some(Drawn::Started) => {
                    self.say(GenerateEvent::Started { prompt_tokens: self.prompt_tokens as u64 }).await;
                }
                Some(Drawn::Token(id)) => {
                    told.first.get_or_insert_with(Instant::now);
                    told.completion_tokens += 1;
                    let Some(piece) = letters.push(id).map_err(failed)? else { continue };
                    if self.piece(&piece).await {
                        // Dropping `drawn` tells the engine to leave off.
                        return Ok(self.finished(told, FinishReason::Stop).await);
                    }
                }
                Some(Drawn::End { reason, end_token }) => {
                    told.completion_tokens += u64::from(end_token);
                    let rest = letters.finish().map_err(failed)?.unwrap_or_default();
                    let stopped = self.piece(&rest).await;
                    if !stopped {
                        let held = std::mem::replace(&mut self.stops, StopScanner::new(&[])).finish();
                        self.say_text(held).await;
                    }
                    return Ok(self.finished(told, if stopped { FinishReason::Stop } else { reason }).await);
                }
                Some(Drawn::Failed(failure)) => return Err(failure),
                None => return Err(Failure::Internal("the engine has stopped".into())),
            }
        }
    }

    /// Says what of the piece is final; `true` if a stop string came.
    async fn piece(&mut self, piece: &str) -> bool {
        let scanned = self.stops.push(piece);
        self.say_text(scanned.text).await;
        scanned.stopped
    }

    async fn say_text(&self, text: String) {
        if !text.is_empty() {
            self.say(GenerateEvent::Piece { text }).await;
        }
    }

    async fn finished(&self, told: Told, finish_reason: FinishReason) -> Told {
        self.say(GenerateEvent::Finished { finish_reason, completion_tokens: told.completion_tokens }).await;
        told
    }

    /// A client that is gone ends this task from outside, so nothing is done about it here.
    async fn say(&self, event: GenerateEvent) {
        let _ = self.out.send(event).await;
    }
}
