//! How tuned models are named: `ft:base:organization:suffix:id`, as OpenAI does, with the project in the organization's
//! place. The id is the end of the job's, which is random; so a checkpoint can be named before its job has an adapter.

use attune_domain::id::{AdapterVersionId, Id, JobId, Kind};

/// What stands between a model's name and a checkpoint's step.
const CHECKPOINT: &str = ":ckpt-step-";
/// Digits of a job's id in a name.
const DIGITS: usize = 8;

/// The name of what a job gives.
#[must_use]
pub fn of_job(base: &str, project: &str, suffix: Option<&str>, job: JobId) -> String {
    named(base, project, suffix, job)
}

/// The name of what was brought: no job has given it, so the id is the version's own.
#[must_use]
pub fn of_import(base: &str, project: &str, suffix: Option<&str>, version: AdapterVersionId) -> String {
    named(base, project, suffix, version)
}

fn named<K: Kind>(base: &str, project: &str, suffix: Option<&str>, id: Id<K>) -> String {
    let digits = id.uuid().simple().to_string();
    format!("ft:{base}:{project}:{}:{}", suffix.unwrap_or_default(), &digits[digits.len() - DIGITS..])
}

/// The name of a model as it was after `step`.
#[must_use]
pub fn of_checkpoint(model: &str, step: u64) -> String {
    format!("{model}{CHECKPOINT}{step}")
}

/// The model and the step that a checkpoint's name means; `None`: it is no such name.
pub(crate) fn read_checkpoint(name: &str) -> Option<(&str, u64)> {
    let (model, step) = name.rsplit_once(CHECKPOINT)?;
    let step = step.parse().ok().filter(|read: &u64| read.to_string() == step)?;
    Some((model, step))
}

/// The last part of a model's name.
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
