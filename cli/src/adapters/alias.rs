//! `attune adapters alias`: names that can be moved from one adapter version to another.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// The subcommands of `attune adapters alias`.
#[derive(Debug, Subcommand)]
pub(crate) enum AliasCommand {
    /// List the aliases of an adapter
    List {
        /// The adapter's name
        adapter: String,
    },
    /// Create an alias, or move it to another version; to roll back, move it to the older version
    Set {
        /// The alias, as NAME@ALIAS
        alias: String,
        /// The version: its number, its ID, or its model's name
        version: String,
        /// Move the alias only if it names this version now
        #[arg(long, value_name = "VERSION", conflicts_with = "new")]
        expected: Option<String>,
        /// Create the alias; fail if it exists
        #[arg(long)]
        new: bool,
    },
    /// List the moves of an alias, newest first
    Moves {
        /// The alias, as NAME@ALIAS
        alias: String,
    },
    /// Delete an alias; the versions are kept
    Delete {
        /// The alias, as NAME@ALIAS
        alias: String,
    },
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Usage`]: the alias is not of the form NAME@ALIAS. Errors of the API.
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

/// Splits `house@prod` into the adapter's name and the alias's.
pub(super) fn parts(alias: &str) -> Result<(&str, &str)> {
    alias
        .split_once('@')
        .filter(|(adapter, name)| !adapter.is_empty() && !name.is_empty())
        .ok_or_else(|| CliError::Usage(format!("'{alias}' is not an alias. Use NAME@ALIAS, such as house@prod.")))
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
    let none = "No aliases yet. Create one with `attune adapters alias set NAME@ALIAS VERSION`.";
    output::table(&["ALIAS", "VERSION", "MODEL", "MOVED (UTC)"], rows.collect(), none)
}

fn steps(moves: &Value) -> Result<()> {
    let rows =
        moves["data"].as_array().into_iter().flatten().map(|step| {
            vec![output::moment(&step["created_at"]), output::text(&step["from"]), output::text(&step["to"])]
        });
    output::table(&["MOVED (UTC)", "FROM", "TO"], rows.collect(), "No moves.")
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
