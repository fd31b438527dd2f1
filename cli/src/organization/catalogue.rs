//! `attune catalogue`: the instance types of clouds and their prices. A change needs a key with the scope
//! `installation`.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{connection::client::Client, error::Result, output};

/// The subcommands of `attune catalogue`.
#[derive(Debug, Subcommand)]
pub(crate) enum CatalogueCommand {
    /// List the instance types with their prices
    List,
    /// Retrieve an instance type
    Get {
        /// The entry's ID: cloud, instance type and region, such as aws.g6.xlarge.us-east-1
        entry: String,
    },
    /// Add an instance type, or replace one
    Set(Box<EntryArgs>),
    /// Remove an instance type
    Remove {
        /// The entry's ID
        entry: String,
    },
}

/// The figures of an instance type.
#[derive(Debug, Args)]
pub(crate) struct EntryArgs {
    /// The entry's ID: cloud, instance type and region, such as aws.g6.xlarge.us-east-1
    entry: String,
    /// The product of the GPUs, such as NVIDIA-L4
    #[arg(long, value_name = "PRODUCT")]
    gpu: String,
    /// The number of GPUs
    #[arg(long, default_value_t = 1)]
    gpus: u32,
    /// The number of virtual CPUs
    #[arg(long)]
    vcpus: u32,
    /// The memory of the machine, in MiB
    #[arg(long, value_name = "MIB")]
    memory_mib: u64,
    /// The price of an hour on demand, in USD
    #[arg(long, value_name = "USD")]
    usd_per_hour: f64,
    /// The price of an hour of a spot machine, in USD
    #[arg(long, value_name = "USD")]
    spot_usd_per_hour: Option<f64>,
    /// The source of the figures
    #[arg(long)]
    source: String,
    /// The date of the figures, such as 2026-11-30
    #[arg(long, value_name = "DATE")]
    fetched: String,
}

impl EntryArgs {
    fn body(&self) -> Value {
        json!({
            "gpu": self.gpu,
            "gpus": self.gpus,
            "vcpus": self.vcpus,
            "memory_mib": self.memory_mib,
            "usd_per_hour": self.usd_per_hour,
            "spot_usd_per_hour": self.spot_usd_per_hour,
            "source": self.source,
            "fetched": self.fetched,
        })
    }
}

/// The API path of the catalogue.
const PATH: [&str; 2] = ["organization", "catalogue"];

/// Runs the command.
///
/// # Errors
/// [`crate::error::CliError`]: errors of the API.
pub(crate) async fn run(client: &Client, command: CatalogueCommand, as_json: bool) -> Result<()> {
    let request = |method: Method, entry: &str| client.request(method, &[PATH[0], PATH[1], entry]);
    let view = match command {
        CatalogueCommand::List => return list(client, as_json).await,
        CatalogueCommand::Get { entry } => client.json(request(Method::GET, &entry)).await?,
        CatalogueCommand::Set(args) => client.json(request(Method::POST, &args.entry).json(&args.body())).await?,
        CatalogueCommand::Remove { entry } => {
            let removed = client.json(request(Method::DELETE, &entry)).await?;
            return if as_json { output::json(&removed) } else { output::line(&format!("Removed {entry}.")) };
        }
    };
    if as_json { output::json(&view) } else { show(&view) }
}

async fn list(client: &Client, as_json: bool) -> Result<()> {
    let catalogue = client.get(&PATH).await?;
    if as_json {
        return output::json(&catalogue);
    }
    let rows = catalogue["data"].as_array().into_iter().flatten().map(row);
    let headings = ["ENTRY", "GPUS", "VCPUS", "MEMORY", "USD/H", "SPOT USD/H", "OF"];
    output::table(&headings, rows.collect(), "No instance types.")
}

fn row(entry: &Value) -> Vec<String> {
    vec![
        output::text(&entry["id"]),
        format!("{} × {}", output::text(&entry["gpus"]), output::text(&entry["gpu"])),
        output::text(&entry["vcpus"]),
        memory(entry),
        output::text(&entry["usd_per_hour"]),
        output::text(&entry["spot_usd_per_hour"]),
        date(entry),
    ]
}

fn memory(entry: &Value) -> String {
    entry["memory_mib"].as_u64().map(|mib| output::bytes(&(mib << 20).into())).unwrap_or_default()
}

fn date(entry: &Value) -> String {
    let stale = if entry["stale"] == true { " (stale)" } else { "" };
    format!("{}{stale}", output::text(&entry["fetched"]))
}

fn show(entry: &Value) -> Result<()> {
    output::fields(&[
        ("entry", output::text(&entry["id"])),
        ("GPUs", format!("{} × {}", output::text(&entry["gpus"]), output::text(&entry["gpu"]))),
        ("vCPUs", output::text(&entry["vcpus"])),
        ("memory", memory(entry)),
        ("USD per hour", output::text(&entry["usd_per_hour"])),
        ("USD per hour, spot", output::text(&entry["spot_usd_per_hour"])),
        ("source", output::text(&entry["source"])),
        ("date", date(entry)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_the_machine_and_whether_its_price_is_old() {
        let entry = json!({"id": "aws.g6.xlarge.us-east-1", "gpus": 1, "gpu": "NVIDIA-L4", "vcpus": 4,
            "memory_mib": 16384, "usd_per_hour": 0.8048, "spot_usd_per_hour": null, "fetched": "2026-11-30",
            "stale": true});
        let shown = row(&entry);
        assert_eq!(shown[..3], ["aws.g6.xlarge.us-east-1", "1 × NVIDIA-L4", "4"]);
        assert_eq!((shown[4].as_str(), shown[6].as_str()), ("0.8048", "2026-11-30 (stale)"));
        assert!(shown[3].contains("16"), "{}", shown[3]);
    }
}
