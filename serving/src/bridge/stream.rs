//! The tokens of an answer, from an engine's stream of server-sent events.

use std::time::Duration;

use attune_domain::serve::{Engine, FinishReason};
use futures::TryStreamExt;
use reqwest::Response;
use tokio::{io::AsyncBufReadExt, sync::mpsc::UnboundedSender};
use tokio_util::io::StreamReader;

use super::{generate::Step, lorax, vllm};
use crate::{decoding::sequence::EngineEvent, error::Failure};

/// Sends the events of an answer until it ends, or they are not received any more.
pub(crate) async fn pump(engine: Engine, response: Response, stop_ids: Vec<u32>, out: UnboundedSender<EngineEvent>) {
    if let Err(failure) = relay(engine, response, &stop_ids, &out).await {
        let _ = out.send(EngineEvent::Failed(failure)); // the request may have ended
    }
}

async fn relay(
    engine: Engine,
    response: Response,
    stop_ids: &[u32],
    out: &UnboundedSender<EngineEvent>,
) -> Result<(), Failure> {
    let bytes = response.bytes_stream().map_err(std::io::Error::other);
    let mut lines = Box::pin(StreamReader::new(bytes)).lines();
    let mut has_started = false;
    let broken = |why: String| Failure::Internal(format!("the engine's stream is broken: {why}"));
    while let Some(line) = lines.next_line().await.map_err(|error| broken(error.to_string()))? {
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        let steps = match engine {
            Engine::Lorax => lorax::steps(data),
            Engine::Vllm | Engine::Attune => vllm::steps(data),
        };
        for step in steps.map_err(broken)? {
            if !has_started {
                has_started = true;
                let _ = out.send(EngineEvent::Started { scores: Vec::new(), cached: 0, queued: Duration::ZERO });
            }
            let event = event(step, stop_ids);
            let is_last = matches!(event, EngineEvent::End { .. });
            // An error means that a stop string ended the answer, or that the client has disconnected. Dropping the
            // response ends the engine's request.
            if out.send(event).is_err() || is_last {
                return Ok(());
            }
        }
    }
    Err(broken("it ended before the answer".into()))
}

fn event(step: Step, stop_ids: &[u32]) -> EngineEvent {
    match step {
        Step::Token { id, score } if stop_ids.contains(&id) => {
            EngineEvent::End { reason: FinishReason::Stop, end_token: true, score, from_drafts: 0 }
        }
        Step::Token { id, score } => EngineEvent::Token { id, score },
        Step::End(reason) => EngineEvent::End { reason, end_token: false, score: None, from_drafts: 0 },
    }
}
