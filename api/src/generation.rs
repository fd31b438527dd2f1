//! One request to a replica, and the events of its answer.
//!
//! A replica says how it ends with its last event. A stream that stops without one is a replica that died, and is told
//! as an error: an answer that is cut off must never look like a whole one.

use std::{io, pin::Pin, time::Duration};

use attune_domain::{
    id::BaseModelId,
    serve::{FinishReason, GenerateEvent, GenerateRequest},
};
use futures::TryStreamExt;
use reqwest::StatusCode;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, Lines},
    time::{Instant, sleep},
};
use tokio_util::io::StreamReader;

use crate::{
    app::App,
    error::ApiError,
    replicas::{self, Ready, unavailable},
};

/// Before a replica that did not take the request is looked for again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// An answer that has begun: its prompt is read.
pub struct Generation {
    lines: Lines<Pin<Box<dyn AsyncBufRead + Send>>>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
}

/// What comes next in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// More text.
    Piece(String),
    /// The end.
    Finished {
        /// Why.
        finish_reason: FinishReason,
        /// Tokens drawn.
        completion_tokens: u64,
    },
}

/// Sends `request` to the replica of `base`, started first if need be, and waits until its prompt is read.
///
/// # Errors
/// [`ApiError::ReplicaUnavailable`]; [`ApiError::Invalid`] when the prompt is at fault.
pub async fn begin(app: &App, base: BaseModelId, request: &GenerateRequest) -> Result<Generation, ApiError> {
    let deadline = Instant::now() + Duration::from_secs(app.serving.wait_seconds);
    let response = loop {
        let replica = replicas::ready(app, base, deadline).await?;
        if let Some(response) = ask(app, &replica, request).await {
            break response;
        }
        // Its row is behind: the process is gone and nobody noted it yet. Nothing was generated, so to ask again is safe.
        if Instant::now() >= deadline {
            return Err(unavailable("The model's process does not answer; it is being replaced.".into()));
        }
        sleep(TRY_AGAIN).await;
    };
    let bytes = response.bytes_stream().map_err(io::Error::other);
    let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(StreamReader::new(bytes));
    let mut generation = Generation { lines: reader.lines(), prompt_tokens: 0 };
    generation.prompt_tokens = generation.started().await?;
    Ok(generation)
}

/// `None`: nobody is there who takes the request.
async fn ask(app: &App, replica: &Ready, request: &GenerateRequest) -> Option<reqwest::Response> {
    let url = format!("http://{}/generate", replica.address);
    match app.http.post(url).bearer_auth(&replica.token).json(request).send().await {
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
    async fn started(&mut self) -> Result<u64, ApiError> {
        match self.event().await? {
            GenerateEvent::Started { prompt_tokens } => Ok(prompt_tokens),
            GenerateEvent::Failed { code, message } => Err(failure(&code, message)),
            other => Err(ApiError::internal(format!("a replica's first event is {other:?}"))),
        }
    }

    /// The next piece, or the end; nothing comes after that.
    ///
    /// # Errors
    /// [`ApiError::ReplicaUnavailable`]: the replica died or failed. [`ApiError::Internal`]: it speaks nonsense.
    pub async fn next(&mut self) -> Result<Next, ApiError> {
        match self.event().await? {
            GenerateEvent::Piece { text } => Ok(Next::Piece(text)),
            GenerateEvent::Finished { finish_reason, completion_tokens } => {
                Ok(Next::Finished { finish_reason, completion_tokens })
            }
            GenerateEvent::Failed { code, message } => Err(failure(&code, message)),
            GenerateEvent::Started { .. } => Err(ApiError::internal("a replica started twice")),
        }
    }

    async fn event(&mut self) -> Result<GenerateEvent, ApiError> {
        let died = || unavailable("The model's process ended before the answer did.".into());
        match self.lines.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line).map_err(ApiError::internal),
            Ok(None) => Err(died()),
            Err(error) => {
                tracing::warn!(%error, "a replica's answer broke off");
                Err(died())
            }
        }
    }
}

/// A replica's reason in the caller's terms.
fn failure(code: &str, message: String) -> ApiError {
    let at_fault = |code| ApiError::Invalid { param: Some("messages".into()), code, message: sentence(&message) };
    match code {
        "context_length_exceeded" => at_fault("context_length_exceeded"),
        "invalid_prompt" => at_fault("invalid_prompt"),
        "adapter_unavailable" => unavailable(format!("The tuned model's adapter could not be loaded: {message}")),
        _ => ApiError::internal(format!("a replica failed: {code}: {message}")),
    }
}

fn sentence(message: &str) -> String {
    if message.ends_with('.') { message.to_owned() } else { format!("{message}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(text: &'static str) -> Generation {
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(text.as_bytes());
        Generation { lines: reader.lines(), prompt_tokens: 0 }
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end() {
        let mut answer = generation(concat!(
            "{\"type\":\"started\",\"prompt_tokens\":3}\n{\"type\":\"piece\",\"text\":\"a\\nb\"}\n",
            "{\"type\":\"finished\",\"finish_reason\":\"stop\",\"completion_tokens\":2}\n"
        ));
        assert_eq!(answer.started().await.unwrap(), 3);
        assert_eq!(answer.next().await.unwrap(), Next::Piece("a\nb".into()));
        let end = Next::Finished { finish_reason: FinishReason::Stop, completion_tokens: 2 };
        assert_eq!(answer.next().await.unwrap(), end);
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
    async fn a_prompt_that_is_too_long_is_the_callers_mistake() {
        let line = "{\"type\":\"failed\",\"code\":\"context_length_exceeded\",\"message\":\"too long\"}";
        let error = generation(line).started().await.unwrap_err().body().error;
        assert_eq!((error.param.as_deref(), error.code), (Some("messages"), Some("context_length_exceeded")));
        assert_eq!(error.message, "too long.");
    }
}
