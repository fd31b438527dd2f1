//! The filters that a rewritten template calls in place of an operator, a list, or a call.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::{
    extent::{self, ITEM_BYTES},
    meter::{self, Built},
};
use crate::repr;

/// Adds the filters to an environment.
pub(crate) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("__kept", kept);
    environment.add_filter("__timed", timed);
    environment.add_filter("__stored", stored);
    environment.add_filter("__cat", concat);
    environment.add_filter("__add", sum);
    environment.add_filter("__mul", product);
}

/// Charges for a value that a step has created, and makes it eager. A lazy value keeps its source values, and a chain
/// of them is evaluated with a stack frame for each.
fn kept(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Bytes => meter::charge(value.len().unwrap_or(0) as u64)?,
        ValueKind::Iterable => return list(value.try_iter()?),
        ValueKind::Seq | ValueKind::Map => {
            meter::charge(ITEM_BYTES * (value.len().unwrap_or(0) as u64 + 1))?;
            extent::check(&value)?;
        }
        _ => meter::tick()?,
    }
    Ok(value)
}

/// Collects items into a list.
fn list(items: impl Iterator<Item = Value>) -> Result<Value, Error> {
    let mut list = Vec::new();
    for item in items {
        meter::charge(ITEM_BYTES)?;
        list.push(item);
    }
    let list = Value::from(list);
    extent::check(&list)?;
    Ok(list)
}

/// Checks the time after a step that creates nothing, but may take long.
fn timed(value: Value) -> Result<Value, Error> {
    meter::tick().map(|()| value)
}

/// Checks a value that a namespace will store.
fn stored(value: Value) -> Result<Value, Error> {
    extent::check_data(&value).map(|()| value)
}

/// Concatenates as `left ~ right`: both as Python prints them.
fn concat(left: &Value, right: &Value) -> Result<Value, Error> {
    let mut out = Built::default();
    let written = repr::write(&mut out, left).and_then(|()| repr::write(&mut out, right));
    out.finish(written).map(Value::from)
}

/// Adds as `left + right`.
fn sum(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        let mut out = Built::default();
        let written = out.write_str(left).and_then(|()| out.write_str(right));
        return out.finish(written).map(Value::from);
    }
    if is_list(left) && is_list(right) {
        return list(left.try_iter()?.chain(right.try_iter()?));
    }
    number("+", (left, right), Reckoning { whole: i128::checked_add, real: |a, b| a + b })
}

/// Multiplies as `left * right`: numbers, or a text or list and a count.
fn product(left: &Value, right: &Value) -> Result<Value, Error> {
    for (value, times) in [(left, right), (right, left)] {
        if value.as_str().is_none() && !is_list(value) {
            continue;
        }
        let Some(times) = times.as_i64().filter(|_| times.is_integer()) else { break };
        let times = usize::try_from(times).unwrap_or(0);
        if let Some(text) = value.as_str() {
            meter::charge((text.len() as u64).saturating_mul(times as u64))?;
            return Ok(Value::from(text.repeat(times)));
        }
        // A list without items would be iterated for nothing, any number of times.
        let times = if value.len() == Some(0) { 0 } else { times };
        let once: Vec<Value> = value.try_iter()?.collect();
        return list((0..times).flat_map(|_| once.iter().cloned()));
    }
    number("*", (left, right), Reckoning { whole: i128::checked_mul, real: |a, b| a * b })
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// Applies an operator to integers, or to other values.
struct Reckoning {
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
}

fn number(sign: &str, (left, right): (&Value, &Value), operator: Reckoning) -> Result<Value, Error> {
    let Reckoning { whole, real } = operator;
    let refused = || {
        let (left, right) = (left.kind(), right.kind());
        Error::new(ErrorKind::InvalidOperation, format!("'{sign}' does not support {left} and {right}"))
    };
    // In Python, True and False are numbers.
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    if is_whole(left) && is_whole(right) {
        let (left, right) = (as_whole(left)?, as_whole(right)?);
        let too_large = || Error::new(ErrorKind::InvalidOperation, format!("{left} {sign} {right} is too large"));
        let result = whole(left, right).ok_or_else(too_large)?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    let as_real = |value: &Value| match value.kind() {
        ValueKind::Number => f64::try_from(value.clone()).map_err(|_| refused()),
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        _ => Err(refused()),
    };
    Ok(Value::from(real(as_real(left)?, as_real(right)?)))
}

fn as_whole(value: &Value) -> Result<i128, Error> {
    if value.kind() == ValueKind::Bool { Ok(i128::from(value.is_true())) } else { i128::try_from(value.clone()) }
}
