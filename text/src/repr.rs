//! Values printed as in Python: `str(x)` for values that a template prints, `repr(x)` for the items of a list or dict.
//!
//! Source: CPython's `float_repr_style` "short", `unicode_repr` (for the choice of quotes and the escapes), and
//! `list_repr`; `testdata/numbers.json` has the output of Python 3.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Error, Output, State};

use crate::sandbox::meter;

/// The maximum depth that is printed; deeper values cannot exist (see `sandbox::extent`).
const MAX_DEPTH: usize = 150;

/// Prints a value: the environment's formatter, through which all output of a template passes.
pub(crate) fn print(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if !matches!(state.auto_escape(), AutoEscape::None) {
        // `&` becomes `&amp;`, five times as long; no character grows more than six times.
        meter::charge(6 * value.as_str().map_or(0, str::len) as u64)?;
        return minijinja::escape_formatter(out, state, value);
    }
    if let Some(text) = value.as_str() {
        meter::charge(text.len() as u64)?;
        return out.write_str(text).map_err(Error::from);
    }
    let mut text = meter::Built::default();
    let written = write(&mut text, value);
    out.write_str(&text.finish(written)?).map_err(Error::from)
}

/// Writes `str(value)`.
pub(crate) fn write(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => repr(out, value, 0),
    }
}

fn repr(out: &mut impl Write, value: &Value, depth: usize) -> fmt::Result {
    match value.kind() {
        _ if depth > MAX_DEPTH => out.write_str("..."),
        ValueKind::String => text(out, value.as_str().unwrap_or_default()),
        ValueKind::Number => number(out, value, ("nan", "inf")),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (i, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if i == 0 { "" } else { ", " })?;
                repr(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if i == 0 { "" } else { ", " })?;
                repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                repr(out, &value.get_item(&key).map_err(|_| fmt::Error)?, depth + 1)?;
            }
            out.write_char('}')
        }
        ValueKind::Undefined => out.write_str("Undefined"),
        _ => write!(out, "{value}"),
    }
}

/// Writes a number. `not_a_number` and `infinity` are the words for NaN and infinity, which differ between Python's
/// `repr` and its `json`.
pub(crate) fn number(out: &mut impl Write, value: &Value, (not_a_number, infinity): (&str, &str)) -> fmt::Result {
    if value.is_integer() {
        return write!(out, "{value}");
    }
    let float = f64::try_from(value.clone()).map_err(|_| fmt::Error)?;
    if float.is_nan() {
        return out.write_str(not_a_number);
    }
    if float.is_infinite() {
        return write!(out, "{}{infinity}", if float < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{float:e}"); // the shortest digits that give the same number, as in Python
    let (digits, exponent) = scientific.split_once('e').ok_or(fmt::Error)?;
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return write!(out, "{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{float}");
    write!(out, "{plain}{}", if plain.contains('.') { "" } else { ".0" })
}

fn text(out: &mut impl Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for character in text.chars() {
        match (character, u32::from(character)) {
            ('\\', _) => out.write_str("\\\\"),
            ('\n', _) => out.write_str("\\n"),
            ('\r', _) => out.write_str("\\r"),
            ('\t', _) => out.write_str("\\t"),
            (c, _) if c == quote => write!(out, "\\{c}"),
            (c, ..0x7f) if !c.is_ascii_control() => out.write_char(c),
            (_, code @ ..0x100) if !is_printable(character) => write!(out, "\\x{code:02x}"),
            (_, code @ ..0x1_0000) if !is_printable(character) => write!(out, "\\u{code:04x}"),
            (_, code) if !is_printable(character) => write!(out, "\\U{code:08x}"),
            (c, _) => out.write_char(c),
        }?;
    }
    out.write_char(quote)
}

/// Returns whether Python's `str.isprintable` holds. Rust's table is built from the same categories; after another
/// character, a combining one counts as printable too.
fn is_printable(character: char) -> bool {
    let pair: String = ['a', character].iter().collect();
    pair.escape_debug().eq(pair.chars())
}
