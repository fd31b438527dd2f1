//! One request of a batch, executed by the code that answers HTTP requests, and its answer as a line of the output
//! file.

use std::{sync::Arc, time::Duration};

use attune_domain::batch::{BatchRow, Defect, read_row};
use attune_inference::{chat, completion, context::Inference, error::InferenceError, metering::Meter};
use attune_store::batches::batch::{Batch, BatchResult};
use http::StatusCode;
use serde_json::{Map, Value, json};

/// The maximum number of attempts while a model is unavailable, and the pause between them: long enough in total for a
/// replica to restart.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_secs(3);

/// An answer and its usage, which is charged only if the answer is stored: a worker that takes a batch over executes
/// the request again.
pub(crate) struct Asked {
    /// The answer.
    pub(crate) answer: BatchResult,
    /// The usage of the answer.
    pub(crate) meter: Arc<Meter>,
}

/// Executes the request of a line. Never fails: an error becomes the answer.
pub(crate) async fn ask(inference: Inference, batch: Batch, line: u64, text: Vec<u8>) -> Asked {
    let own = inference.with_own_meter();
    let answer = answer(&own, &batch, line, &text).await;
    Asked { answer, meter: own.meter }
}

async fn answer(inference: &Inference, batch: &Batch, line: u64, text: &[u8]) -> BatchResult {
    let number = i32::try_from(line).unwrap_or(i32::MAX);
    let row = match read_row(text, line, &batch.endpoint) {
        Ok(row) => row,
        // The whole file was validated before, so this is not the user's error.
        Err(Defect { message, .. }) => return written(number, "", Err(InferenceError::internal(message)), ""),
    };
    let request_id = format!("req_{}", uuid::Uuid::new_v4().simple());
    let mut tries = 1;
    let said = loop {
        match once(inference, batch, &row, &request_id).await {
            Err(
                InferenceError::ReplicaUnavailable { message, .. }
                | InferenceError::Busy { message, .. }
                | InferenceError::TooManyAnswers { message, .. },
            ) if tries < TRIES => {
                tracing::info!(batch.id = %batch.batch_id, line, "retrying: {message}");
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            said => break said,
        }
    };
    if let Err(error) = &said {
        error.log();
    }
    written(number, &row.custom_id, said, &request_id)
}

async fn once(inference: &Inference, batch: &Batch, row: &BatchRow, request_id: &str) -> Result<Value, InferenceError> {
    let body: Map<String, Value> = row.body.clone();
    let said = match batch.endpoint.as_str() {
        "/v1/completions" => {
            let said = Box::pin(completion::complete(inference, batch.project_id, request_id, body)).await?;
            serde_json::to_value(said)
        }
        _ => serde_json::to_value(Box::pin(chat::complete(inference, batch.project_id, request_id, body)).await?),
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
pub(crate) fn panicked(line: u64, text: &[u8], endpoint: &str, why: tokio::task::JoinError) -> BatchResult {
    let custom_id = read_row(text, line, endpoint).map(|row| row.custom_id).unwrap_or_default();
    let error = InferenceError::internal(why);
    error.log();
    written(i32::try_from(line).unwrap_or(i32::MAX), &custom_id, Err(error), "")
}

/// Returns the answer to a request that was not executed before the batch expired.
pub(crate) fn too_late(line: u64, text: &[u8], endpoint: &str) -> BatchResult {
    let custom_id = read_row(text, line, endpoint).map(|row| row.custom_id).unwrap_or_default();
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
