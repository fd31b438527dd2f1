//! A section of a config, emptied key by key: what is left at its end was not known, and is refused.

use serde_json::{Map, Value};

use super::report::{Report, Verdict};

/// The job that comes about, and the word on every key.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// The request's body.
    pub(super) body: Map<String, Value>,
    /// What became of each key.
    pub(super) report: Report,
}

impl Job {
    /// Sets a field of the body by its path, `trainer.schedule`.
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

/// One section.
#[derive(Debug)]
pub(super) struct Section {
    path: String,
    left: Map<String, Value>,
}

impl Section {
    /// The whole config.
    pub(super) const fn top(config: Map<String, Value>) -> Self {
        Self { path: String::new(), left: config }
    }

    /// The key by its whole path.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The value of a key; null is as good as none.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.left.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A section in it; anything else under its name is refused.
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

    /// Puts a key's value into the job under this path.
    pub(super) fn map(&mut self, job: &mut Job, name: &str, to: &str) {
        if let Some(value) = self.take(name) {
            self.mapped(job, name, to, value);
        }
    }

    /// As [`map`](Self::map), or else what Ludwig has when the key is left out.
    pub(super) fn map_or(&mut self, job: &mut Job, name: &str, to: &str, default: Value) {
        match self.take(name) {
            Some(value) => self.mapped(job, name, to, value),
            None => {
                job.report.note(self.key(name), Verdict::Default(format!("{to}: {default}")));
                job.set(to, default);
            }
        }
    }

    /// Notes that a key that was taken is this in the job.
    pub(super) fn mapped(&self, job: &mut Job, name: &str, to: &str, value: Value) {
        job.report.note(self.key(name), Verdict::Mapped(format!("{to}: {value}")));
        job.set(to, value);
    }

    /// The key asks for nothing that could be done here.
    pub(super) fn ignore(&mut self, job: &mut Job, names: &[&str], why: &str) {
        for name in names {
            if self.take(name).is_some() {
                job.report.note(self.key(name), Verdict::Ignored(why.to_owned()));
            }
        }
    }

    /// The key may only say what is so anyway.
    pub(super) fn only(&mut self, job: &mut Job, name: &str, allowed: &[Value], why: &str) {
        let Some(value) = self.take(name) else { return };
        let same = |one: &Value| *one == value || one.as_f64().is_some_and(|one| Some(one) == value.as_f64());
        let verdict = if allowed.iter().any(same) {
            Verdict::Ignored(format!("{value} is how it is here anyway"))
        } else {
            Verdict::Refused(why.to_owned())
        };
        job.report.note(self.key(name), verdict);
    }

    /// Notes that a key that was taken cannot be had.
    pub(super) fn refused(&self, job: &mut Job, name: &str, why: impl Into<String>) {
        job.report.note(self.key(name), Verdict::Refused(why.into()));
    }

    /// Whatever is left is unknown here.
    pub(super) fn done(self, job: &mut Job) {
        for (name, value) in &self.left {
            let verdict = if value.is_null() {
                Verdict::Ignored("null asks for nothing".into())
            } else {
                Verdict::Refused("Attune has nothing like it".into())
            };
            job.report.note(self.key(name), verdict);
        }
    }
}
