//! The output of commands: JSON, tables, progress bars, times.

use std::{fmt::Write as _, io::Write as _};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::error::{Doing, Result};

/// Prints a line to stdout. A closed pipe (`| head`) is not an error.
///
/// # Errors
/// [`crate::error::CliError::Failed`] for any other error, such as a full disk behind `>`.
pub(crate) fn line(text: &str) -> Result<()> {
    line_while_open(text)?;
    Ok(())
}

/// Prints a line to stdout, for a command that does not end before its reader. Returns whether stdout is still open.
///
/// # Errors
/// As [`line()`].
pub(crate) fn line_while_open(text: &str) -> Result<bool> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.doing(|| "write to stdout".into()).map(|()| true),
    }
}

/// Prints a line to stderr. Nothing depends on it, so that a closed pipe or a full disk is not an error.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Prints a value as indented JSON.
///
/// # Errors
/// As [`line()`].
pub(crate) fn json(value: &Value) -> Result<()> {
    line(&serde_json::to_string_pretty(value).doing(|| "write JSON".into())?)
}

/// Prints rows under headings, or `none` if there are no rows.
///
/// # Errors
/// As [`line()`].
pub(crate) fn table(headings: &[&str], rows: Vec<Vec<String>>, none: &str) -> Result<()> {
    if rows.is_empty() { line(none) } else { line(&table_text(headings, rows)) }
}

/// Formats rows under headings.
pub(crate) fn table_text(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    // Cells are not wrapped, so that IDs and names can be copied.
    table.load_style(presets::NOTHING).set_header(headings);
    table.add_rows(rows);
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Returns the width of stdout's terminal, in characters; `None`: stdout is not a terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// Prints one name and value per line; empty values are left out.
///
/// # Errors
/// As [`line()`].
pub(crate) fn fields(fields: &[(&str, String)]) -> Result<()> {
    let shown = fields.iter().filter(|(_, value)| !value.is_empty());
    let width = shown.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in shown {
        line(&format!("{name:<width$}  {value}"))?;
    }
    Ok(())
}

/// Formats a JSON value as text; null and missing values are empty.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Creates a progress bar over bytes on stderr; hidden if stderr is not a terminal.
pub(crate) fn byte_bar(what: &str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:24!} {wide_bar} {bytes:>10}/{total_bytes:10} {eta:>4}");
    let bar = ProgressBar::new(bytes).with_message(what.to_owned());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Formats a time in Unix seconds as `2026-11-24 07:10:00`, in UTC. Source: Howard Hinnant, `chrono`-compatible
/// low-level date algorithms, `civil_from_days`.
pub(crate) fn moment(value: &Value) -> String {
    let Some(seconds) = value.as_i64() else { return String::new() };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Formats a duration: `75 s`, `12 min 05 s`, `3 h 20 min`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Formats a number of bytes in binary units.
pub(crate) fn bytes(value: &Value) -> String {
    value.as_u64().map(|count| attune_domain::bytes::Bytes(count).to_string()).unwrap_or_default()
}

/// Plots values as one line of block characters, low to high, averaged to at most `width` characters.
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let columns = finite.len().min(width);
    let means = (0..columns).map(|column| {
        let part = &finite[column * finite.len() / columns..(column + 1) * finite.len() / columns];
        part.iter().sum::<f64>() / part.len() as f64
    });
    let means: Vec<f64> = means.collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let span = means.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    let mut line = String::new();
    for mean in means {
        let level = if span > 0.0 { ((mean - low) / span * 7.0).round() as usize } else { 0 };
        let _ = write!(line, "{}", LEVELS[level.min(7)]);
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_read_from_the_calendar() {
        assert_eq!(moment(&json!(0)), "1970-01-01 00:00:00");
        assert_eq!(moment(&json!(951_782_400)), "2000-02-29 00:00:00");
        assert_eq!(moment(&json!(1_795_504_199)), "2026-11-24 07:09:59");
        assert_eq!(moment(&Value::Null), "");
    }

    #[test]
    fn a_falling_loss_falls() {
        assert_eq!(sparkline(&[8.0, 6.0, 4.0, 1.0], 10), "█▆▄▁");
        assert_eq!(sparkline(&[4.0, 4.0, 2.0, 2.0, f64::NAN], 2), "█▁");
        assert_eq!(sparkline(&[], 5), "");
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        assert_eq!([duration(75), duration(725), duration(12_000)], ["75 s", "12 min 05 s", "3 h 20 min"]);
    }
}
