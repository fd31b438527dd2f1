//! Errors of the Kubernetes provider. None is the job's fault.

use std::error::Error;

/// The number of characters of a message that are kept.
const MOST_MESSAGE: usize = 300;

/// A kind of request, as roles name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    /// The verb of a role, such as `create`.
    pub(crate) verb: &'static str,
    /// The resource of a role, such as `jobs.batch`.
    pub(crate) resource: &'static str,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

/// An error of the Kubernetes provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KubernetesError {
    /// The role does not allow the request.
    #[error("Kubernetes does not allow the scheduler to {call} in {namespace}: {message}")]
    Forbidden {
        /// The request.
        call: Call,
        /// The namespace.
        namespace: String,
        /// The API server's message.
        message: String,
    },
    /// The API server refused the request.
    #[error("Kubernetes refused to {call} (HTTP {code}): {message}")]
    Refused {
        /// The request.
        call: Call,
        /// The HTTP status.
        code: u16,
        /// The API server's message.
        message: String,
    },
    /// No answer arrived.
    #[error("Kubernetes cannot be reached to {call}: {why}")]
    Unreachable {
        /// The request.
        call: Call,
        /// The cause.
        why: String,
    },
    /// No answer arrived in time, or the API server was too busy for as long.
    #[error("Kubernetes did not {call} within {seconds} s")]
    Late {
        /// The request.
        call: Call,
        /// The time limit.
        seconds: u64,
    },
    /// The answer has another form than the API documents.
    #[error("the answer of Kubernetes to {call} cannot be read: {why}")]
    Unreadable {
        /// The request.
        call: Call,
        /// The parser's error.
        why: String,
    },
    /// Another object has the name.
    #[error("the Job {name} exists already, and does not belong to this provider")]
    NameTaken {
        /// The Job's name.
        name: String,
    },
    /// The Job of this name is being deleted.
    #[error("the Job {name} is being deleted")]
    BeingDeleted {
        /// The Job's name.
        name: String,
    },
    /// The offer was removed from the configuration.
    #[error("the configuration has no offer `{offer}` any more")]
    NoOffer {
        /// The offer's name.
        offer: String,
    },
    /// The first list is not complete yet.
    #[error("Kubernetes has not listed {resource} yet")]
    NotListed {
        /// The resource.
        resource: &'static str,
    },
}

impl KubernetesError {
    /// Converts an error of the client.
    pub(crate) fn new(call: Call, namespace: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                Self::Forbidden { call, namespace: namespace.to_owned(), message: plain(&status.message) }
            }
            kube::Error::Api(status) => Self::Refused { call, code: status.code, message: plain(&status.message) },
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
                Self::Unreadable { call, why: plain(&innermost(error)) }
            }
            _ => Self::Unreachable { call, why: plain(&innermost(error)) },
        }
    }

    /// Returns whether the API server refused the request with this HTTP status.
    pub(crate) fn is_refused(&self, status: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == status)
    }

    /// Returns whether the request may be sent again at once. The API server may have carried it out.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { code: 500..=599, .. })
    }
}

/// Returns the message of the last cause: those before it only name layers of the client.
fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// Returns a text of the cluster as one short line without control characters.
pub(crate) fn plain(text: &str) -> String {
    let words: Vec<_> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(MOST_MESSAGE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_a_long_message_becomes_one_short_line() {
        assert_eq!(plain(" a\n\tb\u{1b}c "), "a b c");
        let long = plain(&"é".repeat(400));
        assert_eq!((long.chars().count(), long.ends_with('…')), (301, true));
    }
}
