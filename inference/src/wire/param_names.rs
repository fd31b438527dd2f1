//! The names of parameters in requests that are translated to another endpoint's request: an error names the field that
//! the caller sent.

use crate::error::InferenceError;

/// Pairs of paths: into the translated request, and into the caller's request. The first pair whose path is the
/// parameter, or one of its parents, counts.
#[derive(Debug, Clone, Default)]
pub struct ParamNames(pub Vec<(String, String)>);

impl ParamNames {
    /// Renames the parameter of an error, in its message too.
    #[must_use]
    pub fn apply(&self, error: InferenceError) -> InferenceError {
        match error {
            InferenceError::Invalid { param: Some(param), code, message } => {
                let Some(name) = self.renamed(&param) else {
                    return InferenceError::Invalid { param: Some(param), code, message };
                };
                let message = message.replace(&format!("'{param}'"), &format!("'{name}'"));
                InferenceError::Invalid { param: Some(name), code, message }
            }
            other => other,
        }
    }

    fn renamed(&self, param: &str) -> Option<String> {
        self.0.iter().find_map(|(translated, callers)| {
            let rest = param.strip_prefix(translated.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{callers}{rest}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_field_that_the_caller_sent() {
        let pair = |translated: &str, callers: &str| (translated.to_owned(), callers.to_owned());
        let names = ParamNames(vec![
            pair("messages[1].tool_calls[0].function", "input[4]"),
            pair("messages[1]", "input[3]"),
            pair("messages", "input"),
        ]);
        for (param, want) in [
            ("messages[1].tool_calls[0].function.arguments", "input[4].arguments"),
            ("messages[1].content", "input[3].content"),
            ("messages[12].content", "input[12].content"),
            ("messages", "input"),
            ("messages_of", "messages_of"),
            ("model", "model"),
        ] {
            let error = names.apply(InferenceError::invalid(param, format!("Invalid '{param}': bad.")));
            let error = error.body().error;
            assert_eq!(error.param.as_deref(), Some(want));
            assert_eq!(error.message, format!("Invalid '{want}': bad."));
        }
        assert!(matches!(names.apply(InferenceError::ModelNotFound("m".into())), InferenceError::ModelNotFound(_)));
    }
}
