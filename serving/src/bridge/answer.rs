//! The path of one request over the bridge: checks, adapter, prompt, the engine's tokens, text.

use std::sync::{Arc, atomic::AtomicU64};

use attune_domain::serve::{Echo, Engine, GenerateEvent, GenerateRequest, Priority, Prompt};
use attune_process::error_chain::chain;
use attune_text::{detokenizer::Detokenizer, error::TextError, model::TextModel};
use futures::future::try_join_all;
use secrecy::SecretString;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{
    adapters::{EngineAdapters, InUse},
    generate::Generate,
    refusals, stream,
};
use crate::{
    answering::{
        answer::{check_generated, check_ids, encode, started},
        answer_stream::{AnswerStream, StreamStats, callable},
        stop::StopStrings,
    },
    decoding::{admission::Admission, sequence::EngineEvent},
    error::Failure,
    http::Answers,
};

/// The state that all requests of a bridge share.
pub(crate) struct Bridge {
    /// The bearer token that callers must send.
    pub(crate) token: SecretString,
    /// The adapters of the engine.
    pub(crate) adapters: EngineAdapters,
    /// The size of the vocabulary.
    pub(crate) vocabulary: u64,
    /// The maximum number of tokens of a prompt and its answer.
    pub(crate) context: usize,
    /// The admission control of requests.
    pub(crate) admission: Arc<Admission>,
    /// The tasks of requests in progress.
    pub(crate) requests: TaskTracker,
    /// The number of requests in progress.
    pub(crate) active: AtomicU64,
}

impl Answers for Bridge {
    fn token(&self) -> &SecretString {
        &self.token
    }

    fn requests(&self) -> &TaskTracker {
        &self.requests
    }

    fn active(&self) -> &AtomicU64 {
        &self.active
    }

    async fn answer(&self, request: GenerateRequest, out: mpsc::Sender<GenerateEvent>) {
        let request_id = request.request_id.clone();
        let outcome = tokio::select! {
            outcome = self.try_answer(request, &out) => outcome,
            () = out.closed() => return,
        };
        if let Err(failure) = outcome {
            tracing::debug!(request_id, code = failure.code(), %failure, "no answer");
            let _ = out.send(failure.into()).await; // the client may have disconnected meanwhile
        }
    }
}

/// An answer that the engine generates. Dropping it ends the engine's request.
struct Begun {
    events: UnboundedReceiver<EngineEvent>,
    pump: AbortOnDropHandle<()>,
}

/// A request whose prompt is tokenized.
struct Prepared<'a> {
    request: &'a GenerateRequest,
    adapter: Option<&'a InUse>,
    text: &'a TextModel,
    prompt: &'a [u32],
    /// The prompt's text, for an engine that accepts no tokens.
    inputs: &'a str,
}

impl Bridge {
    async fn try_answer(&self, request: GenerateRequest, out: &mpsc::Sender<GenerateEvent>) -> Result<(), Failure> {
        check_ids(&request, self.vocabulary)?;
        let engine = self.adapters.engine().engine();
        refusals::check(engine, &request)?;
        let admitted = self.admission.enter(&request.project, request.priority, request.choices as usize)?;
        let adapter = match &request.adapter {
            Some(wanted) => Some(self.adapters.lease(wanted).await?),
            None => None,
        };
        let text = adapter.as_ref().map_or_else(|| self.adapters.base_text(), |adapter| &adapter.loaded.text).clone();
        let request = Arc::new(request);
        let place = self.admission.prepare(&request.project, request.priority).await?;
        let (encoder, asked, context) = (text.clone(), request.clone(), self.context);
        let prepared = tokio::task::spawn_blocking(move || {
            let _place = place; // held until the work is done, even if the client has disconnected
            prepare(engine, &encoder, &asked, context)
        });
        let (prompt, inputs) = prepared.await.map_err(|error| Failure::Internal(error.to_string()))??;
        let (request, adapter) = (request.as_ref(), adapter.as_ref());
        let prepared = Prepared { request, adapter, text: &text, prompt: &prompt, inputs: &inputs };

        let mut first = self.begin(&prepared, 0).await?;
        started(&mut first.events).await?;
        admitted.started();
        let begun = GenerateEvent::Started {
            prompt_tokens: prompt.len() as u64,
            cached_tokens: 0,
            echo: prepared.echo()?,
            adapter: adapter.map(|adapter| adapter.loaded.id),
            tier: adapter.map(|adapter| adapter.tier),
            // Neither vLLM nor LoRAX reports how long a request waited in its own queue.
            queued_ms: None,
        };
        let _ = out.send(begun).await;
        let mut all = vec![first];
        for choice in 1..request.choices {
            all.push(self.begin(&prepared, choice).await?);
        }
        let stats = prepared.stream(all, out).await?;
        let completion_tokens = stats.iter().map(|stats| stats.tokens).sum();
        let _ = out.send(GenerateEvent::Done { completion_tokens }).await;
        Ok(())
    }

    async fn begin(&self, prepared: &Prepared<'_>, choice: u32) -> Result<Begun, Failure> {
        let Prepared { request, adapter, text, prompt, inputs } = *prepared;
        let sampling = &request.sampling;
        let left = self.context.saturating_sub(prompt.len()) as u64;
        let path = adapter.map(|adapter| adapter.loaded.path());
        let stop_ids = if sampling.ignore_end_tokens { Vec::new() } else { text.stop_ids().to_vec() };
        let generate = Generate {
            adapter: adapter.zip(path.as_deref()).map(|(adapter, path)| (adapter.loaded.name.as_str(), path)),
            prompt,
            text: inputs,
            sampling,
            seed: sampling.seed.wrapping_add(choice.into()),
            max_tokens: sampling.max_tokens.unwrap_or(u64::MAX).min(left),
            stop_ids: &stop_ids,
            project: &request.project,
            is_batch: request.priority == Priority::Batch,
        };
        let engine = self.adapters.engine();
        let response = engine.generate(&generate).await?;
        let (out, events) = mpsc::unbounded_channel();
        let pump = tokio::spawn(stream::pump(engine.engine(), response, stop_ids, out));
        Ok(Begun { events, pump: AbortOnDropHandle::new(pump) })
    }
}

/// Returns the prompt's tokens, and its text for an engine that accepts no tokens.
fn prepare(
    engine: Engine,
    text: &TextModel,
    request: &GenerateRequest,
    context: usize,
) -> Result<(Vec<u32>, String), Failure> {
    let ids = encode(text, request, context)?;
    if ids.len() >= context {
        return Err(Failure::ContextLength { prompt: ids.len(), limit: context });
    }
    check_generated(request, context - ids.len())?;
    let inputs = if engine == Engine::Lorax { text_of_tokens(text, &ids)? } else { String::new() };
    Ok((ids, inputs))
}

/// Returns the text that LoRAX tokenizes to these tokens: it adds the tokenizer's prefix again.
fn text_of_tokens(text: &TextModel, ids: &[u32]) -> Result<String, Failure> {
    let internal = |error: TextError| Failure::Internal(chain(&error));
    let own = ids.strip_prefix(text.prefix());
    let inputs = own.map(|own| text.tokenizer().decode_with_special(own)).transpose().map_err(internal)?;
    let is_same = |inputs: &String| {
        let again = text.tokenizer().encode(inputs).ok();
        again.is_some_and(|again| Some(again.as_slice()) == own)
    };
    inputs.filter(is_same).ok_or_else(|| Failure::Request {
        param: "prompt",
        why: "Invalid prompt: the engine of this model, lorax, accepts text only, and these tokens are not those of a \
              text"
            .into(),
    })
}

impl Prepared<'_> {
    fn echo(&self) -> Result<Option<Echo>, Failure> {
        let text = match &self.request.prompt {
            Prompt::Text { text } if self.request.echo => text.clone(),
            Prompt::Tokens { ids } if self.request.echo => {
                let decoded = self.text.tokenizer().decode_with_special(ids);
                decoded.map_err(|error| Failure::Internal(chain(&error)))?
            }
            _ => return Ok(None),
        };
        Ok(Some(Echo { text, tokens: Vec::new() }))
    }

    /// Sends the events of all answers, the first of which has started.
    async fn stream(&self, all: Vec<Begun>, out: &mpsc::Sender<GenerateEvent>) -> Result<Vec<StreamStats>, Failure> {
        let stop = Arc::new(StopStrings::new(&self.request.sampling.stop));
        let calls = callable(self.request, self.text)?;
        let letters = || match &self.request.prompt {
            Prompt::Chat { .. } => Detokenizer::new(self.text.tokenizer()),
            Prompt::Text { .. } | Prompt::Tokens { .. } => Detokenizer::after(self.text.tokenizer(), self.prompt),
        };
        let streams = (0..).zip(all).map(|(choice, Begun { events, pump })| {
            let stream = AnswerStream::new(choice, (self.text, letters()), stop.clone(), out);
            let stream = stream.with_calls(calls.clone());
            async move {
                let _until_the_end = pump;
                stream.run(events).await
            }
        });
        try_join_all(streams).await
    }
}
