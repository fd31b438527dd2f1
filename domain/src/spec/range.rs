//! Fields that hold their defaults, and get the requested values if these are in range.

use std::{ops::RangeInclusive, str::FromStr};

use strum::VariantNames;

use crate::bad_field::BadField;

pub(super) fn bad(param: &'static str, given: impl ToString, allowed: impl Into<String>) -> BadField {
    BadField { param, given: given.to_string(), allowed: allowed.into() }
}

/// Replaces the default in `field` by the requested value, if there is one. The result must be `allowed`.
pub(super) fn set_int<T>(
    field: &mut T,
    param: &'static str,
    given: Option<i64>,
    allowed: RangeInclusive<i64>,
) -> Result<(), BadField>
where
    T: Copy + TryFrom<i64> + TryInto<i64>,
{
    let (least, most) = allowed.into_inner();
    let value = given.unwrap_or_else(|| TryInto::<i64>::try_into(*field).unwrap_or(i64::MAX));
    match <T as TryFrom<i64>>::try_from(value) {
        Ok(converted) if (least..=most).contains(&value) => {
            *field = converted;
            Ok(())
        }
        _ => Err(bad(param, value, format!("a whole number from {least} to {most}"))),
    }
}

/// Replaces the default in `field` by the requested value, if there is one. The result must be `allowed`.
pub(super) fn set_float(
    field: &mut f64,
    param: &'static str,
    given: Option<f64>,
    allowed: RangeInclusive<f64>,
) -> Result<(), BadField> {
    let (least, most) = allowed.into_inner();
    let value = given.unwrap_or(*field);
    if (least..=most).contains(&value) {
        *field = value;
        Ok(())
    } else {
        Err(bad(param, value, format!("a number from {least} to {most}")))
    }
}

/// Replaces the default in `field` by the value with the requested name, if there is one.
pub(super) fn set_name<T>(field: &mut T, param: &'static str, given: Option<&str>) -> Result<(), BadField>
where
    T: FromStr + VariantNames,
{
    if let Some(name) = given {
        *field = name.parse().map_err(|_| bad(param, name, one_of(T::VARIANTS)))?;
    }
    Ok(())
}

/// Returns the names as a list: `a, b or c`.
fn one_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Optimizer, OverLength, Schedule};

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let mut schedule = Schedule::Cosine;
        set_name(&mut schedule, "schedule", None).unwrap();
        assert_eq!(schedule, Schedule::Cosine);
        set_name(&mut schedule, "schedule", Some("linear")).unwrap();
        assert_eq!(schedule, Schedule::Linear);
        let refused = set_name(&mut schedule, "schedule", Some("steep")).unwrap_err().to_string();
        let names = "constant, linear, cosine or cosine_with_restarts";
        assert_eq!(refused, format!("schedule: steep is not allowed; it must be {names}"));
        assert_eq!(one_of(OverLength::VARIANTS), "error, truncate, drop or split");
        assert_eq!(one_of(Optimizer::VARIANTS), "adamw or adamw_8bit");
    }

    #[test]
    fn a_value_replaces_the_default_only_in_its_range() {
        let mut rows = 5_u32;
        set_int(&mut rows, "rows", None, 1..=9).unwrap();
        assert_eq!(rows, 5);
        set_int(&mut rows, "rows", Some(9), 1..=9).unwrap();
        assert_eq!(rows, 9);
        for given in [0, 10, -1, i64::MAX] {
            let refused = set_int(&mut rows, "rows", Some(given), 1..=9).unwrap_err().to_string();
            assert_eq!(refused, format!("rows: {given} is not allowed; it must be a whole number from 1 to 9"));
        }
        assert_eq!(rows, 9);
        let mut share = 0.5;
        set_float(&mut share, "share", Some(1.0), 0.0..=1.0).unwrap();
        assert_eq!(share, 1.0);
        for given in [f64::NAN, 1.5, -0.5] {
            assert!(set_float(&mut share, "share", Some(given), 0.0..=1.0).is_err());
        }
    }

    #[test]
    fn a_default_must_be_in_the_range_too() {
        let (mut length, longest) = (0_u32, 0);
        assert!(set_int(&mut length, "length", None, 1..=longest).is_err());
    }
}
