//! One request's way: adapter, prompt, engine, text. Runs on its own task and ends when the client is gone.
//!
//! Several answers to one prompt are several requests to the engine. The first is alone until it has read the prompt, so
//! that the others find what it read.

use std::{sync::Arc, time::Instant};

use attune_domain::serve::{Echo, GenerateEvent, GenerateRequest, Prompt, Scored, ToolChoice, Tools};
use attune_text::{error::TextError, model::TextModel, template::Turn};
use futures::future::try_join_all;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::{
    adapters::{Adapters, Lease, chain},
    engine::EngineHandle,
    error::Failure,
    grammar::{Constraint, Grammars, format_of},
    sampling::Sampler,
    scores::TokenScore,
    sequence::{Drawn, Work},
    telling::{Telling, Told, scored},
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

/// What a request came to, for the log.
struct Answered {
    prompt_tokens: usize,
    completion_tokens: u64,
    first: Option<Instant>,
}

impl Answered {
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
) -> Result<Answered, Failure> {
    check_ids(&request, adapters.vocabulary())?;
    let lease = match &request.adapter {
        Some(wanted) => Some(adapters.lease(wanted).await?),
        None => None,
    };
    let adapter_text = lease.as_ref().and_then(|lease| lease.resident()).map(|resident| resident.text.clone());
    let text = adapter_text.unwrap_or_else(|| adapters.base_text().clone());
    let request = Arc::new(request);
    let (encoder, asked, grammars) = (text.clone(), request.clone(), adapters.grammars().clone());
    let prepared = tokio::task::spawn_blocking(move || prepare(&encoder, &asked, &grammars)).await;
    let (prompt, constraint) = prepared.map_err(|e| Failure::Internal(e.to_string()))??;

    let answering = Answering { engine, request: &request, lease, text: &text, prompt, constraint };
    let mut first = answering.submit(0)?;
    let scores = started(&mut first).await?;
    let echo = answering.echo(&scores).map_err(|e| Failure::Internal(chain(&e)))?;
    let prompt_tokens = answering.prompt.len();
    let _ = out.send(GenerateEvent::Started { prompt_tokens: prompt_tokens as u64, echo }).await;
    let told = answering.tell(first, out).await?;
    let completion_tokens = told.iter().map(|told| told.tokens).sum();
    let _ = out.send(GenerateEvent::Done { completion_tokens }).await;
    Ok(Answered { prompt_tokens, completion_tokens, first: told.iter().filter_map(|told| told.first).min() })
}

/// Ids that the model does not know cannot be read, and cannot be drawn.
fn check_ids(request: &GenerateRequest, vocabulary: u64) -> Result<(), Failure> {
    let unknown = |id: &&u32| u64::from(**id) >= vocabulary;
    let refused = |param, id: &u32| {
        let why = format!("Invalid '{param}': token {id} is outside the model's vocabulary of {vocabulary}");
        Err(Failure::Request { param, why })
    };
    if let Some(id) = request.sampling.logit_bias.keys().find(unknown) {
        return refused("logit_bias", id);
    }
    match &request.prompt {
        Prompt::Tokens { ids } => ids.iter().find(unknown).map_or(Ok(()), |id| refused("prompt", id)),
        Prompt::Chat { .. } | Prompt::Text { .. } => Ok(()),
    }
}

/// The prompt's tokens, and what the answer is bound to.
fn prepare(
    text: &TextModel,
    request: &GenerateRequest,
    grammars: &Grammars,
) -> Result<(Vec<u32>, Option<Constraint>), Failure> {
    if request.tools.is_some() {
        format_of(text)?;
    }
    let constraint = grammars.constraint(text, &request.form, request.tools.as_ref())?;
    Ok((encode(text, &request.prompt, request.tools.as_ref())?, constraint))
}

fn encode(text: &TextModel, prompt: &Prompt, tools: Option<&Tools>) -> Result<Vec<u32>, Failure> {
    let ids = match prompt {
        Prompt::Chat { messages } => {
            let turns: Vec<Turn<'_>> = messages
                .iter()
                .map(|message| Turn {
                    tool_calls: message.tool_calls.as_ref(),
                    tool_call_id: message.tool_call_id.as_deref(),
                    ..Turn::new(&message.role, &message.content)
                })
                .collect();
            text.encode_chat(&turns, tools.map(|tools| &tools.shown))?
        }
        Prompt::Text { text: prompt } => text.encode_prompt(prompt)?,
        Prompt::Tokens { ids } => ids.clone(),
    };
    if ids.is_empty() { Err(Failure::EmptyPrompt) } else { Ok(ids) }
}

/// Waits until the prompt is read; gives the scores of its tokens.
async fn started(drawn: &mut UnboundedReceiver<Drawn>) -> Result<Vec<TokenScore>, Failure> {
    match drawn.recv().await {
        Some(Drawn::Started { scores }) => Ok(scores),
        Some(Drawn::Failed(failure)) => Err(failure),
        Some(Drawn::Token { .. } | Drawn::End { .. }) => Err(Failure::Internal("an answer without a beginning".into())),
        None => Err(Failure::Internal("the engine has stopped".into())),
    }
}

/// A request whose prompt is tokens.
struct Answering<'a> {
    engine: &'a EngineHandle,
    request: &'a GenerateRequest,
    lease: Option<Lease>,
    text: &'a TextModel,
    prompt: Vec<u32>,
    constraint: Option<Constraint>,
}

impl Answering<'_> {
    /// Asks the engine for answer number `choice`.
    fn submit(&self, choice: u32) -> Result<UnboundedReceiver<Drawn>, Failure> {
        let (tokens, drawn) = mpsc::unbounded_channel();
        let sampling = &self.request.sampling;
        self.engine.submit(Work {
            prompt: self.prompt.clone(),
            lease: self.lease.clone(),
            sampler: Sampler::new(sampling, choice),
            max_tokens: sampling.max_tokens,
            stop_ids: self.text.stop_ids().to_vec(),
            constraint: self.constraint.as_ref().map(Constraint::fork),
            scores: sampling.logprobs.map(|top| top as usize),
            prompt_scores: self.request.echo && choice == 0,
            out: tokens,
        })?;
        Ok(drawn)
    }

    /// The prompt as it is said again. The tokens that the tokenizer itself puts before a text are not of it.
    fn echo(&self, scores: &[TokenScore]) -> Result<Option<Echo>, TextError> {
        let tokenizer = self.text.tokenizer();
        let (text, own) = match &self.request.prompt {
            _ if !self.request.echo => return Ok(None),
            Prompt::Text { text } => (text.clone(), self.text.prefix().len()),
            Prompt::Tokens { ids } => (tokenizer.decode_with_special(ids)?, 0),
            Prompt::Chat { .. } => return Ok(None),
        };
        let tokens: Result<Vec<Scored>, _> = scores.iter().skip(own).map(|score| scored(tokenizer, score)).collect();
        Ok(Some(Echo { text, tokens: tokens? }))
    }

    /// Tells all answers, the first of which has begun.
    async fn tell(
        &self,
        first: UnboundedReceiver<Drawn>,
        out: &mpsc::Sender<GenerateEvent>,
    ) -> Result<Vec<Told>, Failure> {
        let others = (1..self.request.choices).map(|choice| self.submit(choice)).collect::<Result<Vec<_>, _>>()?;
        let all = std::iter::once(first).chain(others);
        let stop = &self.request.sampling.stop;
        let callable = self.request.tools.as_ref().is_some_and(|tools| tools.choice != ToolChoice::None);
        let format = if callable { Some(format_of(self.text)?) } else { None };
        let telling = |choice| Telling::new(choice, self.text, stop, out).with_calls(format);
        try_join_all((0..).zip(all).map(|(choice, drawn)| telling(choice).tell(drawn))).await
    }
}
