//! `attune complete`: a plain text gone on with, as `/v1/completions` does.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Client,
    error::{Doing, Result},
    output,
};

/// Flags of `attune complete`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompleteArgs {
    /// A base model's name, or a tuned one's (ft:…)
    #[arg(long, short)]
    model: String,
    /// 0 always takes the likeliest token
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw only from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// It ends after so many tokens
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<u64>,
    /// The same seed draws the same text
    #[arg(long)]
    seed: Option<i64>,
    /// It ends before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// So many different ends
    #[arg(long, value_name = "COUNT")]
    n: Option<u32>,
    /// Print the prompt before them
    #[arg(long)]
    echo: bool,
    /// The text's beginning [default: standard input]
    prompt: Option<String>,
}

/// Asks, and prints each end on lines of its own.
///
/// # Errors
/// [`crate::error::CliError`]: the API's.
pub(crate) async fn run(client: &Client, args: CompleteArgs, as_json: bool) -> Result<()> {
    let prompt = match args.prompt {
        Some(prompt) => prompt,
        None => std::io::read_to_string(std::io::stdin()).doing(|| "read standard input".into())?,
    };
    // Only what was given: the API knows the defaults.
    let mut body = json!({"model": args.model, "prompt": prompt});
    let given = [
        ("temperature", args.temperature.map(Value::from)),
        ("top_p", args.top_p.map(Value::from)),
        ("max_tokens", args.max_tokens.map(Value::from)),
        ("seed", args.seed.map(Value::from)),
        ("stop", (!args.stop.is_empty()).then(|| json!(args.stop))),
        ("n", args.n.map(Value::from)),
        ("echo", args.echo.then_some(Value::Bool(true))),
    ];
    for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        body[name] = value;
    }
    let answer = client.json(client.request(Method::POST, &["completions"]).json(&body)).await?;
    if as_json {
        return output::json(&answer);
    }
    answer["choices"]
        .as_array()
        .into_iter()
        .flatten()
        .try_for_each(|choice| output::line(&output::text(&choice["text"])))
}
