//! Filters, methods and functions of minijinja whose result may be much larger than their arguments, or that may not
//! terminate: the cost of each is checked first. `steps` charges their results, like all others.

use minijinja::value::{Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{
    extent,
    meter::{self, Built},
};
use crate::repr;

/// The maximum width, count or precision that a template may use.
const MAX_WIDTH: i64 = 10_000;

/// Filters and functions that Jinja does not have, so that no template for transformers uses them.
const UNKNOWN_TO_JINJA: [&str; 2] = ["chain", "zip"];

/// Replaces minijinja's own filters and functions by the checked ones.
pub(crate) fn add(environment: &mut Environment<'_>) {
    for name in UNKNOWN_TO_JINJA {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    environment.add_filter("pprint", string);
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("replace", |state: &State<'_, '_>, args: Rest<Value>| {
        weigh_replace(&args)?;
        Value::from_function(filters::replace).call(state, &args)
    });
    environment.add_filter("indent", |state: &State<'_, '_>, args: Rest<Value>| {
        let width = largest_number(&args)?.max(4);
        let lines = args.first().and_then(Value::as_str).map_or(0, |text| text.matches('\n').count() + 1);
        meter::room((lines as u64).saturating_mul(width))?;
        Value::from_function(filters::indent).call(state, &args)
    });
    environment.add_filter("batch", |state: &State<'_, '_>, args: Rest<Value>| {
        largest_number(&args)?;
        Value::from_function(filters::batch).call(state, &args)
    });
    environment.add_filter("slice", |state: &State<'_, '_>, args: Rest<Value>| {
        largest_number(&args)?;
        Value::from_function(filters::slice).call(state, &args)
    });
    environment.add_filter("format", |state: &State<'_, '_>, args: Rest<Value>| {
        weigh_format(args.first().and_then(Value::as_str).unwrap_or_default())?;
        Value::from_function(filters::format).call(state, &args)
    });
    // The initial values of a namespace must be data, like those assigned later.
    environment.add_function("namespace", |state: &State<'_, '_>, args: Rest<Value>| {
        args.iter().try_for_each(extent::check)?;
        Value::from_function(functions::namespace).call(state, &args)
    });
    environment.set_unknown_method_callback(method);
}

/// Calls Python's methods of strings, lists and dicts.
fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str()) {
        match name {
            "join" => {
                let (items,): (&Value,) = from_args(args)?;
                return join(items, Some(value.clone()));
            }
            "replace" => {
                let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
                weigh_replace(&all)?;
            }
            "format" => weigh_format(text)?,
            // minijinja's own implementation does not terminate.
            "count" if args.first().and_then(Value::as_str) == Some("") => {
                return Ok(Value::from(text.chars().count() + 1));
            }
            _ => {}
        }
    }
    unknown_method_callback(state, value, name, args)
}

/// Converts a value as `str(value)`.
fn string(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    let mut out = Built::default();
    let written = repr::write(&mut out, value);
    out.finish(written).map(Value::from)
}

fn join(items: &Value, between: Option<Value>) -> Result<Value, Error> {
    let mut out = Built::default();
    let mut written = Ok(());
    for (i, item) in items.try_iter()?.enumerate() {
        meter::charge(1)?;
        if let Some(between) = between.as_ref().filter(|_| i > 0) {
            written = written.and_then(|()| repr::write(&mut out, between));
        }
        written = written.and_then(|()| repr::write(&mut out, &item));
        if written.is_err() {
            break;
        }
    }
    out.finish(written).map(Value::from)
}

/// Checks the length of the result of `text.replace(old, new)`.
fn weigh_replace(args: &[Value]) -> Result<(), Error> {
    let [text, old, new, ..] = args else { return Ok(()) };
    let (Some(text), Some(old), Some(new)) = (text.as_str(), old.as_str(), new.as_str()) else { return Ok(()) };
    let more = new.len().saturating_sub(old.len()) as u64;
    if more == 0 {
        return meter::tick();
    }
    meter::room((text.len() as u64).saturating_add(more.saturating_mul(text.matches(old).count() as u64)))
}

/// Refuses a format string with a large width or precision.
fn weigh_format(format: &str) -> Result<(), Error> {
    let digits = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    for digits in digits {
        if digits.parse::<i64>().is_ok_and(|width| width <= MAX_WIDTH) {
            continue;
        }
        return Err(too_wide());
    }
    // Each field may have the largest width.
    let fields = format.matches(['%', '{']).count() as u64;
    let widest = format.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<u64>().ok()).max();
    meter::room(fields.saturating_mul(widest.unwrap_or(0)))
}

/// Returns the largest number among the arguments, positional or named.
fn largest_number(args: &[Value]) -> Result<u64, Error> {
    let mut largest = 0;
    for arg in args.iter().skip(1) {
        let named =
            if arg.is_kwargs() { arg.try_iter()?.filter_map(|key| arg.get_item(&key).ok()).collect() } else { vec![] };
        for number in named.iter().chain([arg]).filter_map(Value::as_i64) {
            if number > MAX_WIDTH {
                return Err(too_wide());
            }
            largest = largest.max(u64::try_from(number).unwrap_or(0));
        }
    }
    Ok(largest)
}

fn too_wide() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a width or count is above {MAX_WIDTH}"))
}
