//! The path of one request: adapter, prompt, engine, text. It runs on its own task and ends when the client
//! disconnects.
//!
//! Several answers to one prompt are several requests to the engine. The others are submitted only after the first has
//! processed the prompt, so that they reuse its prefix.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_domain::serve::{
    Echo, Form, GenerateEvent, GenerateRequest, MAX_GENERATED_TOKENS, Prompt, TokenLogprob, ToolChoice,
};
use attune_process::error_chain::chain;
use attune_text::{
    detokenizer::Detokenizer,
    error::TextError,
    model::TextModel,
    template::{RenderSettings, Turn},
    tools::ToolFormat,
};
use futures::future::try_join_all;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

use crate::{
    adapters::Lease,
    answering::{
        answer_stream::{AnswerStream, StreamStats, callable, token_logprob},
        grammar::{Constraint, GRAMMAR_TIME, Grammars, too_slow},
        stop::StopStrings,
    },
    app::App,
    decoding::{
        engine::EngineHandle,
        sampling::Sampler,
        scores::TokenScore,
        sequence::{EngineEvent, GenerateJob},
    },
    error::Failure,
};

/// Answers `request` into `out`. Returns early if the receiver is dropped.
pub async fn answer(app: &App, request: GenerateRequest, out: mpsc::Sender<GenerateEvent>) {
    let began = Instant::now();
    let request_id = request.request_id.clone();
    let outcome = tokio::select! {
        outcome = try_answer(app, request, &out) => outcome,
        () = out.closed() => {
            tracing::debug!(request_id, "the client has disconnected");
            return;
        }
    };
    match outcome {
        Ok(answered) => answered.log(&request_id, began),
        Err(failure) => {
            tracing::debug!(request_id, code = failure.code(), %failure, "no answer");
            let _ = out.send(failure.into()).await; // the client may have disconnected meanwhile
        }
    }
}

/// The statistics of a request, for the log.
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
    app: &App,
    request: GenerateRequest,
    out: &mpsc::Sender<GenerateEvent>,
) -> Result<Answered, Failure> {
    let adapters = &app.adapters;
    check_ids(&request, adapters.vocabulary())?;
    let admitted = app.admission.enter(&request.project, request.priority, request.choices as usize)?;
    if let Some(kept) = request.keep {
        adapters.keep(kept);
    }
    let lease = match &request.adapter {
        Some(wanted) => Some(adapters.lease(wanted, &request.project, request.priority).await?),
        None => None,
    };
    let adapter_text = lease.as_ref().and_then(|lease| lease.resident()).map(|resident| resident.text.clone());
    let text = adapter_text.unwrap_or_else(|| adapters.base_text().clone());
    let request = Arc::new(request);
    let place = app.admission.prepare(&request.project, request.priority).await?;
    let (encoder, asked, grammars) = (text.clone(), request.clone(), adapters.grammars().clone());
    let context = app.engine.context();
    let prepared = tokio::task::spawn_blocking(move || {
        let _place = place; // held until the work is done, even if the client has disconnected
        prepare(&encoder, &asked, &grammars, context)
    });
    let prepared = if request.form == Form::Free && request.tools.is_none() {
        prepared.await
    } else {
        timeout(GRAMMAR_TIME, prepared).await.map_err(|_| too_slow(&request.form))?
    };
    let (prompt, constraint) = prepared.map_err(|e| Failure::Internal(e.to_string()))??;

    let project = request.project.as_str().into();
    let engine = &app.engine;
    let answering =
        Answering { engine, request: &request, project, lease, text: &text, prompt: prompt.into(), constraint };
    let mut first = answering.submit(0)?;
    let (scores, cached, queued) = started(&mut first).await?;
    admitted.started();
    let echo = answering.echo(&scores).map_err(|e| Failure::Internal(chain(&e)))?;
    let prompt_tokens = answering.prompt.len();
    let begun = GenerateEvent::Started {
        prompt_tokens: prompt_tokens as u64,
        cached_tokens: cached as u64,
        echo,
        adapter: answering.lease.as_ref().and_then(|lease| lease.resident()).map(|resident| resident.id),
        tier: answering.lease.as_ref().map(Lease::tier),
        queued_ms: Some(u64::try_from(queued.as_millis()).unwrap_or(u64::MAX)),
    };
    let _ = out.send(begun).await;
    let stats = answering.stream(first, out).await?;
    let completion_tokens = stats.iter().map(|stats| stats.tokens).sum();
    let _ = out.send(GenerateEvent::Done { completion_tokens }).await;
    Ok(Answered { prompt_tokens, completion_tokens, first: stats.iter().filter_map(|stats| stats.first).min() })
}

/// Refuses token IDs outside the vocabulary, which can be neither fed nor sampled.
pub(crate) fn check_ids(request: &GenerateRequest, vocabulary: u64) -> Result<(), Failure> {
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

/// Returns the prompt's tokens and the constraint of the answer.
fn prepare(
    text: &TextModel,
    request: &GenerateRequest,
    grammars: &Grammars,
    context: usize,
) -> Result<(Vec<u32>, Option<Constraint>), Failure> {
    let ids = encode(text, request, context)?;
    check_generated(request, context.saturating_sub(ids.len()))?;
    Ok((ids, grammars.constraint(text, &request.form, request.tools.as_ref())?))
}

/// Refuses several answers that may have too many tokens together, of which each has at most `most`.
pub(crate) fn check_generated(request: &GenerateRequest, most: usize) -> Result<(), Failure> {
    let (answers, most) = (request.choices, request.sampling.max_tokens.unwrap_or(u64::MAX).min(most as u64));
    if answers <= 1 || most.saturating_mul(answers.into()) <= MAX_GENERATED_TOKENS {
        return Ok(());
    }
    let why = format!(
        "Invalid 'n': {answers} answers of up to {most} tokens each; at most {MAX_GENERATED_TOKENS} tokens may be \
         generated for a request with several answers. Set the maximum number of tokens, or request fewer answers."
    );
    Err(Failure::Request { param: "n", why })
}

/// Returns the prompt's tokens. A text that must exceed `context` tokens is not tokenized.
pub(crate) fn encode(text: &TextModel, request: &GenerateRequest, context: usize) -> Result<Vec<u32>, Failure> {
    let fits = |prompt: &str| {
        let too_long = prompt.len() > text.tokenizer().most_bytes(context);
        if too_long { Err(Failure::PromptBytes { bytes: prompt.len(), limit: context }) } else { Ok(()) }
    };
    let ids = match &request.prompt {
        Prompt::Chat { messages, template_kwargs } => {
            let turns: Vec<Turn<'_>> = messages
                .iter()
                .map(|message| Turn {
                    role: &message.role,
                    content: message.content.as_deref(),
                    name: message.name.as_deref(),
                    tool_calls: message.tool_calls.as_ref(),
                    tool_call_id: message.tool_call_id.as_deref(),
                })
                .collect();
            let tools = shown_tools(text, request);
            let settings =
                RenderSettings { tools, variables: Some(template_kwargs.as_map()), ..RenderSettings::today() };
            let chat = text.chat_text(&turns, settings)?;
            fits(&chat)?;
            text.encode_rendered(&chat)?
        }
        Prompt::Text { text: prompt } => {
            fits(prompt)?;
            last_tokens(text.encode_prompt(prompt)?, text.prefix().len(), request.truncate)
        }
        Prompt::Tokens { ids } => ids.clone(),
    };
    if ids.is_empty() { Err(Failure::EmptyPrompt) } else { Ok(ids) }
}

/// Returns at most `most` tokens: the first `prefix`, which the tokenizer adds before a text, and the text's last ones.
fn last_tokens(mut ids: Vec<u32>, prefix: usize, most: Option<u64>) -> Vec<u32> {
    let most = most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    if ids.len() > most {
        let prefix = prefix.min(most);
        ids.drain(prefix..prefix + ids.len() - most);
    }
    ids
}

/// Returns the tools that the prompt lists. In the generic format the prompt also instructs the model how to call them,
/// so they are omitted if calls are forbidden.
fn shown_tools<'a>(text: &TextModel, request: &'a GenerateRequest) -> Option<&'a serde_json::Value> {
    let tools = request.tools.as_ref()?;
    let generic = text.template().is_some_and(|template| ToolFormat::of(template) == ToolFormat::Generic);
    (!generic || tools.choice != ToolChoice::None).then_some(&tools.shown)
}

/// Waits until the prompt is processed. Returns its tokens' scores, the number of tokens that were copied from another
/// request, and the time that the request waited for its first step.
pub(crate) async fn started(
    events: &mut UnboundedReceiver<EngineEvent>,
) -> Result<(Vec<TokenScore>, usize, Duration), Failure> {
    match events.recv().await {
        Some(EngineEvent::Started { scores, cached, queued }) => Ok((scores, cached, queued)),
        Some(EngineEvent::Failed(failure)) => Err(failure),
        Some(EngineEvent::Token { .. } | EngineEvent::End { .. }) => {
            Err(Failure::Internal("the engine sent a token before it started the answer".into()))
        }
        None => Err(Failure::Internal("the engine has stopped".into())),
    }
}

/// A request whose prompt is tokenized.
struct Answering<'a> {
    engine: &'a EngineHandle,
    request: &'a GenerateRequest,
    project: Arc<str>,
    lease: Option<Lease>,
    text: &'a TextModel,
    prompt: Arc<[u32]>,
    constraint: Option<Constraint>,
}

impl Answering<'_> {
    /// Submits answer number `choice` to the engine.
    fn submit(&self, choice: u32) -> Result<UnboundedReceiver<EngineEvent>, Failure> {
        let (tokens, events) = mpsc::unbounded_channel();
        let sampling = &self.request.sampling;
        self.engine.submit(GenerateJob {
            project: self.project.clone(),
            priority: self.request.priority,
            prompt: self.prompt.clone(),
            lease: self.lease.clone(),
            sampler: Sampler::new(sampling, choice, &self.prompt),
            max_tokens: sampling.max_tokens,
            stop_ids: if sampling.ignore_end_tokens { Vec::new() } else { self.text.stop_ids().to_vec() },
            constraint: self.constraint.as_ref().map(Constraint::fork),
            scores: sampling.logprobs.map(|top| top as usize),
            prompt_scores: self.request.echo && choice == 0,
            out: tokens,
        })?;
        Ok(events)
    }

    /// Returns the detokenizer of the answer. A completion continues its prompt's text; a chat answer starts a new
    /// text.
    fn letters(&self) -> Detokenizer<'_> {
        match &self.request.prompt {
            Prompt::Chat { .. } => Detokenizer::new(self.text.tokenizer()),
            Prompt::Text { .. } | Prompt::Tokens { .. } => Detokenizer::after(self.text.tokenizer(), &self.prompt),
        }
    }

    /// Returns the echo of the prompt, without the tokens that the tokenizer adds before a text.
    fn echo(&self, scores: &[TokenScore]) -> Result<Option<Echo>, TextError> {
        let tokenizer = self.text.tokenizer();
        let (text, own) = match &self.request.prompt {
            _ if !self.request.echo => return Ok(None),
            Prompt::Text { text } => (text.clone(), self.text.prefix().len()),
            Prompt::Tokens { ids } => (tokenizer.decode_with_special(ids)?, 0),
            Prompt::Chat { .. } => return Ok(None),
        };
        let tokens: Result<Vec<TokenLogprob>, _> =
            scores.iter().skip(own).map(|score| token_logprob(tokenizer, score)).collect();
        let mut tokens = tokens?;
        // The tokenizer may have added a space before the text. The first token's text omits it, like the text itself.
        if let (Some(first), Some(score), None) = (tokens.first_mut(), scores.get(own), self.request.truncate) {
            first.bytes = tokenizer.first_bytes(score.id)?;
        }
        Ok(Some(Echo { text, tokens }))
    }

    /// Sends the events of all answers, the first of which has started.
    async fn stream(
        &self,
        first: UnboundedReceiver<EngineEvent>,
        out: &mpsc::Sender<GenerateEvent>,
    ) -> Result<Vec<StreamStats>, Failure> {
        let others = (1..self.request.choices).map(|choice| self.submit(choice)).collect::<Result<Vec<_>, _>>()?;
        let all = std::iter::once(first).chain(others);
        let stop = Arc::new(StopStrings::new(&self.request.sampling.stop));
        let calls = callable(self.request, self.text)?;
        let stream = |choice| {
            AnswerStream::new(choice, (self.text, self.letters()), stop.clone(), out).with_calls(calls.clone())
        };
        try_join_all((0..).zip(all).map(|(choice, events)| stream(choice).run(events))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_prompt_keeps_its_prefix_and_its_end() {
        let ids = || vec![1, 10, 11, 12, 13];
        for (prefix, most, kept) in [
            (1, None, vec![1, 10, 11, 12, 13]),
            (1, Some(5), vec![1, 10, 11, 12, 13]),
            (1, Some(3), vec![1, 12, 13]),
            (0, Some(2), vec![12, 13]),
            (1, Some(1), vec![1]),
        ] {
            assert_eq!(last_tokens(ids(), prefix, most), kept, "{most:?}");
        }
    }
}
