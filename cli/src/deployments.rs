//! `attune deployments`: the replicas that the project requires of base models.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value};

use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

const DEPLOYMENTS: &str = "deployments";

/// The subcommands of `attune deployments`.
#[derive(Debug, Subcommand)]
pub(crate) enum DeploymentsCommand {
    /// Create a deployment
    Create(CreateArgs),
    /// List the deployments, newest first
    List,
    /// Retrieve a deployment
    Get {
        /// The deployment's ID, deploy_…
        id: String,
    },
    /// Update a deployment; fields that are not set stay unchanged
    Update {
        /// The deployment's ID, deploy_…
        id: String,
        #[command(flatten)]
        fields: Fields,
    },
    /// Delete a deployment; its model can still be used
    Delete {
        /// The deployment's ID, deploy_…
        id: String,
    },
}

/// The flags of `attune deployments create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The base model
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The quantization of the base: none, int8, nf4 or nf4-double [default: the installation's]
    #[arg(long, value_name = "NAME")]
    quantization: Option<String>,
    #[command(flatten)]
    fields: Fields,
}

/// The fields that can be changed.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// The program that generates the tokens: attune, vllm or lorax [default of a new deployment: attune]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// The devices that the replicas may use: auto, cpu or cuda [default of a new deployment: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// A smaller base model with the same vocabulary that proposes tokens [default of a new deployment: none]
    #[arg(long, value_name = "MODEL")]
    draft_model: Option<String>,
    /// Have no draft model any more
    #[arg(long, conflicts_with = "draft_model")]
    no_draft_model: bool,
    /// The number type of keys and values in memory: auto or int8 [default of a new deployment: auto]
    #[arg(long, value_name = "TYPE")]
    kv_cache_dtype: Option<String>,
    /// A label [default of a new deployment: the model]
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// The replicas that run all the time [default of a new deployment: 0]
    #[arg(long, value_name = "COUNT")]
    min_replicas: Option<u32>,
    /// The maximum number of replicas [default of a new deployment: 1]
    #[arg(long, value_name = "COUNT")]
    max_replicas: Option<u32>,
    /// The requests per replica that the autoscaler aims at [default: the installation's]
    #[arg(long, value_name = "COUNT")]
    target_concurrency: Option<u32>,
    /// The seconds without a request after which replicas beyond the minimum stop [default: the installation's]
    #[arg(long, value_name = "SECONDS")]
    cooldown_seconds: Option<u32>,
    /// A fine-tuned model that replicas keep in memory; repeat the flag for several. They replace those that are pinned
    #[arg(long, value_name = "MODEL")]
    pin: Vec<String>,
    /// Keep no fine-tuned model in memory any more
    #[arg(long, conflicts_with = "pin")]
    no_pins: bool,
}

impl Fields {
    fn body(self) -> Map<String, Value> {
        let numbers = [
            ("min_replicas", self.min_replicas),
            ("max_replicas", self.max_replicas),
            ("target_concurrency", self.target_concurrency),
            ("cooldown_seconds", self.cooldown_seconds),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        let texts = [
            ("engine", self.engine),
            ("device", self.device),
            ("draft_model", self.draft_model),
            ("kv_cache_dtype", self.kv_cache_dtype),
            ("name", self.name),
        ];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        let pins = (self.no_pins || !self.pin.is_empty()).then(|| ("pinned_adapters".to_owned(), self.pin.into()));
        let no_draft = self.no_draft_model.then(|| ("draft_model".to_owned(), Value::Null));
        numbers.chain(texts).chain(no_draft).chain(pins).collect()
    }
}

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: local errors, or those of the API.
pub(crate) async fn run(client: &Client, command: DeploymentsCommand, as_json: bool) -> Result<()> {
    match command {
        DeploymentsCommand::Create(args) => {
            let mut body = args.fields.body();
            body.insert("model".into(), args.model.into());
            if let Some(quantization) = args.quantization {
                body.insert("quantization".into(), quantization.into());
            }
            show(&post(client, &[DEPLOYMENTS], body).await?, as_json)
        }
        DeploymentsCommand::List => list(&client.list(&[DEPLOYMENTS], None).await?, as_json),
        DeploymentsCommand::Get { id } => show(&client.get(&[DEPLOYMENTS, &id]).await?, as_json),
        DeploymentsCommand::Update { id, fields } => {
            let body = fields.body();
            if body.is_empty() {
                let nothing = "there is no change. Set --engine, --device, --draft-model, --no-draft-model, \
                               --kv-cache-dtype, --name, --min-replicas, --max-replicas, --target-concurrency, \
                               --cooldown-seconds, --pin or --no-pins.";
                return Err(CliError::Usage(nothing.into()));
            }
            show(&post(client, &[DEPLOYMENTS, &id], body).await?, as_json)
        }
        DeploymentsCommand::Delete { id } => {
            let view = client.json(client.request(Method::DELETE, &[DEPLOYMENTS, &id])).await?;
            if as_json { output::json(&view) } else { output::line(&format!("deleted {id}")) }
        }
    }
}

async fn post(client: &Client, path: &[&str], body: Map<String, Value>) -> Result<Value> {
    client.json(client.request(Method::POST, path).json(&body)).await
}

fn list(deployments: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(deployments);
    }
    let rows = deployments["data"].as_array().into_iter().flatten().map(|deployment| {
        vec![
            output::text(&deployment["id"]),
            output::text(&deployment["name"]),
            output::text(&deployment["model"]),
            output::text(&deployment["quantization"]),
            format!("{} to {}", deployment["min_replicas"], deployment["max_replicas"]),
            replicas(deployment),
            remark(deployment).to_owned(),
        ]
    });
    let headings = ["DEPLOYMENT", "NAME", "MODEL", "QUANTIZATION", "BOUNDS", "REPLICAS", "REMARK"];
    let none = "No deployments yet. Create one with `attune deployments create --model MODEL`.";
    output::table(&headings, rows.collect(), none)
}

/// Formats the replicas: `2 ready, 1 starting`.
fn replicas(deployment: &Value) -> String {
    let counts = ["ready", "starting", "draining"].into_iter().filter_map(|state| {
        let count = deployment["replicas"][state].as_u64().filter(|count| *count > 0)?;
        Some(format!("{count} {state}"))
    });
    let counts: Vec<String> = counts.collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

/// Returns the reason why there are no replicas, or why they are not of use.
fn remark(deployment: &Value) -> &'static str {
    if deployment["suspended"] == true {
        "suspended: the budget is spent"
    } else if deployment["idle"] == true {
        "idle: no request for a day"
    } else {
        ""
    }
}

fn show(deployment: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(deployment);
    }
    let hours = deployment["replica_hours"].as_f64().unwrap_or(0.0);
    let cost = deployment["cost_usd"].as_f64().unwrap_or(0.0);
    output::fields(&[
        ("deployment", output::text(&deployment["id"])),
        ("name", output::text(&deployment["name"])),
        ("model", output::text(&deployment["model"])),
        ("quantization", output::text(&deployment["quantization"])),
        ("engine", output::text(&deployment["engine"])),
        ("device", output::text(&deployment["device"])),
        ("draft model", output::text(&deployment["draft_model"])),
        ("kv cache dtype", output::text(&deployment["kv_cache_dtype"])),
        ("bounds", format!("{} to {} replicas", deployment["min_replicas"], deployment["max_replicas"])),
        ("target concurrency", output::text(&deployment["target_concurrency"])),
        ("cooldown seconds", output::text(&deployment["cooldown_seconds"])),
        ("replicas", replicas(deployment)),
        ("remark", remark(deployment).to_owned()),
        ("charged", format!("{hours:.2} replica hours, ${cost:.6}")),
        ("last request", output::moment(&deployment["last_request_at"])),
        ("created", output::moment(&deployment["created_at"])),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_fields_that_are_set_are_sent() {
        let fields = Fields {
            engine: None,
            device: Some("cpu".into()),
            draft_model: None,
            no_draft_model: true,
            kv_cache_dtype: Some("int8".into()),
            name: None,
            min_replicas: Some(0),
            max_replicas: None,
            target_concurrency: None,
            cooldown_seconds: Some(60),
            pin: Vec::new(),
            no_pins: false,
        };
        let want = json!({"min_replicas": 0, "cooldown_seconds": 60, "device": "cpu", "draft_model": null,
            "kv_cache_dtype": "int8"});
        assert_eq!(Value::from(fields.body()), want);
    }

    #[test]
    fn replicas_and_remarks_are_short() {
        let deployment =
            json!({"replicas": {"ready": 2, "starting": 1, "draining": 0}, "suspended": false, "idle": true});
        assert_eq!(
            (replicas(&deployment).as_str(), remark(&deployment)),
            ("2 ready, 1 starting", "idle: no request for a day")
        );
        assert_eq!(replicas(&json!({"replicas": {"ready": 0, "starting": 0, "draining": 0}})), "none");
    }
}
