//! Names of fine-tuned models: `ft:base:organization:suffix:id`, as OpenAI has them, with the project in the
//! organization's position. The ID is the end of the job's ID, which is random; so a checkpoint has a name before its
//! job has an adapter.

use attune_domain::id::{AdapterVersionId, Id, JobId, Kind};

/// The separator between a model's name and a checkpoint's step.
const CHECKPOINT: &str = ":ckpt-step-";
/// The number of digits of a job's ID in a name.
const DIGITS: usize = 8;

/// Returns the name of the model that a job publishes.
#[must_use]
pub fn of_job(base: &str, project: &str, suffix: Option<&str>, job: JobId) -> String {
    model_name(base, project, suffix, job)
}

/// Returns the name of an imported model: no job has published it, so the ID is the version's own.
#[must_use]
pub fn of_import(base: &str, project: &str, suffix: Option<&str>, version: AdapterVersionId) -> String {
    model_name(base, project, suffix, version)
}

fn model_name<K: Kind>(base: &str, project: &str, suffix: Option<&str>, id: Id<K>) -> String {
    let digits = id.uuid().simple().to_string();
    format!("ft:{base}:{project}:{}:{}", suffix.unwrap_or_default(), &digits[digits.len() - DIGITS..])
}

/// Returns the name of a model's checkpoint after `step`.
#[must_use]
pub fn of_checkpoint(model: &str, step: u64) -> String {
    format!("{model}{CHECKPOINT}{step}")
}

/// Parses a checkpoint's name into its model and step; `None`: it is not a checkpoint's name.
pub(crate) fn read_checkpoint(name: &str) -> Option<(&str, u64)> {
    let (model, step) = name.rsplit_once(CHECKPOINT)?;
    let step = step.parse().ok().filter(|read: &u64| read.to_string() == step)?;
    Some((model, step))
}

/// Returns the last part of a model's name.
pub(crate) fn digits(model: &str) -> &str {
    model.rsplit(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_s_name_reads_back() {
        let job = JobId::new(uuid::Uuid::from_u128(0xabcd_ef01));
        let model = of_job("tiny", "default", Some("records"), job);
        assert_eq!(model, "ft:tiny:default:records:abcdef01");
        let name = of_checkpoint(&model, 20);
        assert_eq!(read_checkpoint(&name), Some((model.as_str(), 20)));
        assert_eq!(digits(&model), "abcdef01");
        for other in ["ft:tiny:default:records:abcdef01", "m:ckpt-step-", "m:ckpt-step-+1", "m:ckpt-step-01"] {
            assert_eq!(read_checkpoint(other), None, "{other}");
        }
    }
}
