//! Limits for the expanded size and the depth of a value. A list of ten references to one list of ten, and so on, is
//! small in memory; but printing, comparing or sorting it visits every item of the expansion, and dropping it uses one
//! stack frame per level. So no value that a template creates may exceed the limits here.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The maximum nesting depth of lists and dicts; the JSON of a request has at most 128 levels.
const MAX_DEPTH: usize = 140;

/// The maximum size of a value's expansion, in bytes.
const MAX_EXTENT_BYTES: u64 = 32 << 20;

/// The size that is counted for an item in addition to its text, in bytes.
pub(crate) const ITEM_BYTES: u64 = 32;

/// Returns an error if the value is too large or too deep, or contains a value that is not data (a namespace may grow
/// later).
pub(crate) fn check(value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut 0)
}

/// Checks a value as [`check`] does, and requires that the value itself is data: a namespace within a namespace could
/// contain itself, and a cycle is never freed.
pub(crate) fn check_data(value: &Value) -> Result<(), Error> {
    refuse_objects(value)?;
    check(value)
}

fn refuse_objects(value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Plain || is_namespace(value) {
        return Err(refused("a list, a dict or a namespace can only hold text, numbers, lists and dicts"));
    }
    Ok(())
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn walk(value: &Value, depth: usize, total: &mut u64) -> Result<(), Error> {
    if depth > 0 {
        refuse_objects(value)?;
    }
    *total += ITEM_BYTES + value.as_str().map_or(0, str::len) as u64;
    if *total > MAX_EXTENT_BYTES {
        return Err(refused("it creates a list or dict that is too large"));
    }
    if depth > MAX_DEPTH {
        return Err(refused("it creates a list or dict that is nested too deep"));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                walk(&item, depth + 1, total)?;
            }
        }
        ValueKind::Map if !is_namespace(value) => {
            for key in value.try_iter()? {
                walk(&key, depth + 1, total)?;
                walk(&value.get_item(&key)?, depth + 1, total)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn refused(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
