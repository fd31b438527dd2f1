//! Python's `json.dumps` for template values: transformers' `tojson` filter is `json.dumps`, not Jinja's own filter.
//!
//! Source: `tojson` in transformers' `utils/chat_template_utils.py`; CPython's `json` module for the layout.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::{repr, sandbox::meter::Built};

/// The maximum nesting depth of lists and dicts.
const MAX_JSON_DEPTH: usize = 140;

/// The maximum number of spaces per level of indentation.
const MAX_INDENT: usize = 64;

/// The parameters of `json.dumps`.
struct Layout {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// Implements the `tojson` filter: `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(crate) fn tojson(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(given) if given.is_none() || given.is_undefined() => None,
        Some(given) => Some(match given.as_str() {
            Some(text) => text.chars().take(MAX_INDENT).collect(),
            None => " ".repeat(usize::try_from(given)?.min(MAX_INDENT)),
        }),
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let layout = Layout {
        ensure_ascii: ensure_ascii.or(options.get::<Option<bool>>("ensure_ascii")?).unwrap_or(false),
        indent,
        item,
        key,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = Built::default();
    let written = layout.write(&mut out, value, 1);
    out.finish_with(written).map(Value::from_safe_string)
}

impl Layout {
    fn write(&self, out: &mut Built, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deep"));
        }
        match value.kind() {
            ValueKind::None => Ok(out.write_str("null")?),
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "true" } else { "false" })?),
            ValueKind::Number => Ok(repr::number(out, value, ("NaN", "Infinity"))?),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(out, value, depth),
            ValueKind::Seq | ValueKind::Iterable => self.list(out, value, depth),
            kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {kind} has no JSON"))),
        }
    }

    fn list(&self, out: &mut Built, value: &Value, depth: usize) -> Result<(), Error> {
        let mut first = true;
        out.write_char('[')?;
        for item in value.try_iter()? {
            self.next(out, &mut first, depth)?;
            self.write(out, &item, depth + 1)?;
        }
        self.close(out, first, depth, ']')
    }

    fn map(&self, out: &mut Built, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        let mut first = true;
        out.write_char('{')?;
        for key in keys {
            self.next(out, &mut first, depth)?;
            match key.kind() {
                ValueKind::Bool => self.text(out, if key.is_true() { "true" } else { "false" })?,
                ValueKind::None => self.text(out, "null")?,
                ValueKind::Number => {
                    let mut digits = String::new();
                    repr::number(&mut digits, &key, ("NaN", "Infinity"))?;
                    self.text(out, &digits)?;
                }
                _ => self.text(out, &key.to_string())?,
            }
            out.write_str(&self.key)?;
            self.write(out, &value.get_item(&key)?, depth + 1)?;
        }
        self.close(out, first, depth, '}')
    }

    fn next(&self, out: &mut Built, first: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::take(first) {
            out.write_str(&self.item)?;
        }
        self.line(out, depth)
    }

    fn close(&self, out: &mut Built, empty: bool, depth: usize, bracket: char) -> Result<(), Error> {
        if !empty {
            self.line(out, depth - 1)?;
        }
        Ok(out.write_char(bracket)?)
    }

    fn line(&self, out: &mut Built, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.write_char('\n')?;
        for _ in 0..depth {
            out.write_str(indent)?;
        }
        Ok(())
    }

    fn text(&self, out: &mut Built, text: &str) -> Result<(), Error> {
        out.write_char('"')?;
        for character in text.chars() {
            match character {
                '"' => out.write_str("\\\"")?,
                '\\' => out.write_str("\\\\")?,
                '\n' => out.write_str("\\n")?,
                '\r' => out.write_str("\\r")?,
                '\t' => out.write_str("\\t")?,
                '\u{8}' => out.write_str("\\b")?,
                '\u{c}' => out.write_str("\\f")?,
                c if u32::from(c) < 0x20 || (self.ensure_ascii && (!c.is_ascii() || c == '\u{7f}')) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}")?;
                    }
                }
                c => out.write_char(c)?,
            }
        }
        Ok(out.write_char('"')?)
    }
}
