//! The text of an error with its causes, for logs and failure reasons.

use std::error::Error;

/// Returns an error and all its causes in one line, separated by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn every_cause_follows_the_error() {
        let cause = Failed("not found", None);
        assert_eq!(chain(&cause), "not found");
        let middle = Failed("opening a.json", Some(Box::new(cause)));
        assert_eq!(chain(&Failed("reading", Some(Box::new(middle)))), "reading: opening a.json: not found");
    }
}
