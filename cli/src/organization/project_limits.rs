//! `attune projects limits` and `set-limits`: a project's share of the machines, and its quotas.

use clap::Args;
use reqwest::{
    Method,
    header::{ETAG, HeaderValue, IF_MATCH},
};
use serde_json::{Map, Value};

use crate::{
    connection::client::Client,
    error::{CliError, Doing, Result},
    output,
};

/// The settings of a project. One that is omitted keeps its value; in a project of another organization, it gets its
/// default.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// The project's ID or name; the ID, if it belongs to another organization
    project: String,
    /// The weight: twice the weight is twice the share of the machines
    #[arg(long)]
    weight: Option<f64>,
    /// The maximum number of jobs that run at the same time, or `none`
    #[arg(long, value_name = "JOBS|none", value_parser = whole)]
    max_running_jobs: Option<Limit>,
    /// The maximum of node-hours in a calendar month, or `none`
    #[arg(long, value_name = "HOURS|none", value_parser = number)]
    max_node_hours: Option<Limit>,
    /// The maximum number of bytes that the project stores, or `none` for that of the installation
    #[arg(long, value_name = "BYTES|none", value_parser = whole)]
    max_stored_bytes: Option<Limit>,
    /// The maximum number of replicas of the project's deployments together, or `none` for 32
    #[arg(long, value_name = "REPLICAS|none", value_parser = whole)]
    max_replicas: Option<Limit>,
    /// The highest priority of the project's jobs: low, normal or high
    #[arg(long, value_name = "PRIORITY")]
    max_priority: Option<String>,
}

/// A limit: a JSON number, or null for none.
#[derive(Debug, Clone, PartialEq)]
struct Limit(Value);

fn whole(text: &str) -> std::result::Result<Limit, String> {
    limit(text, || text.parse::<u64>().ok().map(Value::from))
}

fn number(text: &str) -> std::result::Result<Limit, String> {
    limit(text, || text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from))
}

fn limit(text: &str, parsed: impl FnOnce() -> Option<Value>) -> std::result::Result<Limit, String> {
    let value = if text == "none" { Some(Value::Null) } else { parsed() };
    value.map(Limit).ok_or_else(|| "use a number, or none".to_owned())
}

impl LimitArgs {
    /// Returns the project's ID or name.
    pub(crate) fn project(&self) -> &str {
        &self.project
    }

    /// Returns the settings that the arguments name.
    fn changes(self) -> Map<String, Value> {
        let limit = |limit: Option<Limit>| limit.map(|limit| limit.0);
        let all = [
            ("weight", self.weight.map(Value::from)),
            ("max_running_jobs", limit(self.max_running_jobs)),
            ("max_node_hours", limit(self.max_node_hours)),
            ("max_stored_bytes", limit(self.max_stored_bytes)),
            ("max_replicas", limit(self.max_replicas)),
            ("max_priority", self.max_priority.map(Value::from)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

fn path(project: &str) -> [&str; 4] {
    ["organization", "projects", project, "queue"]
}

/// Retrieves the settings of the project with this ID and prints them.
///
/// # Errors
/// [`CliError`]: errors of the API.
pub(crate) async fn get(client: &Client, project: &str, as_json: bool) -> Result<()> {
    show(&client.get(&path(project)).await?, as_json)
}

/// Sets the settings of the project with this ID and prints them. A change that another user makes at the same time is
/// not lost: the API then refuses this one.
///
/// # Errors
/// [`CliError`]: errors of the API.
pub(crate) async fn set(client: &Client, project: &str, args: LimitArgs, as_json: bool) -> Result<()> {
    let mut request = client.request(Method::POST, &path(project));
    let (mut settings, version) = present(client, project).await?;
    settings.extend(args.changes());
    if let Some(version) = version {
        request = request.header(IF_MATCH, version);
    }
    show(&client.json(request.json(&settings)).await?, as_json)
}

/// Returns the present settings with their version; none, if they belong to another organization.
async fn present(client: &Client, project: &str) -> Result<(Map<String, Value>, Option<HeaderValue>)> {
    let found = match client.send(client.request(Method::GET, &path(project))).await {
        Ok(found) => found,
        Err(CliError::NotFound { .. }) => return Ok((Map::new(), None)),
        Err(error) => return Err(error),
    };
    let version = found.headers().get(ETAG).cloned();
    let view = found.bytes().await.map_err(|error| client.unreachable(&error))?;
    let view = serde_json::from_slice(&view).doing(|| "read the response".into())?;
    Ok((settings(&view), version))
}

/// Returns the fields of a view that can be set.
fn settings(view: &Value) -> Map<String, Value> {
    let fields = view.as_object().into_iter().flatten();
    let fields = fields.filter(|(name, _)| !matches!(name.as_str(), "object" | "project_id"));
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn show(view: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(view);
    }
    let limit = |name: &str, none: &str| match &view[name] {
        Value::Null => none.to_owned(),
        value => output::text(value),
    };
    let stored = output::bytes(&view["max_stored_bytes"]);
    output::fields(&[
        ("project", output::text(&view["project_id"])),
        ("weight", output::text(&view["weight"])),
        ("running jobs", limit("max_running_jobs", "no maximum")),
        ("node-hours a month", limit("max_node_hours", "no maximum")),
        ("replicas of deployments", limit("max_replicas", "32")),
        ("stored", if stored.is_empty() { "the installation's maximum".into() } else { stored }),
        ("highest priority", output::text(&view["max_priority"])),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!([whole("3"), whole("none")], [Ok(Limit(json!(3))), Ok(Limit(Value::Null))]);
        assert_eq!(number("0.5"), Ok(Limit(json!(0.5))));
        for wrong in [whole("0.5"), whole("-1"), number("much"), number("inf")] {
            assert_eq!(wrong, Err("use a number, or none".to_owned()));
        }
    }

    #[test]
    fn a_setting_that_is_omitted_keeps_its_value() {
        let view = json!({"object": "organization.project.queue", "project_id": "proj_1", "weight": 2.0,
            "max_running_jobs": 3, "max_node_hours": null, "max_stored_bytes": 100, "max_priority": "high"});
        let args = LimitArgs {
            project: "default".into(),
            weight: None,
            max_running_jobs: Some(Limit(Value::Null)),
            max_node_hours: Some(Limit(json!(1.5))),
            max_stored_bytes: None,
            max_replicas: None,
            max_priority: None,
        };
        let mut set = settings(&view);
        set.extend(args.changes());
        let want = json!({"weight": 2.0, "max_running_jobs": null, "max_node_hours": 1.5, "max_stored_bytes": 100,
            "max_priority": "high"});
        assert_eq!(Value::Object(set), want);
    }
}
