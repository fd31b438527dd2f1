//! One request to a replica, and the events of its answer.
//!
//! A replica's last event reports how the answer ended. A stream that ends without it means that the replica died, and
//! is an error: a truncated answer must never look like a complete one.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use attune_domain::{
    serve::{Echo, GenerateEvent, GenerateRequest, Prompt},
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
    context::Inference,
    error::InferenceError,
    metering::{Account, Meter, TokenAllowance, Tokens},
    replicas::{self, Ready, unavailable},
    resolve::AskedModel,
    wire::chat_answer::Usage,
};

/// The interval before another attempt when a replica did not accept the request.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The `Retry-After` when the model has too many requests, in seconds.
const BUSY_RETRY_AFTER_SECONDS: u64 = 5;

/// The maximum size in memory of the answers to one request that are collected, in bytes; streams have no such limit.
const WHOLE_BYTES: usize = 64 << 20;

/// An answer that has begun: its prompt is processed.
pub struct Generation {
    lines: Lines<Pin<Box<dyn AsyncBufRead + Send>>>,
    /// The request's parameter that contains the prompt.
    prompt_param: &'static str,
    /// The number of prompt tokens.
    pub prompt_tokens: u64,
    /// The number of prompt tokens whose results were reused from an earlier request.
    pub cached_tokens: u64,
    /// The prompt, if the request has `echo` set.
    pub echo: Option<Echo>,
    /// The usage, if the request is charged.
    metered: Option<Metered>,
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

/// Returns the approximate size of an event in memory, in bytes.
fn bytes_of(event: &GenerateEvent) -> usize {
    match event {
        GenerateEvent::Piece { text, tokens, .. } => {
            // The text of a token is an allocation of its own, and so is that of each of its top alternatives.
            text.len() + tokens.iter().map(|token| 96 + 64 * token.top.len()).sum::<usize>()
        }
        GenerateEvent::Arguments { text, .. } => text.len(),
        GenerateEvent::ToolCallStart { name, .. } => 128 + name.len(),
        GenerateEvent::Started { .. }
        | GenerateEvent::Finished { .. }
        | GenerateEvent::Done { .. }
        | GenerateEvent::Failed { .. } => 0,
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
    let deadline = Instant::now() + Duration::from_secs(inference.serving.wait_seconds);
    let response = loop {
        let replica = replicas::ready(inference, model, deadline).await?;
        if let Some(response) = ask(inference, &replica, request).await {
            break response;
        }
        // The replica's row is outdated: its process has ended. Nothing was generated, so a retry is safe.
        if Instant::now() >= deadline {
            return Err(unavailable("The model's replica does not respond and is being replaced.".into()));
        }
        sleep(TRY_AGAIN).await;
    };
    let bytes = response.bytes_stream().map_err(io::Error::other);
    let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(StreamReader::new(bytes));
    let prompt_param = match request.prompt {
        Prompt::Chat { .. } => "messages",
        Prompt::Text { .. } | Prompt::Tokens { .. } => "prompt",
    };
    let mut generation = Generation::new(reader, prompt_param);
    generation.started().await?;
    Ok(generation)
}

/// Returns the response, or `None` if no process accepts the request.
async fn ask(inference: &Inference, replica: &Ready, request: &GenerateRequest) -> Option<reqwest::Response> {
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
    fn new(reader: Pin<Box<dyn AsyncBufRead + Send>>, prompt_param: &'static str) -> Self {
        let lines = reader.lines();
        Self { lines, prompt_param, prompt_tokens: 0, cached_tokens: 0, echo: None, metered: None }
    }

    /// Charges the answers to `account`, and to `allowance` if there is one: the prompt and the generated tokens, also
    /// if the caller disconnects; a chunk counts as one token until the replica reports their number.
    pub fn charge(&mut self, meter: &Arc<Meter>, account: Account, allowance: Option<TokenAllowance>) {
        let tokens = Tokens { requests: 1, input: self.prompt_tokens, output: 0 };
        self.metered = Some(Metered { meter: meter.clone(), account, tokens, allowance });
    }

    /// Returns the usage after this number of generated tokens.
    #[must_use]
    pub const fn usage(&self, completion_tokens: u64) -> Usage {
        Usage::new(self.prompt_tokens, self.cached_tokens, completion_tokens)
    }

    async fn started(&mut self) -> Result<(), InferenceError> {
        match self.event().await? {
            GenerateEvent::Started { prompt_tokens, cached_tokens, echo } => {
                (self.prompt_tokens, self.cached_tokens, self.echo) = (prompt_tokens, cached_tokens, echo);
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
        let (mut bytes, most) = (0, WHOLE_BYTES / prompts.max(1));
        let mut answers = vec![Answer::default(); choices as usize];
        let unknown = || InferenceError::internal("a replica sent an event of an unknown answer or call");
        loop {
            let next = self.next().await?;
            bytes += bytes_of(&next);
            if bytes > most {
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
                GenerateEvent::Finished { choice, finish_reason } => {
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
        match self.lines.next_line().await {
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
            "replica_busy" => InferenceError::Busy {
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
    async fn a_prompt_that_is_too_long_is_the_callers_mistake() {
        let line = "{\"type\":\"failed\",\"code\":\"context_length_exceeded\",\"message\":\"too long\"}";
        let error = generation(line).started().await.unwrap_err().body().error;
        assert_eq!((error.param.as_deref(), error.code), (Some("messages"), Some("context_length_exceeded")));
        assert_eq!(error.message, "too long.");
    }
}
