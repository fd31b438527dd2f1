//! A job's events while they occur, from the API's event stream. An interrupted stream is resumed with the ID of the
//! last event (`Last-Event-ID`), so that no event is missed or printed twice.

use std::time::Instant;

use eventsource_stream::Eventsource;
use futures::StreamExt;
use reqwest::Method;
use serde_json::Value;

use super::{
    event_line,
    watch::{AWAY, EVERY},
};
use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// Prints a job's events until it has ended.
///
/// # Errors
/// The API's errors; the API is unreachable for [`AWAY`].
pub(crate) async fn run(client: &Client, id: &str, as_json: bool) -> Result<()> {
    let mut last = String::new();
    let mut heard = Instant::now();
    loop {
        let before = last.clone();
        let broken = match listen(client, id, &mut last, as_json).await {
            Ok(()) => return Ok(()),
            Err(broken) => broken,
        };
        if last != before {
            heard = Instant::now();
        }
        if !matches!(broken, CliError::Unreachable { .. }) || last.is_empty() || heard.elapsed() >= AWAY {
            return Err(broken);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Prints the events after `last` and advances `last`. Returns when the server ends the stream.
async fn listen(client: &Client, id: &str, last: &mut String, as_json: bool) -> Result<()> {
    let request = client.request(Method::GET, &["fine_tuning", "jobs", id, "events"]).query(&[("stream", "true")]);
    let request = if last.is_empty() { request } else { request.header("Last-Event-ID", last.as_str()) };
    let mut events = client.send(request).await?.bytes_stream().eventsource();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(eventsource_stream::EventStreamError::Transport(cause)) => return Err(client.unreachable(&cause)),
            Err(other) => return Err(CliError::Failed(format!("the response is not an event stream: {other}"))),
        };
        let value: Value = serde_json::from_str(&event.data)
            .map_err(|e| CliError::Failed(format!("the data of an event is not JSON: {e}")))?;
        if as_json {
            output::line(&value.to_string())?
        } else {
            event_line::print(&value)?
        }
        *last = event.id;
    }
    Ok(())
}
