//! The keys of one JSON object of a `config.json`, read by name. A key that is `null` counts as not set; of a duplicate
//! key the last value counts, as in Python's `json`.

use std::{fmt::Display, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::ArchitectureError;

/// The maximum length of a value in an error message, in characters.
const MOST_SHOWN: usize = 80;

/// One object, and its path in the file.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    /// The key of this object in the file; empty for the file itself.
    pub(super) path: &'static str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// Returns the name of a key for error messages: `rope_scaling.factor`.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn refuse(&self, key: &str, given: impl Display, allowed: impl Into<String>) -> ArchitectureError {
        ArchitectureError::Unsupported { field: self.name(key), given: given.to_string(), allowed: allowed.into() }
    }

    /// Reads an integer; `4096.0` is one too.
    pub(super) fn whole(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ArchitectureError> {
        let Some(given) = self.get(key) else { return Ok(None) };
        let exact = |number: f64| (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64);
        match given.as_u64().or_else(|| given.as_f64().and_then(exact)).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(self.refuse(key, shown(given), format!("a whole number, {} to {}", range.start(), range.end())))
            }
        }
    }

    /// Reads a number.
    pub(super) fn real(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ArchitectureError> {
        let Some(given) = self.get(key) else { return Ok(None) };
        match given.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, shown(given), format!("a number, {:?} to {:?}", range.start(), range.end()))),
        }
    }

    /// Reads a boolean.
    pub(super) fn truth(&self, key: &str) -> Result<Option<bool>, ArchitectureError> {
        let Some(given) = self.get(key) else { return Ok(None) };
        given.as_bool().map(Some).ok_or_else(|| self.refuse(key, shown(given), "true, false"))
    }

    /// Reads a string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ArchitectureError> {
        let Some(given) = self.get(key) else { return Ok(None) };
        given.as_str().map(Some).ok_or_else(|| self.refuse(key, shown(given), "a string"))
    }

    /// Reads a nested object; an empty one counts as not set.
    pub(super) fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, ArchitectureError> {
        let Some(given) = self.get(key) else { return Ok(None) };
        let map = given.as_object().ok_or_else(|| self.refuse(key, shown(given), "an object"))?;
        Ok((!map.is_empty()).then_some(Keys { path: key, map }))
    }
}

/// Returns the value of a setting that has several names; those that are set must agree.
pub(super) fn agreed<T: PartialEq + Display>(
    names: impl IntoIterator<Item = (String, Option<T>)>,
) -> Result<Option<T>, ArchitectureError> {
    let mut given = names.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let Some((name, value)) = given.next() else { return Ok(None) };
    match given.find(|(_, other)| *other != value) {
        None => Ok(Some(value)),
        Some((other, other_value)) => Err(ArchitectureError::Disagree {
            first: name,
            first_value: value.to_string(),
            second: other,
            second_value: other_value.to_string(),
        }),
    }
}

/// Formats a value for error messages: short, on one line, without control characters.
pub(super) fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(MOST_SHOWN).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
