//! A section of a config, consumed key by key: keys that are left at the end are unknown, and refused.

use serde_json::{Map, Value};

use super::report::{Report, Verdict};

/// The job, and the report on every key.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// The request's body.
    pub(super) body: Map<String, Value>,
    /// The mapping of each key.
    pub(super) report: Report,
}

impl Job {
    /// Sets a field of the body by its path, such as `trainer.schedule`.
    pub(super) fn set(&mut self, path: &str, value: Value) {
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut at = &mut self.body;
        for part in section.split('.').filter(|part| !part.is_empty()) {
            let inner = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = inner else { return };
            at = inner;
        }
        at.insert(name.to_owned(), value);
    }
}

/// A section of a config.
#[derive(Debug)]
pub(super) struct Section {
    path: String,
    left: Map<String, Value>,
}

impl Section {
    /// Creates the top-level section, the whole config.
    pub(super) const fn top(config: Map<String, Value>) -> Self {
        Self { path: String::new(), left: config }
    }

    /// Returns a key's full path.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Removes a key and returns its value; null counts as missing.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.left.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Removes a subsection and returns it; any other value under its name is refused.
    pub(super) fn section(&mut self, job: &mut Job, name: &str) -> Option<Self> {
        let path = self.key(name);
        match self.take(name)? {
            Value::Object(left) => Some(Self { path, left }),
            other => {
                job.report.note(path, Verdict::Refused(format!("it must be a section, not {other}")));
                None
            }
        }
    }

    /// Maps a key's value to the job's field `to`.
    pub(super) fn map(&mut self, job: &mut Job, name: &str, to: &str) {
        if let Some(value) = self.take(name) {
            self.mapped(job, name, to, value);
        }
    }

    /// As [`map`](Self::map), but a missing key sets Ludwig's default.
    pub(super) fn map_or(&mut self, job: &mut Job, name: &str, to: &str, default: Value) {
        match self.take(name) {
            Some(value) => self.mapped(job, name, to, value),
            None => {
                job.report.note(self.key(name), Verdict::Default(format!("{to}: {default}")));
                job.set(to, default);
            }
        }
    }

    /// Sets the job's field `to` to the value of a key that was removed, and reports the mapping.
    pub(super) fn mapped(&self, job: &mut Job, name: &str, to: &str, value: Value) {
        job.report.note(self.key(name), Verdict::Mapped(format!("{to}: {value}")));
        job.set(to, value);
    }

    /// Removes keys that have no effect, and reports why.
    pub(super) fn ignore(&mut self, job: &mut Job, names: &[&str], why: &str) {
        for name in names {
            if self.take(name).is_some() {
                job.report.note(self.key(name), Verdict::Ignored(why.to_owned()));
            }
        }
    }

    /// Removes a key that may only have a value that Attune always uses; any other value is refused.
    pub(super) fn only(&mut self, job: &mut Job, name: &str, allowed: &[Value], why: &str) {
        let Some(value) = self.take(name) else { return };
        let same = |one: &Value| *one == value || one.as_f64().is_some_and(|one| Some(one) == value.as_f64());
        let verdict = if allowed.iter().any(same) {
            Verdict::Ignored(format!("Attune always uses {value}"))
        } else {
            Verdict::Refused(why.to_owned())
        };
        job.report.note(self.key(name), verdict);
    }

    /// Reports that a key that was removed is not supported.
    pub(super) fn refused(&self, job: &mut Job, name: &str, why: impl Into<String>) {
        job.report.note(self.key(name), Verdict::Refused(why.into()));
    }

    /// Refuses the keys that are left, since they are unknown; null values are ignored.
    pub(super) fn done(self, job: &mut Job) {
        for (name, value) in &self.left {
            let verdict = if value.is_null() {
                Verdict::Ignored("null has no effect".into())
            } else {
                Verdict::Refused("Attune does not support it".into())
            };
            job.report.note(self.key(name), verdict);
        }
    }
}
