//! `attune files preview`: rows as a job would train on them, with the trained tokens marked.

use std::io::IsTerminal;

use attune_domain::spec;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{connection::client::Client, error::Result, output};

/// The marks around trained tokens on a terminal: the escape sequences for green and for reset.
const COLOURS: [&str; 2] = ["\u{1b}[32m", "\u{1b}[0m"];
/// The marks around trained tokens if stdout is not a terminal; rare in texts, unlike plain brackets.
const BRACKETS: [&str; 2] = ["⟦", "⟧"];

/// The flags of `attune files preview`. The API checks their values and names the field in its errors.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct PreviewArgs {
    /// The file's ID, file-…
    id: String,
    /// The base model, whose tokenizer and chat template are used
    #[arg(long)]
    model: String,
    /// The line numbers of the rows, such as 1,5 [default: the first five rows]
    #[arg(long, value_name = "LINES", value_delimiter = ',')]
    rows: Option<Vec<u64>>,
    #[arg(long, value_name = "TYPE", help = method_help())]
    method: Option<String>,
    /// Train on the tokens of prompts too
    #[arg(long)]
    train_on_prompt: bool,
    /// The policy for rows longer than --max-length: error, truncate, drop or split
    #[arg(long, value_name = "POLICY")]
    over_length: Option<String>,
    /// The maximum number of tokens of a row
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<i64>,
}

fn method_help() -> String {
    format!("The training method: {}", spec::Method::one_of(|method| method.name().to_owned()))
}

/// Requests the preview and prints its rows.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, args: PreviewArgs, as_json: bool) -> Result<()> {
    let path = ["files", &args.id, "preview"];
    let answer = client.json(client.request(Method::POST, &path).json(&body(&args))).await?;
    if as_json {
        return output::json(&answer);
    }
    let marks = if std::io::stdout().is_terminal() { COLOURS } else { BRACKETS };
    for (i, row) in answer["data"].as_array().into_iter().flatten().enumerate() {
        if i > 0 {
            output::line("")?;
        }
        output::line(&heading(row))?;
        let text = marked(row, marks);
        if !text.is_empty() {
            output::line(text.trim_end_matches('\n'))?;
        }
    }
    Ok(())
}

fn body(args: &PreviewArgs) -> Value {
    let mut body = Map::from_iter([("model".to_owned(), Value::from(args.model.as_str()))]);
    if let Some(rows) = &args.rows {
        body.insert("rows".into(), json!(rows));
    }
    if let Some(method) = &args.method {
        body.insert("method".into(), json!({"type": method}));
    }
    let mut trainer = Map::new();
    if args.train_on_prompt {
        trainer.insert("train_on_prompt".into(), true.into());
    }
    if let Some(policy) = &args.over_length {
        trainer.insert("over_length".into(), policy.as_str().into());
    }
    if let Some(most) = args.max_length {
        trainer.insert("max_length".into(), most.into());
    }
    body.insert("trainer".into(), trainer.into());
    body.into()
}

/// Formats a row's heading: `line 4, part 1 of 2: 128 tokens, 90 trained (split: the row has 200)`.
fn heading(row: &Value) -> String {
    let text = |field: &str| output::text(&row[field]);
    let mut heading = format!("line {}", text("line"));
    if row["parts"].as_u64() > Some(1) {
        heading += &format!(", part {} of {}", text("part"), text("parts"));
    }
    heading += &format!(": {} tokens, {} trained", text("tokens"), text("trained_tokens"));
    let over = &row["over_length"];
    if !over.is_null() {
        heading += &format!(" ({}: the row has {})", output::text(&over["policy"]), output::text(&over["row_tokens"]));
    }
    heading
}

/// Returns the row's text, with each run of trained tokens between the two marks.
fn marked(row: &Value, [open, close]: [&str; 2]) -> String {
    let pieces = row["pieces"].as_array().into_iter().flatten();
    let mask = row["mask"].as_array().into_iter().flatten();
    let (mut text, mut inside) = (String::new(), false);
    for (piece, trained) in pieces.zip(mask) {
        let trained = trained.as_u64() == Some(1);
        if trained != inside {
            text.push_str(if trained { open } else { close });
            inside = trained;
        }
        text.extend(piece.as_str().unwrap_or_default().chars().map(printable));
    }
    if inside {
        text.push_str(close);
    }
    text
}

/// Replaces control characters, since a dataset's text must not send escape sequences to the terminal.
fn printable(character: char) -> char {
    if character.is_control() && !matches!(character, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { character }
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    fn row() -> Value {
        json!({"line": 4, "part": 1, "parts": 1, "pieces": ["<u>", "hi", "yes", "\u{1b}[2J", "<e>", "\n"],
            "mask": [0, 0, 1, 1, 1, 0], "tokens": 6, "trained_tokens": 3, "over_length": null})
    }

    #[test]
    fn what_is_trained_is_between_marks_and_steers_no_terminal() {
        assert_eq!(marked(&row(), BRACKETS), "<u>hi⟦yes\u{fffd}[2J<e>⟧\n");
        assert!(marked(&row(), COLOURS).starts_with("<u>hi\u{1b}[32myes"));
        assert_eq!(marked(&json!({"pieces": ["a"], "mask": [1]}), BRACKETS), "⟦a⟧");
    }

    #[test]
    fn a_heading_says_which_part_and_what_was_done() {
        assert_eq!(heading(&row()), "line 4: 6 tokens, 3 trained");
        let mut part = row();
        part["parts"] = json!(2);
        part["over_length"] = json!({"policy": "split", "row_tokens": 11});
        assert_eq!(heading(&part), "line 4, part 1 of 2: 6 tokens, 3 trained (split: the row has 11)");
    }

    #[test]
    fn the_help_of_the_method_names_all() {
        let command = PreviewArgs::augment_args(clap::Command::new("preview"));
        let method = command.get_arguments().find(|argument| argument.get_id() == "method").unwrap();
        let help = method.get_help().unwrap().to_string();
        assert!(help.starts_with("The training method: supervised"), "{help}");
        assert!(spec::Method::ALL.into_iter().all(|method| help.contains(method.name())), "{help}");
    }

    #[test]
    fn only_what_is_given_is_requested() {
        let args = PreviewArgs { model: "m".into(), ..PreviewArgs::default() };
        assert_eq!(body(&args), json!({"model": "m", "trainer": {}}));
        let args =
            PreviewArgs { rows: Some(vec![1, 5]), train_on_prompt: true, method: Some("supervised".into()), ..args };
        let want = json!({"model": "m", "rows": [1, 5], "method": {"type": "supervised"},
            "trainer": {"train_on_prompt": true}});
        assert_eq!(body(&args), want);
    }
}
