//! One request of a batch, executed by the code that answers HTTP requests, and its answer as a line of the output
//! file.

use std::{sync::Arc, time::Duration};

use attune_domain::batch::{BatchEndpoint, BatchRow, Defect, read_row};
use attune_inference::{
    availability, chat, completion, context::Inference, error::InferenceError, metering::Meter, responses,
};
use attune_store::batches::{batch::Batch, batch_answer::BatchResult};
use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

/// The maximum number of attempts at a request whose replica ends or fails each time.
const MOST_TRIES: u32 = 5;

/// The pause before the second attempt. It doubles with each further one.
const PAUSE: Duration = Duration::from_secs(3);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The time for which a request waits for capacity that live requests use.
const CAPACITY_PATIENCE: Duration = Duration::from_secs(3600);

/// An answer and its usage, which is charged only if the answer is stored: a worker that takes a batch over executes
/// the request again.
pub(crate) struct Asked {
    /// The answer.
    pub(crate) answer: BatchResult,
    /// The usage of the answer.
    pub(crate) meter: Arc<Meter>,
}

/// The outcome of a request.
pub(crate) enum Outcome {
    /// The answer; an error is an answer too.
    Answered(Asked),
    /// The model has no replica. The request remains.
    Unavailable(InferenceError),
}

/// Executes the request of a line. An error becomes the answer, unless no replica of the model is available.
pub(crate) async fn ask(inference: Inference, batch: Batch, line: u64, text: Vec<u8>) -> Outcome {
    let own = inference.with_own_meter();
    match answer(&own, &batch, line, &text).await {
        Ok(answer) => Outcome::Answered(Asked { answer, meter: own.meter }),
        Err(error) => Outcome::Unavailable(error),
    }
}

async fn answer(inference: &Inference, batch: &Batch, line: u64, text: &[u8]) -> Result<BatchResult, InferenceError> {
    let number = i32::try_from(line).unwrap_or(i32::MAX);
    let row = match read_row(text, line, batch.endpoint.path()) {
        Ok(row) => row,
        // The whole file was validated before, so this is not the user's error.
        Err(Defect { message, .. }) => return Ok(written(number, "", Err(InferenceError::internal(message)), "")),
    };
    let request_id = format!("req_{}", uuid::Uuid::new_v4().simple());
    let said = with_retries(inference, batch, &row, &request_id).await?;
    if let Err(error) = &said {
        error.log();
    }
    Ok(written(number, &row.custom_id, said, &request_id))
}

/// Executes a request until it is answered or refused. The inner result is the answer.
///
/// # Errors
/// No replica of the model is available.
async fn with_retries(
    inference: &Inference,
    batch: &Batch,
    row: &BatchRow,
    request_id: &str,
) -> Result<Result<Value, InferenceError>, InferenceError> {
    let (began, mut tries, mut pause) = (Instant::now(), 1, PAUSE);
    loop {
        let failed = match once(inference, batch, row, request_id).await {
            Err(error) => error,
            said => return Ok(said),
        };
        match &failed {
            InferenceError::Busy { .. } | InferenceError::TooManyAnswers { .. }
                if began.elapsed() < CAPACITY_PATIENCE => {}
            InferenceError::NotReady { .. } => return Err(failed),
            InferenceError::ReplicaUnavailable { .. } => {
                if let Some(name) = row.body.get("model").and_then(Value::as_str)
                    && let Some(model) = availability::find(inference, batch.project_id, name).await?
                {
                    availability::wait(inference, &model).await?;
                }
                if tries >= MOST_TRIES {
                    return Ok(Err(failed));
                }
                tries += 1;
            }
            _ => return Ok(Err(failed)),
        }
        tracing::info!(batch.id = %batch.batch_id, custom_id = row.custom_id, "retrying: {failed}");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(inference: &Inference, batch: &Batch, row: &BatchRow, request_id: &str) -> Result<Value, InferenceError> {
    let (project, body): (_, Map<String, Value>) = (batch.project_id, row.body.clone());
    let said = match batch.endpoint {
        BatchEndpoint::ChatCompletions => {
            serde_json::to_value(Box::pin(chat::complete(inference, project, request_id, body)).await?)
        }
        BatchEndpoint::Completions => {
            serde_json::to_value(Box::pin(completion::complete(inference, project, request_id, body)).await?)
        }
        BatchEndpoint::Responses => {
            serde_json::to_value(Box::pin(responses::complete(inference, project, request_id, body)).await?)
        }
    };
    said.map_err(InferenceError::internal)
}

fn written(line: i32, custom_id: &str, said: Result<Value, InferenceError>, request_id: &str) -> BatchResult {
    let is_error = said.is_err();
    let (status, body) = match said {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (error.status(), json!(error.body())),
    };
    let answer = json!({
        "id": format!("batch_req_{}", uuid::Uuid::new_v4().simple()),
        "custom_id": custom_id,
        "response": {"status_code": status.as_u16(), "request_id": request_id, "body": body},
        "error": null,
    });
    BatchResult { line, is_error, answer: answer.to_string() }
}

/// Returns the answer to a request whose task panicked.
pub(crate) fn panicked(line: u64, text: &[u8], endpoint: BatchEndpoint, why: tokio::task::JoinError) -> BatchResult {
    let custom_id = read_row(text, line, endpoint.path()).map(|row| row.custom_id).unwrap_or_default();
    let error = InferenceError::internal(why);
    error.log();
    written(i32::try_from(line).unwrap_or(i32::MAX), &custom_id, Err(error), "")
}

/// Returns the answer to a request that was not executed before the batch expired.
pub(crate) fn too_late(line: u64, text: &[u8], endpoint: BatchEndpoint) -> BatchResult {
    let custom_id = read_row(text, line, endpoint.path()).map(|row| row.custom_id).unwrap_or_default();
    let answer = json!({
        "id": format!("batch_req_{}", uuid::Uuid::new_v4().simple()),
        "custom_id": custom_id,
        "response": null,
        "error": {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        },
    });
    BatchResult { line: i32::try_from(line).unwrap_or(i32::MAX), is_error: true, answer: answer.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_an_answer_with_its_status() {
        let answer = written(3, "a", Err(InferenceError::ModelNotFound("m".into())), "req_1");
        let line: Value = serde_json::from_str(&answer.answer).unwrap();
        assert!(answer.is_error && answer.line == 3);
        assert_eq!((&line["custom_id"], &line["error"]), (&json!("a"), &Value::Null));
        assert_eq!(line["response"]["status_code"], 404);
        assert_eq!(line["response"]["body"]["error"]["code"], "model_not_found");
        let good = written(3, "a", Ok(json!({"id": "x"})), "req_1");
        let line: Value = serde_json::from_str(&good.answer).unwrap();
        assert!(
            !good.is_error
                && line["response"] == json!({"status_code": 200, "request_id": "req_1", "body": {"id": "x"}})
        );
    }
}
