//! The report on the mapping of a config: every key has a line.

use std::fmt;

/// The result of mapping a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The key sets this field of the job.
    Mapped(String),
    /// The key is missing, and Ludwig's default sets this field of the job.
    Default(String),
    /// The key has no effect, for this reason.
    Ignored(String),
    /// The key is not supported, for this reason.
    Refused(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped(to) => write!(f, "mapped    → {to}"),
            Self::Default(to) => write!(f, "default   → {to}, as in Ludwig"),
            Self::Ignored(why) => write!(f, "ignored   {why}"),
            Self::Refused(why) => write!(f, "refused   {why}"),
        }
    }
}

/// The keys and their verdicts, in the order in which they are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report(pub(crate) Vec<(String, Verdict)>);

impl Report {
    /// Adds a key's verdict.
    pub(crate) fn note(&mut self, key: impl Into<String>, verdict: Verdict) {
        self.0.push((key.into(), verdict));
    }

    /// Returns the keys that are refused.
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
