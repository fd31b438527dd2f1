//! Calendar dates, for the age of prices.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::bad_field::BadField;

/// The age in days above which an entry is stale: its price may be wrong.
pub const STALE_DAYS: i64 = 90;

/// A date of the Gregorian calendar from 1970 on, written `2026-11-30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// Returns the days since 1970-01-01.
    #[must_use]
    pub fn days(self) -> i64 {
        // Hinnant, "chrono-compatible low-level date algorithms": the year begins in March, so the leap day is last.
        let (year, month) = (i64::from(self.year) - i64::from(self.month < 3), (i64::from(self.month) + 9) % 12);
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
    }

    /// Returns the age in days at a time in Unix seconds; negative for a date in the future.
    #[must_use]
    pub fn age_days(self, now: i64) -> i64 {
        now.div_euclid(86_400) - self.days()
    }

    /// Returns whether an entry of this date is stale at a time in Unix seconds.
    #[must_use]
    pub fn is_stale(self, now: i64) -> bool {
        self.age_days(now) > STALE_DAYS
    }
}

fn days_in(year: u16, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

impl FromStr for Date {
    type Err = BadField;

    fn from_str(text: &str) -> Result<Self, BadField> {
        let refused = || BadField {
            param: "fetched",
            given: text.chars().take(32).collect(),
            allowed: "a date such as 2026-11-30, from 1970 on".into(),
        };
        let is_shape = text.len() == 10
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() });
        if !is_shape {
            return Err(refused());
        }
        let number = |range: std::ops::Range<usize>| text[range].parse::<u16>().map_err(|_| refused());
        let (year, month, day) = (number(0..4)?, number(5..7)? as u8, number(8..10)? as u8);
        if year < 1970 || !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
            return Err(refused());
        }
        Ok(Self { year, month, day })
    }
}

impl TryFrom<String> for Date {
    type Error = BadField;

    fn try_from(text: String) -> Result<Self, BadField> {
        text.parse()
    }
}

impl From<Date> for String {
    fn from(date: Date) -> Self {
        date.to_string()
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        let days = |text: &str| text.parse::<Date>().unwrap().days();
        assert_eq!([days("1970-01-01"), days("1970-03-01"), days("2000-02-29")], [0, 59, 11_016]);
        assert_eq!([days("2000-03-01"), days("2024-12-31"), days("2026-11-30")], [11_017, 20_088, 20_787]);
    }

    #[test]
    fn an_entry_is_stale_after_its_last_day() {
        let date: Date = "2026-11-30".parse().unwrap();
        let noon = |days: i64| (date.days() + days) * 86_400 + 43_200;
        assert_eq!([date.age_days(noon(0)), date.age_days(noon(90)), date.age_days(noon(-1))], [0, 90, -1]);
        assert_eq!([date.is_stale(noon(90)), date.is_stale(noon(91))], [false, true]);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for wrong in
            ["", "2026-13-01", "2026-02-29", "2100-02-29", "1969-12-31", "2026-1-1", "26-11-2030", "2026-11-3x"]
        {
            assert_eq!(wrong.parse::<Date>().unwrap_err().param, "fetched", "{wrong}");
        }
        assert_eq!(serde_json::to_string(&"2024-02-29".parse::<Date>().unwrap()).unwrap(), "\"2024-02-29\"");
        assert!(serde_json::from_str::<Date>("\"2026-02-30\"").is_err());
    }
}
