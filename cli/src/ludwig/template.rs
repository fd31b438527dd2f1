//! Prompt templates in the syntax of Python's `str.format`: `{column}`, and `{{`, `}}` for braces.

use std::collections::BTreeMap;

/// The placeholder of the input feature's column.
const SAMPLE: &str = "__sample__";

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Column(String),
}

/// A prompt template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

impl Template {
    /// Creates the template of one column's text.
    pub(crate) fn column(name: &str) -> Self {
        Self(vec![Piece::Column(name.to_owned())])
    }

    /// Parses a template; `task` replaces `{__task__}`.
    ///
    /// # Errors
    /// The defect of the template.
    pub(crate) fn parse(text: &str, task: Option<&str>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
                plain.push_str(&from[..1]);
                rest = after;
                continue;
            }
            let inner = from.strip_prefix('{').ok_or("it has a } without a {. Write }} for a literal brace")?;
            let (name, after) = inner.split_once('}').ok_or("it has a { without a }. Write {{ for a literal brace")?;
            rest = after;
            match (name, task) {
                ("", _) => return Err("it has {} without a column's name".into()),
                ("__task__", Some(task)) => plain.push_str(task),
                ("__task__", None) => return Err("it has {__task__}, but there is no prompt.task".into()),
                ("__context__", _) => return Err("it has {__context__}, but retrieval is not supported".into()),
                (name, _) if name.contains(['{', '!', ':', '[', '.']) => {
                    return Err(format!("{{{name}}} is not a column's name"));
                }
                (name, _) => {
                    pieces.extend([Piece::Text(std::mem::take(&mut plain)), Piece::Column(name.to_owned())]);
                }
            }
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
            return Err("it names no column, so every row would have the same prompt".into());
        }
        Ok(Self(pieces))
    }

    /// Returns the names of the template's columns, in order.
    pub(crate) fn columns(&self) -> Vec<&str> {
        self.0
            .iter()
            .filter_map(|piece| match piece {
                Piece::Column(name) => Some(name.as_str()),
                Piece::Text(_) => None,
            })
            .collect()
    }

    /// Fills in the prompt of a row; `sample` is the column of the input feature.
    ///
    /// # Errors
    /// The name of a column that the row does not have.
    pub(crate) fn fill(&self, row: &BTreeMap<String, String>, sample: Option<&str>) -> Result<String, String> {
        let mut prompt = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => prompt.push_str(text),
                Piece::Column(name) => {
                    let column = if name == SAMPLE { sample.unwrap_or(SAMPLE) } else { name };
                    prompt.push_str(row.get(column).ok_or_else(|| column.to_owned())?);
                }
            }
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> BTreeMap<String, String> {
        [("a", "one {x}"), ("b", "two")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn columns_are_put_in_and_braces_stay() {
        for (text, filled) in [
            ("{a}", "one {x}"),
            ("say {{ {b} }} now", "say { two } now"),
            ("{__sample__}: {__task__}\n", "two: sort\n"),
            ("{a}{b}", "one {x}two"),
            ("{{{b}}}", "{two}"),
        ] {
            let template = Template::parse(text, Some("sort")).unwrap();
            assert_eq!(template.fill(&row(), Some("b")).unwrap(), filled, "{text}");
        }
        assert_eq!(Template::column("b").fill(&row(), None).unwrap(), "two");
    }

    #[test]
    fn what_cannot_be_filled_is_reported() {
        for text in ["{", "}", "{a", "a}", "{}", "{a.b}", "{a!r}", "{a:>3}", "{__task__}", "{__context__} {a}", "none"]
        {
            assert!(Template::parse(text, None).is_err(), "{text}");
        }
        assert_eq!(Template::parse("{c}", None).unwrap().fill(&row(), None).unwrap_err(), "c");
    }
}
