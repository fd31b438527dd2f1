//! One request to a replica, and the events of its answer.
//!
//! A replica's last event reports how the answer ended. A stream that ends without it means that the replica died, and
//! is an error: a truncated answer must never look like a complete one.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use attune_domain::{
    offer::ReplicaKind,
    serve::{AdapterKey, Echo, GenerateEvent, GenerateRequest, Prompt},
    text::tenant_text::for_tenant,
};
use futures::TryStreamExt;
use reqwest::StatusCode;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, Lines},
    time::{Instant, sleep},
};
use tokio_util::io::StreamReader;

use crate::{
    answer::{Answer, Call},
    answer_copy::AnswerCopy,
    attempts::Attempts,
    collected::{Collected, WHOLE_BYTES},
    context::Inference,
    error::InferenceError,
    metering::{Account, Meter, TokenAllowance, Tokens},
    pool::{balancer::Chosen, loads::Counted},
    replicas::{self, unavailable},
    resolve::AskedModel,
    watched::Watched,
    wire::chat_answer::Usage,
};

/// The interval before another attempt when a replica did not accept the request.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The code of a replica that has too many requests of all projects.
const BUSY: &str = "replica_busy";

/// The `Retry-After` when the model has too many requests, in seconds.
const BUSY_RETRY_AFTER_SECONDS: u64 = 5;

/// An answer that has begun: its prompt is processed.
pub struct Generation {
    lines: Lines<Pin<Box<dyn AsyncBufRead + Send>>>,
    /// The first line, between its arrival and its use.
    first: Option<String>,
    /// The request, as it counts for its replica and its pool until it ends.
    _in_progress: Option<(Chosen, Counted)>,
    /// The kind of the replica.
    kind: ReplicaKind,
    /// The request's parameter that contains the prompt.
    prompt_param: &'static str,
    /// The number of prompt tokens.
    pub prompt_tokens: u64,
    /// The number of prompt tokens whose results were reused from an earlier request.
    pub cached_tokens: u64,
    /// The prompt, if the request has `echo` set.
    pub echo: Option<Echo>,
    /// The adapter that answers, as the replica reports it.
    adapter: Option<AdapterKey>,
    /// The usage, if the request is charged.
    metered: Option<Metered>,
    /// The traffic of the adapter version that answers, if there is one.
    watched: Option<Watched>,
    /// The texts so far, if a shadow answers a copy of the request.
    copy: Option<AnswerCopy>,
}

/// The usage of one request, counted once, when its answers have ended or the caller stops reading them.
struct Metered {
    meter: Arc<Meter>,
    /// The allowance that the request's tokens are charged to, if there is one.
    allowance: Option<TokenAllowance>,
    account: Account,
    tokens: Tokens,
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.meter.count(&self.account, self.tokens);
        if let Some(allowance) = &self.allowance {
            allowance(self.tokens.input + self.tokens.output);
        }
    }
}

/// Sends `request` to the replica of the model's base, which is started if necessary, and waits until its prompt is
/// processed.
///
/// # Errors
/// [`InferenceError::ReplicaUnavailable`]; [`InferenceError::Invalid`] if the prompt is at fault.
pub(crate) async fn begin(
    inference: &Inference,
    model: &AskedModel,
    request: &GenerateRequest,
) -> Result<Generation, InferenceError> {
    let mut watched = model.traffic().map(|key| Watched::new(inference.traffic.clone(), key));
    let begun = begin_watched(inference, model, request, &mut watched).await;
    if let (Err(error), Some(watched)) = (&begun, &mut watched) {
        watched.fail(error);
    }
    begun
}

/// Begins a request. Once a replica has accepted it, the generation has `watched`.
async fn begin_watched(
    inference: &Inference,
    model: &AskedModel,
    request: &GenerateRequest,
    watched: &mut Option<Watched>,
) -> Result<Generation, InferenceError> {
    let deadline = Instant::now() + Duration::from_secs(inference.serving.wait_seconds);
    let load = inference.loads.count(model.base);
    let mut has_died = false;
    let (mut attempts, mut next, mut refusal) = (Attempts::default(), None, None);
    let (mut generation, replica) = loop {
        let replica = match next.take() {
            Some(another) => another,
            None => replicas::ready(inference, model, deadline).await?,
        };
        watched.iter_mut().for_each(Watched::ask);
        let Some(attempted) = attempts.perform(attempt(inference, &replica, request)).await else {
            // Others refused it, and this replica did not answer in the time that was left.
            match refusal {
                Some(refusal) => break refusal,
                None => return Err(unavailable("The model's replicas did not answer in time.".into())),
            }
        };
        match attempted {
            // One retry only: a request that ends its replica must not end all of the pool.
            Some((generation, has_begun)) if has_begun || has_died => {
                if generation.is_refused_as_busy() {
                    attempts.refused(replica.id());
                    if attempts.has_time() {
                        next = replicas::another(inference, model, attempts.busy()).await?;
                    }
                }
                if next.is_none() {
                    break (generation, replica);
                }
                refusal = Some((generation, replica));
                continue;
            }
            Some(_) => has_died = true,
            None => {}
        }
        // The replica's process has ended. Nothing was generated, so a retry, at another replica if there is one, is
        // safe.
        replica.failed();
        if Instant::now() >= deadline {
            return Err(unavailable("The model's replica does not respond and is being replaced.".into()));
        }
        if replica.is_suspect {
            sleep(TRY_AGAIN).await;
        }
    };
    generation.kind = replica.kind;
    generation._in_progress = Some((replica, load));
    generation.watched = watched.take();
    let started = generation.started().await.and_then(|()| generation.check_adapter(request));
    if let (Err(error), Some(watched)) = (&started, &mut generation.watched) {
        watched.fail(error);
    }
    started.map(|()| generation)
}

/// Returns the generation, and whether it has a first event; `None` if no process accepts the request.
async fn attempt(inference: &Inference, replica: &Chosen, request: &GenerateRequest) -> Option<(Generation, bool)> {
    let mut generation = Generation::of(ask(inference, replica, request).await?, request);
    let has_begun = generation.has_begun().await;
    Some((generation, has_begun))
}

/// Returns the response, or `None` if no process accepts the request.
async fn ask(inference: &Inference, replica: &Chosen, request: &GenerateRequest) -> Option<reqwest::Response> {
    let url = format!("http://{}/generate", replica.address);
    match inference.http.post(url).bearer_auth(&replica.token).json(request).send().await {
        Ok(response) if response.status() == StatusCode::OK => Some(response),
        Ok(response) => {
            tracing::warn!(address = replica.address, status = %response.status(), "a replica refused a request");
            None
        }
        Err(error) => {
            tracing::warn!(address = replica.address, %error, "a replica did not answer");
            None
        }
    }
}

impl Generation {
    fn of(response: reqwest::Response, request: &GenerateRequest) -> Self {
        let bytes = response.bytes_stream().map_err(io::Error::other);
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(StreamReader::new(bytes));
        let prompt_param = match request.prompt {
            Prompt::Chat { .. } => "messages",
            Prompt::Text { .. } | Prompt::Tokens { .. } => "prompt",
        };
        Self::new(reader, prompt_param)
    }

    /// Waits for the first line. Returns whether there is one; without it, the replica has ended.
    async fn has_begun(&mut self) -> bool {
        self.first = self.lines.next_line().await.unwrap_or_default();
        self.first.is_some()
    }

    /// Returns whether the first line is the refusal of a replica that has too many requests of all projects.
    fn is_refused_as_busy(&self) -> bool {
        let line = self.first.as_deref().filter(|line| line.contains(BUSY));
        let event = line.and_then(|line| serde_json::from_str(line).ok());
        matches!(event, Some(GenerateEvent::Failed { code, .. }) if code == BUSY)
    }

    fn new(reader: Pin<Box<dyn AsyncBufRead + Send>>, prompt_param: &'static str) -> Self {
        let lines = reader.lines();
        Self {
            lines,
            first: None,
            _in_progress: None,
            kind: ReplicaKind::default(),
            prompt_param,
            prompt_tokens: 0,
            cached_tokens: 0,
            echo: None,
            adapter: None,
            metered: None,
            watched: None,
            copy: None,
        }
    }

    /// Charges the answers to `account`, and to `allowance` if there is one: the prompt and the generated tokens, also
    /// if the caller disconnects; a chunk counts as one token until the replica reports their number.
    pub(crate) fn charge(&mut self, meter: &Arc<Meter>, account: Account, allowance: Option<TokenAllowance>) {
        let tokens = Tokens { requests: 1, input: self.prompt_tokens, output: 0 };
        self.metered = Some(Metered { meter: meter.clone(), account, tokens, allowance });
    }

    /// Returns the usage after this number of generated tokens.
    #[must_use]
    pub const fn usage(&self, completion_tokens: u64) -> Usage {
        Usage::new(self.prompt_tokens, self.cached_tokens, completion_tokens)
    }

    /// Returns the fingerprint of the answers from that of their model: with how the replica decodes.
    pub(crate) fn fingerprint(&self, of_model: &str) -> String {
        of_model.to_owned() + &self.kind.fingerprint()
    }

    /// Collects the texts of the answers from now on.
    pub(crate) fn collect(&mut self, copy: AnswerCopy) {
        self.copy = Some(copy);
    }

    /// Refuses an answer by another adapter than the one that the request names, and that the response will report.
    fn check_adapter(&self, request: &GenerateRequest) -> Result<(), InferenceError> {
        let wanted = request.adapter.as_ref().map(|adapter| adapter.id);
        if self.adapter == wanted {
            return Ok(());
        }
        Err(InferenceError::internal(format!("a replica answers with {:?} instead of {wanted:?}", self.adapter)))
    }

    async fn started(&mut self) -> Result<(), InferenceError> {
        let event = self.event().await;
        self.watched.iter_mut().for_each(|watched| watched.see(&event));
        match event? {
            GenerateEvent::Started { prompt_tokens, cached_tokens, echo, adapter, .. } => {
                (self.prompt_tokens, self.cached_tokens, self.echo) = (prompt_tokens, cached_tokens, echo);
                self.adapter = adapter;
                Ok(())
            }
            GenerateEvent::Failed { code, message, param } => Err(self.failure(&code, message, param)),
            other => Err(InferenceError::internal(format!("a replica's first event is {other:?}"))),
        }
    }

    /// Returns all answers, and the number of tokens generated for them. `prompts` requests like this one share the
    /// memory for collected answers.
    ///
    /// # Errors
    /// As [`Self::next`]. [`InferenceError::Invalid`]: the answers are too large to be collected.
    pub async fn whole(&mut self, choices: u32, prompts: usize) -> Result<(Vec<Answer>, u64), InferenceError> {
        let mut collected = Collected::one_of(prompts);
        let mut answers = vec![Answer::default(); choices as usize];
        let unknown = || InferenceError::internal("a replica sent an event of an unknown answer or call");
        loop {
            let next = self.next().await?;
            if !collected.fits(&next) {
                let message = format!(
                    "The answers to this request are larger than {WHOLE_BYTES} bytes. Set 'stream' to true, or request \
                     fewer answers or log probabilities."
                );
                return Err(InferenceError::invalid("stream", message));
            }
            match next {
                GenerateEvent::Piece { choice, text, tokens } => {
                    let answer = answers.get_mut(choice as usize).ok_or_else(unknown)?;
                    answer.text.push_str(&text);
                    answer.tokens.extend(tokens);
                }
                GenerateEvent::ToolCallStart { choice, id, name, .. } => {
                    let answer = answers.get_mut(choice as usize).ok_or_else(unknown)?;
                    answer.calls.push(Call { id, name, arguments: String::new() });
                }
                GenerateEvent::Arguments { choice, text, .. } => {
                    let answer = answers.get_mut(choice as usize).ok_or_else(unknown)?;
                    answer.calls.last_mut().ok_or_else(unknown)?.arguments.push_str(&text);
                }
                GenerateEvent::Finished { choice, finish_reason, .. } => {
                    answers.get_mut(choice as usize).ok_or_else(unknown)?.finish_reason = Some(finish_reason);
                }
                GenerateEvent::Done { completion_tokens } => return Ok((answers, completion_tokens)),
                GenerateEvent::Started { .. } | GenerateEvent::Failed { .. } => return Err(unknown()),
            }
        }
    }

    /// Returns the next event; [`GenerateEvent::Done`] is the last one. Never returns [`GenerateEvent::Started`] or
    /// [`GenerateEvent::Failed`].
    ///
    /// # Errors
    /// [`InferenceError::ReplicaUnavailable`]: the replica died or failed. [`InferenceError::Internal`]: it violates
    /// the protocol.
    pub async fn next(&mut self) -> Result<GenerateEvent, InferenceError> {
        let next = self.metered_event().await;
        self.watched.iter_mut().for_each(|watched| watched.see(&next));
        if let (Ok(event), Some(copy)) = (&next, &mut self.copy) {
            copy.see(event);
        }
        next
    }

    async fn metered_event(&mut self) -> Result<GenerateEvent, InferenceError> {
        let event = self.event().await?;
        if let Some(metered) = &mut self.metered {
            match &event {
                GenerateEvent::Piece { .. } | GenerateEvent::Arguments { .. } => metered.tokens.output += 1,
                GenerateEvent::Done { completion_tokens } => metered.tokens.output = *completion_tokens,
                _ => {}
            }
        }
        match event {
            GenerateEvent::Failed { code, message, param } => Err(self.failure(&code, message, param)),
            GenerateEvent::Started { .. } => Err(InferenceError::internal("a replica started twice")),
            event => Ok(event),
        }
    }

    async fn event(&mut self) -> Result<GenerateEvent, InferenceError> {
        let died = || unavailable("The model's replica ended before it completed the answer.".into());
        let line = match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.lines.next_line().await,
        };
        match line {
            Ok(Some(line)) => serde_json::from_str(&line).map_err(InferenceError::internal),
            Ok(None) => Err(died()),
            Err(error) => {
                tracing::warn!(%error, "a replica's response was incomplete");
                Err(died())
            }
        }
    }

    /// Converts a replica's failure into an error for the caller.
    fn failure(&self, code: &str, message: String, param: Option<String>) -> InferenceError {
        let param = param.unwrap_or_else(|| self.prompt_param.to_owned());
        let at_fault = |code| InferenceError::Invalid { param: Some(param), code, message: sentence(&message) };
        match code {
            "context_length_exceeded" => at_fault("context_length_exceeded"),
            "invalid_prompt" => at_fault("invalid_prompt"),
            "invalid_request" => at_fault("invalid_value"),
            "project_busy" => InferenceError::TooManyAnswers {
                message: format!("Too many requests: {}", sentence(&message)),
                retry_after_seconds: BUSY_RETRY_AFTER_SECONDS,
            },
            BUSY => InferenceError::Busy {
                message: format!("The model is overloaded: {}", sentence(&message)),
                retry_after_seconds: BUSY_RETRY_AFTER_SECONDS,
            },
            "adapter_unavailable" => {
                // The message of a failed download contains presigned URLs, that of a broken file the node's paths.
                let why = for_tenant(&message);
                unavailable(format!("The tuned model's adapter could not be loaded: {why}"))
            }
            _ => InferenceError::internal(format!("a replica failed: {code}: {message}")),
        }
    }
}

fn sentence(message: &str) -> String {
    if message.ends_with('.') { message.to_owned() } else { format!("{message}.") }
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::FinishReason;

    use super::*;

    fn generation(text: &'static str) -> Generation {
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(text.as_bytes());
        Generation::new(reader, "messages")
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end() {
        let mut answer = generation(concat!(
            "{\"type\":\"started\",\"prompt_tokens\":3,\"cached_tokens\":2,\"echo\":null}\n",
            "{\"type\":\"piece\",\"choice\":1,\"text\":\"a\\nb\",\"tokens\":[]}\n",
            "{\"type\":\"finished\",\"choice\":1,\"finish_reason\":\"stop\"}\n",
            "{\"type\":\"piece\",\"choice\":0,\"text\":\"c\",\"tokens\":[]}\n",
            "{\"type\":\"finished\",\"choice\":0,\"finish_reason\":\"length\"}\n",
            "{\"type\":\"done\",\"completion_tokens\":2}\n"
        ));
        answer.started().await.unwrap();
        assert_eq!((answer.prompt_tokens, answer.cached_tokens), (3, 2));
        let (answers, tokens) = answer.whole(2, 1).await.unwrap();
        let said: Vec<_> = answers.iter().map(|answer| (answer.text.as_str(), answer.finish_reason)).collect();
        assert_eq!(said, [("c", Some(FinishReason::Length)), ("a\nb", Some(FinishReason::Stop))]);
        assert_eq!(tokens, 2);
    }

    #[tokio::test]
    async fn a_replica_that_dies_in_the_middle_is_an_error() {
        for cut in ["", "{\"type\":\"pie"] {
            assert!(generation(cut).next().await.is_err(), "{cut}");
        }
        let error = generation("").next().await.unwrap_err().body().error;
        assert_eq!((error.r#type, error.code), ("server_error", Some("model_unavailable")));
    }

    #[tokio::test]
    async fn what_a_tenant_is_sent_names_no_place_of_a_node() {
        let line = "{\"type\":\"failed\",\"code\":\"adapter_unavailable\",\"message\":\
                    \"GET http://10.0.0.1/b?Signature=x: /var/lib/a/b.safetensors\"}";
        let message = generation(line).started().await.unwrap_err().body().error.message;
        assert!(message.ends_with("GET an address b.safetensors"), "{message}");
    }

    #[tokio::test]
    async fn limit_of_a_whole_answer() {
        let piece = format!("{{\"type\":\"piece\",\"choice\":0,\"text\":\"{}\",\"tokens\":[]}}\n", "x".repeat(1 << 20));
        let text: &'static str = Box::leak(piece.repeat(65).into_boxed_str());
        let error = generation(text).whole(1, 1).await.unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some("stream"), "{}", error.message);
        let (fits, done) = (piece.repeat(2), "{\"type\":\"done\",\"completion_tokens\":2}\n");
        let text: &'static str = Box::leak((fits + done).into_boxed_str());
        assert_eq!(generation(text).whole(1, 30).await.unwrap().1, 2);
        assert!(generation(text).whole(1, 60).await.is_err());
    }

    #[tokio::test]
    async fn a_busy_replica_says_when_to_come_again() {
        for (code, status) in [("project_busy", 429), ("replica_busy", 503)] {
            let line = format!("{{\"type\":\"failed\",\"code\":\"{code}\",\"message\":\"full\"}}");
            let error = generation(Box::leak(line.into_boxed_str())).started().await.unwrap_err();
            assert_eq!(error.status().as_u16(), status);
            let (InferenceError::TooManyAnswers { retry_after_seconds, .. }
            | InferenceError::Busy { retry_after_seconds, .. }) = error
            else {
                panic!("{error:?}")
            };
            assert_eq!(retry_after_seconds, 5);
        }
    }

    #[tokio::test]
    async fn only_a_busy_replica_is_replaced_by_another_one() {
        for (line, is_busy) in [
            (r#"{"type":"failed","code":"replica_busy","message":"full"}"#, true),
            (r#"{"type":"failed","code":"project_busy","message":"replica_busy"}"#, false),
            (
                r#"{"type":"started","prompt_tokens":3,"cached_tokens":0,"echo":{"text":"replica_busy","tokens":[]}}"#,
                false,
            ),
            ("", false),
        ] {
            let mut answer = generation(line);
            answer.has_begun().await;
            assert_eq!(answer.is_refused_as_busy(), is_busy, "{line}");
        }
    }

    #[tokio::test]
    async fn a_prompt_that_is_too_long_is_the_callers_mistake() {
        let line = "{\"type\":\"failed\",\"code\":\"context_length_exceeded\",\"message\":\"too long\"}";
        let error = generation(line).started().await.unwrap_err().body().error;
        assert_eq!((error.param.as_deref(), error.code), (Some("messages"), Some("context_length_exceeded")));
        assert_eq!(error.message, "too long.");
    }
}
