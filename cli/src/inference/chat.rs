//! `attune chat`: a chat completion, or an interactive chat.

use std::io::{BufRead, IsTerminal, Write};

use eventsource_stream::Eventsource;
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    inference::sampling::SamplingArgs,
    output,
};

/// The flags of `attune chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The user message [default: standard input, or an interactive chat if that is a terminal]
    message: Option<String>,
}

/// Sends the message and prints the answer while it streams.
///
/// # Errors
/// [`CliError`]: errors of the API, or a stream that ended early.
pub(crate) async fn run(client: &Client, mut args: ChatArgs, as_json: bool) -> Result<()> {
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({"role": "system", "content": system}));
    }
    let message = match args.message.take() {
        Some(message) => message,
        None if std::io::stdin().is_terminal() && !as_json => return talk(client, &args, messages).await,
        None => std::io::read_to_string(std::io::stdin()).doing(|| "read standard input".into())?,
    };
    messages.push(json!({"role": "user", "content": message}));
    let mut body = request(&args, &messages);
    if as_json {
        let answer = client.json(client.request(Method::POST, &["chat", "completions"]).json(&body)).await?;
        return output::json(&answer);
    }
    body.insert("stream".into(), true.into());
    answer(client, &body).await.map(drop)
}

fn request(args: &ChatArgs, messages: &[Value]) -> Map<String, Value> {
    let mut fields = args.sampling.fields();
    fields.insert("messages".into(), json!(messages));
    fields
}

async fn talk(client: &Client, args: &ChatArgs, opening: Vec<Value>) -> Result<()> {
    output::line(&format!(
        "Chat with {}. /reset clears the conversation; /exit or Ctrl-D ends it.",
        args.sampling.model
    ))?;
    let mut messages = opening.clone();
    while let Some(said) = ask()? {
        match said.trim() {
            "" => continue,
            "/exit" => break,
            "/reset" => {
                messages.clone_from(&opening);
                continue;
            }
            question => messages.push(json!({"role": "user", "content": question})),
        }
        let mut body = request(args, &messages);
        body.insert("stream".into(), true.into());
        match answer(client, &body).await {
            Ok(answer) => messages.push(json!({"role": "assistant", "content": answer})),
            Err(CliError::Refused { message, .. } | CliError::Failed(message)) => {
                // The chat continues without the message that failed.
                messages.pop();
                output::note(&format!("attune: {message}"));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn ask() -> Result<Option<String>> {
    let mut stdout = std::io::stdout();
    write!(stdout, "> ").and_then(|()| stdout.flush()).doing(|| "write to stdout".into())?;
    let mut line = String::new();
    let count = std::io::stdin().lock().read_line(&mut line).doing(|| "read standard input".into())?;
    Ok((count > 0).then_some(line))
}

/// Prints the answer chunk by chunk, and returns the whole text.
async fn answer(client: &Client, body: &Map<String, Value>) -> Result<String> {
    let request = client.request(Method::POST, &["chat", "completions"]).json(body);
    let mut events = client.send(request).await?.bytes_stream().eventsource();
    let mut whole = String::new();
    let mut out = std::io::stdout();
    loop {
        let event = events.next().await.ok_or_else(|| CliError::Failed("the stream ended early".into()))?;
        let event = event.map_err(|e| CliError::Failed(format!("the stream ended early: {e}")))?;
        match piece(&event.data)? {
            Piece::Text(text) => {
                whole.push_str(&text);
                let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                printed.doing(|| "write to stdout".into())?;
            }
            Piece::End => break,
        }
    }
    if !whole.ends_with('\n') {
        output::line("")?;
    }
    Ok(whole)
}

enum Piece {
    Text(String),
    End,
}

fn piece(data: &str) -> Result<Piece> {
    if data == "[DONE]" {
        return Ok(Piece::End);
    }
    let mut chunk: Value = serde_json::from_str(data)
        .map_err(|_| CliError::Failed(format!("a chunk of the stream is not JSON: {data}")))?;
    if let Some(message) = chunk["error"]["message"].as_str() {
        return Err(CliError::Refused { message: message.to_owned(), body: chunk.take() });
    }
    Ok(Piece::Text(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_an_error_and_the_end_are_distinguished() {
        let text = piece(r#"{"choices": [{"delta": {"content": "hi"}}]}"#).unwrap();
        assert!(matches!(text, Piece::Text(text) if text == "hi"));
        assert!(matches!(piece("[DONE]"), Ok(Piece::End)));
        let Err(refused) = piece(r#"{"error": {"message": "the context is full"}}"#) else { panic!("taken") };
        assert_eq!((refused.to_string().as_str(), refused.exit_code()), ("the context is full", 4));
        let usage = piece(r#"{"choices": [], "usage": {}}"#).unwrap();
        assert!(matches!(usage, Piece::Text(text) if text.is_empty()));
    }
}
