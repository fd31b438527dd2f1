//! `attune adapters alias`: names that move from version to version.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// Commands about aliases.
#[derive(Debug, Subcommand)]
pub(crate) enum AliasCommand {
    /// List the aliases of an adapter
    List {
        /// Its name
        adapter: String,
    },
    /// Move an alias to a version, or make it; to go back is to move it to the older version
    Set {
        /// NAME@ALIAS
        alias: String,
        /// The version: its number, its id, or its model's name
        version: String,
        /// Move it only if it names this version now
        #[arg(long, value_name = "VERSION", conflicts_with = "new")]
        expected: Option<String>,
        /// Move it only if it is not there yet
        #[arg(long)]
        new: bool,
    },
    /// List every move of an alias, newest first
    Moves {
        /// NAME@ALIAS
        alias: String,
    },
    /// Take an alias away; the versions stay
    Delete {
        /// NAME@ALIAS
        alias: String,
    },
}

/// Does it.
///
/// # Errors
/// [`CliError`]: the API's, or an alias that is none.
pub(crate) async fn run(client: &Client, command: AliasCommand, as_json: bool) -> Result<()> {
    match command {
        AliasCommand::List { adapter } => {
            let aliases = client.get(&["adapters", &adapter, "aliases"]).await?;
            if as_json { output::json(&aliases) } else { table(&aliases) }
        }
        AliasCommand::Set { alias, version, expected, new } => {
            let (adapter, name) = parts(&alias)?;
            let mut body = json!({"version": version});
            if new || expected.is_some() {
                body["expected"] = expected.map_or(Value::Null, Value::String);
            }
            let path = ["adapters", adapter, "aliases", name];
            let view = client.json(client.request(Method::PUT, &path).json(&body)).await?;
            if as_json {
                return output::json(&view);
            }
            let (version, model) = (output::text(&view["version"]), output::text(&view["model"]));
            output::line(&format!("{alias} names version {version}, {model}"))
        }
        AliasCommand::Moves { alias } => {
            let (adapter, name) = parts(&alias)?;
            let moves = client.list(&["adapters", adapter, "aliases", name, "moves"], None).await?;
            if as_json { output::json(&moves) } else { steps(&moves) }
        }
        AliasCommand::Delete { alias } => {
            let (adapter, name) = parts(&alias)?;
            let view = client.json(client.request(Method::DELETE, &["adapters", adapter, "aliases", name])).await?;
            if as_json { output::json(&view) } else { output::line(&format!("deleted {alias}")) }
        }
    }
}

/// `house@prod` in its two parts.
fn parts(alias: &str) -> Result<(&str, &str)> {
    alias
        .split_once('@')
        .filter(|(adapter, name)| !adapter.is_empty() && !name.is_empty())
        .ok_or_else(|| CliError::Usage(format!("'{alias}' is no alias; write NAME@ALIAS, such as house@prod")))
}

fn table(aliases: &Value) -> Result<()> {
    let rows = aliases["data"].as_array().into_iter().flatten().map(|alias| {
        vec![
            output::text(&alias["id"]),
            output::text(&alias["version"]),
            output::text(&alias["model"]),
            output::moment(&alias["moved_at"]),
        ]
    });
    let none = "No aliases yet: they come from `attune adapters alias set NAME@ALIAS VERSION`.";
    output::table(&["ALIAS", "VERSION", "MODEL", "MOVED (UTC)"], rows.collect(), none)
}

fn steps(moves: &Value) -> Result<()> {
    let rows =
        moves["data"].as_array().into_iter().flatten().map(|step| {
            vec![output::moment(&step["created_at"]), output::text(&step["from"]), output::text(&step["to"])]
        });
    output::table(&["MOVED (UTC)", "FROM", "TO"], rows.collect(), "It never moved.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_has_two_parts() {
        assert_eq!(parts("house@prod").unwrap(), ("house", "prod"));
        for wrong in ["house", "@prod", "house@", ""] {
            assert!(parts(wrong).is_err(), "{wrong}");
        }
    }
}
