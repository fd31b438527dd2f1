//! Python's `json.dumps` over template values, since transformers' `tojson` is that and not Jinja's own.
//!
//! Source: `tojson` in transformers' `utils/chat_template_utils.py`; CPython's `json` module for the layout.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// How `json.dumps` is asked to write.
struct Layout {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// The `tojson` filter: `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(crate) fn tojson(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(given) if given.is_none() || given.is_undefined() => None,
        Some(given) => Some(match given.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(given)?.min(64)),
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
    let mut out = String::new();
    layout.write(&mut out, value, 1)?;
    Ok(Value::from_safe_string(out))
}

impl Layout {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 64 {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(out, value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => self.list(out, value, depth)?,
            kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {kind} has no JSON"))),
        }
        Ok(())
    }

    fn list(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut first = true;
        out.push('[');
        for item in value.try_iter()? {
            self.next(out, &mut first, depth);
            self.write(out, &item, depth + 1)?;
        }
        self.close(out, first, depth, ']');
        Ok(())
    }

    fn map(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        let mut first = true;
        out.push('{');
        for key in keys {
            self.next(out, &mut first, depth);
            match key.kind() {
                ValueKind::Bool => self.text(out, if key.is_true() { "true" } else { "false" }),
                ValueKind::None => self.text(out, "null"),
                _ => self.text(out, &key.to_string()),
            }
            out.push_str(&self.key);
            self.write(out, &value.get_item(&key)?, depth + 1)?;
        }
        self.close(out, first, depth, '}');
        Ok(())
    }

    fn next(&self, out: &mut String, first: &mut bool, depth: usize) {
        if !std::mem::take(first) {
            out.push_str(&self.item);
        }
        self.line(out, depth);
    }

    fn close(&self, out: &mut String, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.line(out, depth - 1);
        }
        out.push(bracket);
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}"); // a String takes everything
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
