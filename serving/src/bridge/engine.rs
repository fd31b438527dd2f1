//! The engine's HTTP API: health, limits, adapters, generation, load.
//!
//! Sources: vLLM's `vllm/entrypoints/openai` (`completion/protocol.py`, `models/serving.py`) and its page "LoRA
//! Adapters"; LoRAX's `router/src/lib.rs` and `router/src/server.rs`.

use std::time::Duration;

use attune_domain::serve::Engine;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

use super::{
    generate::{Generate, message},
    lorax, vllm,
};
use crate::error::Failure;

/// The time limit of a connection to the engine.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest time without data from the engine: a request may wait that long for its first token.
const SILENCE: Duration = Duration::from_secs(180);
/// The time limit of a query of the engine's health or load.
const QUERY: Duration = Duration::from_secs(5);

/// The part of vLLM's message if it has an adapter of this name. Source: `_check_load_lora_adapter_request` in
/// `vllm/entrypoints/openai/models/serving.py`.
const ALREADY_LOADED: &str = "has already been loaded";

/// The requests of an engine that run and that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct EngineLoad {
    /// The number of running requests.
    pub(crate) running: f64,
    /// The number of waiting requests.
    pub(crate) waiting: f64,
}

/// A client of the engine.
#[derive(Debug, Clone)]
pub(crate) struct EngineClient {
    http: Client,
    engine: Engine,
    url: String,
}

impl EngineClient {
    /// Creates a client of the engine at this URL, which is plain `http`: both share one network interface.
    ///
    /// # Errors
    /// The HTTP client cannot be created.
    pub(crate) fn new(engine: Engine, url: &str) -> Result<Self, reqwest::Error> {
        let builder = Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).no_proxy();
        let http = builder.tls_certs_only([]).build()?;
        Ok(Self { http, engine, url: url.trim_end_matches('/').to_owned() })
    }

    /// Returns the engine.
    pub(crate) const fn engine(&self) -> Engine {
        self.engine
    }

    /// Returns whether the engine is ready.
    pub(crate) async fn is_healthy(&self) -> bool {
        let answer = self.http.get(format!("{}/health", self.url)).timeout(QUERY).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Returns the maximum number of tokens of a prompt and its answer.
    ///
    /// # Errors
    /// The engine's answer is another one than its API documents.
    pub(crate) async fn context(&self) -> Result<usize, String> {
        let (path, field) = match self.engine {
            Engine::Lorax => ("info", "/max_total_tokens"),
            Engine::Vllm | Engine::Attune => ("v1/models", "/data/0/max_model_len"),
        };
        let answer = self.http.get(format!("{}/{path}", self.url)).send().await.map_err(|error| error.to_string())?;
        let body: Value = answer.json().await.map_err(|error| error.to_string())?;
        let tokens = body.pointer(field).and_then(Value::as_u64).and_then(|tokens| usize::try_from(tokens).ok());
        tokens.ok_or_else(|| format!("the answer to GET /{path} has no number at {field}"))
    }

    /// Has the engine load an adapter. LoRAX loads adapters with their first request.
    ///
    /// # Errors
    /// The engine's message.
    pub(crate) async fn load(&self, name: &str, path: &str) -> Result<(), String> {
        match self.engine {
            Engine::Lorax => Ok(()),
            Engine::Vllm | Engine::Attune => {
                let changed = self.change("v1/load_lora_adapter", json!({"lora_name": name, "lora_path": path})).await;
                // The client of an earlier request disconnected during the load, which the engine completed. A name
                // always has the same content.
                changed.or_else(|why| if why.contains(ALREADY_LOADED) { Ok(()) } else { Err(why) })
            }
        }
    }

    /// Has the engine unload an adapter. LoRAX evicts adapters automatically.
    ///
    /// # Errors
    /// The engine's message.
    pub(crate) async fn unload(&self, name: &str) -> Result<(), String> {
        match self.engine {
            Engine::Lorax => Ok(()),
            Engine::Vllm | Engine::Attune => self.change("v1/unload_lora_adapter", json!({"lora_name": name})).await,
        }
    }

    async fn change(&self, path: &str, body: Value) -> Result<(), String> {
        let answer = self.http.post(format!("{}/{path}", self.url)).json(&body).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(message(&answer.text().await.unwrap_or_default()))
    }

    /// Starts an answer. The response is a stream of server-sent events.
    ///
    /// # Errors
    /// [`Failure`]: the engine refuses the request, has too many, or does not answer.
    pub(crate) async fn generate(&self, generate: &Generate<'_>) -> Result<Response, Failure> {
        let (path, body) = match self.engine {
            Engine::Lorax => ("generate_stream", lorax::body(generate)),
            Engine::Vllm | Engine::Attune => ("v1/completions", vllm::body(generate)),
        };
        let answer = self.http.post(format!("{}/{path}", self.url)).json(&body).send().await;
        let answer = answer.map_err(|error| Failure::Internal(format!("the engine does not answer: {error}")))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let why = message(&answer.text().await.unwrap_or_default());
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Failure::ReplicaBusy(why),
            status if status.is_client_error() => Failure::Request { param: "prompt", why },
            status => Failure::Internal(format!("the engine failed with status {status}: {why}")),
        })
    }

    /// Returns the engine's load. LoRAX publishes only the size of its batch: the other requests of the bridge,
    /// `active`, wait.
    pub(crate) async fn load_of(&self, active: u64) -> Option<EngineLoad> {
        let answer = self.http.get(format!("{}/metrics", self.url)).timeout(QUERY).send().await.ok()?;
        let text = answer.text().await.ok()?;
        match self.engine {
            Engine::Lorax => {
                let running = gauge(&text, "lorax_batch_current_size")?;
                Some(EngineLoad { running, waiting: (active as f64 - running).max(0.0) })
            }
            Engine::Vllm | Engine::Attune => Some(EngineLoad {
                running: gauge(&text, "vllm:num_requests_running")?,
                waiting: gauge(&text, "vllm:num_requests_waiting")?,
            }),
        }
    }
}

/// Returns the sum of a gauge over its labels, from metrics in Prometheus' text format.
fn gauge(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        // A longer name is another metric.
        let rest = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest.strip_prefix(' ')? };
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_summed_over_its_labels() {
        let text = "# HELP vllm:num_requests_running x\n\
                    vllm:num_requests_running{engine=\"0\",model_name=\"base\"} 2.0\n\
                    vllm:num_requests_running{engine=\"1\",model_name=\"base\"} 1.0\n\
                    vllm:num_requests_running_total{engine=\"0\"} 9.0\n\
                    lorax_batch_current_size 3\n";
        assert_eq!(gauge(text, "vllm:num_requests_running"), Some(3.0));
        assert_eq!(gauge(text, "lorax_batch_current_size"), Some(3.0));
        assert_eq!(gauge(text, "vllm:num_requests_waiting"), None);
    }
}
