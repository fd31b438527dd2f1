//! The flags of a job that limit its machine, and the request field of each.

use serde_json::Value;

use super::flags::Field;

const COMPUTE: &[&str] = &["compute"];

/// The flags for the machine.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Machine")]
pub(super) struct MachineFlags {
    /// The maximum price of an hour of the machine, in USD
    #[arg(long, value_name = "USD")]
    pub(super) max_usd_per_hour: Option<f64>,
    /// The maximum predicted cost of the machine for the whole job, in USD
    #[arg(long, value_name = "USD")]
    pub(super) max_usd: Option<f64>,
    /// The time by which the job is predicted to end, in Unix seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) deadline: Option<i64>,
    /// Allow spot machines, which the provider may reclaim
    #[arg(long)]
    pub(super) spot: bool,
    /// The allowed regions
    #[arg(long, value_name = "REGION,…", value_delimiter = ',')]
    pub(super) regions: Vec<String>,
    /// The allowed devices: auto, cpu or cuda, or GPU products, such as NVIDIA-L40S
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',')]
    pub(super) device: Vec<String>,
}

impl MachineFlags {
    /// Returns the fields of the request.
    pub(super) fn fields(self) -> Vec<Field> {
        let regions = (!self.regions.is_empty()).then(|| Value::from(self.regions));
        vec![
            (COMPUTE, "max_usd_per_hour", self.max_usd_per_hour.map(Value::from)),
            (COMPUTE, "max_usd", self.max_usd.map(Value::from)),
            (COMPUTE, "deadline", self.deadline.map(Value::from)),
            (COMPUTE, "spot", self.spot.then_some(Value::Bool(true))),
            (COMPUTE, "regions", regions),
            (COMPUTE, "device", device(self.device)),
        ]
    }
}

/// Returns the devices: a kind as a text, products as a list.
fn device(mut given: Vec<String>) -> Option<Value> {
    let is_kind = |given: &[String]| matches!(given, [one] if ["auto", "cpu", "cuda"].contains(&one.as_str()));
    match &given[..] {
        [] => None,
        one if is_kind(one) => given.pop().map(Value::from),
        _ => Some(Value::from(given)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kind_of_device_is_a_text_and_products_are_a_list() {
        let of = |given: &[&str]| device(given.iter().map(ToString::to_string).collect());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["cuda"]), Some(json!("cuda")));
        assert_eq!(of(&["NVIDIA-L4"]), Some(json!(["NVIDIA-L4"])));
        assert_eq!(of(&["cpu", "NVIDIA-L4"]), Some(json!(["cpu", "NVIDIA-L4"])));
    }
}
