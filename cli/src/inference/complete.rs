//! `attune complete`: a completion of a plain text by `/v1/completions`.

use reqwest::Method;

use crate::{
    connection::client::Client,
    error::{Doing, Result},
    inference::sampling::SamplingArgs,
    output,
};

/// The flags of `attune complete`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompleteArgs {
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The number of completions
    #[arg(long, value_name = "COUNT")]
    n: Option<u32>,
    /// Print the prompt before each completion
    #[arg(long)]
    echo: bool,
    /// The prompt [default: standard input]
    prompt: Option<String>,
}

/// Sends the prompt and prints each completion on lines of its own.
///
/// # Errors
/// [`crate::error::CliError`]: errors of the API.
pub(crate) async fn run(client: &Client, args: CompleteArgs, as_json: bool) -> Result<()> {
    let prompt = match args.prompt {
        Some(prompt) => prompt,
        None => std::io::read_to_string(std::io::stdin()).doing(|| "read standard input".into())?,
    };
    let mut body = args.sampling.fields();
    body.insert("prompt".into(), prompt.into());
    if let Some(n) = args.n {
        body.insert("n".into(), n.into());
    }
    if args.echo {
        body.insert("echo".into(), true.into());
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
