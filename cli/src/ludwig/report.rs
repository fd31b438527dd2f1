//! What became of each key of a config: nothing is passed over.

use std::fmt;

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is this in the job.
    Mapped(String),
    /// It was left out, and Ludwig's default for it is this in the job.
    Default(String),
    /// It has no effect here, and why.
    Ignored(String),
    /// It cannot be had here, and why.
    Refused(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped(to) => write!(f, "mapped    → {to}"),
            Self::Default(to) => write!(f, "left out  → {to}, as Ludwig has it"),
            Self::Ignored(why) => write!(f, "ignored   {why}"),
            Self::Refused(why) => write!(f, "refused   {why}"),
        }
    }
}

/// All of them, in the order in which they were met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report(pub(crate) Vec<(String, Verdict)>);

impl Report {
    /// Notes what became of a key.
    pub(crate) fn note(&mut self, key: impl Into<String>, verdict: Verdict) {
        self.0.push((key.into(), verdict));
    }

    /// The keys that were refused.
    pub(crate) fn refused(&self) -> Vec<&str> {
        let refused = self.0.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Refused(_)));
        refused.map(|(key, _)| key.as_str()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        for (key, verdict) in &self.0 {
            writeln!(f, "{key:<width$}  {verdict}")?;
        }
        Ok(())
    }
}
