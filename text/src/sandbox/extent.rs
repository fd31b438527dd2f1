//! How large a value is when all of it is written out, and how deep. A list of ten that holds the same list of ten, and
//! so on, is small in memory; but whoever prints, compares or sorts it walks all of it, and its end is dropped one stack
//! frame a level. So no value that a template makes may be larger or deeper than the bounds here.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Levels of lists and dicts within each other, at most; JSON of a request has no more than 128.
const MAX_DEPTH: usize = 140;

/// Bytes of a value that is written out, at most.
const MAX_EXTENT_BYTES: u64 = 32 << 20;

/// What an item takes besides its text.
pub(crate) const ITEM_BYTES: u64 = 32;

/// Fails if the value, written out, is too large or too deep, or holds what is not data (a namespace may grow later).
pub(crate) fn check(value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut 0)
}

/// As [`check`], and the value itself must be data: what a namespace holds could hold the namespace, and what holds
/// itself is never freed.
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
        return Err(refused("it makes a list or dict that is too large"));
    }
    if depth > MAX_DEPTH {
        return Err(refused("it makes a list or dict that is nested too deep"));
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
