//! Comma- or tab-separated values. The first line is the header with the columns' names; each further record is a row.

use std::io::{self, Read, Write};

use attune_domain::{
    dataset::{RowChecker, Shape},
    text::{quotes::JOINED_TABLE, text_file::UTF8_MARK},
};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::value::RawValue;

use crate::{
    bounded::{ByRow, RAW_ROW_BYTES, RowEnd, refusal},
    quotes::StrictQuotes,
    sink::Sink,
};

/// The columns whose cells contain JSON: lists of messages, or tools.
const STRUCTURED: [&str; 6] =
    ["messages", "conversations", "preferred_output", "non_preferred_output", "tools", "parallel_tool_calls"];

/// The columns of [`STRUCTURED`] whose cells may be empty. Python writes their booleans as `True` and `False`.
const OPTIONAL: [&str; 2] = ["tools", "parallel_tool_calls"];

/// Reads records. Their numbers count from the first record under the header.
pub(crate) fn records<W: Write>(
    from: impl Read,
    delimiter: u8,
    checker: &mut RowChecker,
    sink: &mut Sink<W>,
) -> io::Result<()> {
    let (from, row_end) = ByRow::new(from);
    let (from, found) = StrictQuotes::new(from, delimiter);
    let Err(error) = read(from, (delimiter, &row_end), checker, sink) else { return Ok(()) };
    let stray = found.stray().map(|stray| (stray.row, stray.to_string()));
    // A row without an end most likely has a quotation mark that is never closed.
    let endless = || {
        let row = found.open_row().filter(|_| row_end.overran())?;
        Some((row, format!("a quotation mark opens a cell here and is not closed within {RAW_ROW_BYTES} bytes")))
    };
    match stray.or_else(endless) {
        Some((0, why)) => Err(refusal(format!("its header cannot be read: {why}"))),
        Some((row, why)) => {
            checker.refuse_row_at(row, why);
            Ok(())
        }
        None => Err(error),
    }
}

fn read<W: Write>(
    from: impl Read,
    (delimiter, row_end): (u8, &RowEnd),
    checker: &mut RowChecker,
    sink: &mut Sink<W>,
) -> io::Result<()> {
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(from);
    let header = reader.byte_headers().map_err(unread)?.clone();
    let columns = columns(&header)?;
    row_end.tell();
    let (mut record, mut json) = (ByteRecord::new(), Vec::new());
    while reader.read_byte_record(&mut record).map_err(unread)? {
        row_end.tell();
        if is_joined(&record, &header) {
            checker.refuse_row(JOINED_TABLE.into());
            continue;
        }
        match object(&columns, &record, &mut json) {
            Ok(()) => checker.take_row(&json, &mut |number, shape, row| sink.take(number, shape, &row)),
            Err(why) => checker.refuse_row(why),
        }
        sink.failure()?;
    }
    Ok(())
}

/// Returns whether this record is the header of a second, concatenated file, which would be trained on as a row. A
/// header with quoted cells is refused before, by [`StrictQuotes`].
fn is_joined(record: &ByteRecord, header: &ByteRecord) -> bool {
    let Some(cell) = record.get(0).and_then(|cell| cell.strip_prefix(UTF8_MARK)) else { return false };
    Some(cell) == header.get(0) && record.iter().skip(1).eq(header.iter().skip(1))
}

/// Returns the columns' names, if they match a shape of dataset rows.
fn columns(header: &ByteRecord) -> io::Result<Vec<String>> {
    let mut columns: Vec<String> = Vec::with_capacity(header.len());
    for name in header {
        let name = std::str::from_utf8(name).map_err(|_| refusal("its header is not UTF-8".into()))?.trim();
        if columns.iter().any(|known| known == name) {
            return Err(refusal(format!("its header names the column '{}' twice", truncated(name))));
        }
        columns.push(name.to_owned());
    }
    if Shape::of(columns.iter()).is_none() {
        if let Some(hint) = spreadsheet_hint(&columns) {
            return Err(refusal(hint));
        }
        let named: Vec<_> = columns.iter().take(20).map(|name| format!("'{}'", truncated(name))).collect();
        return Err(refusal(format!(
            "its header must name the columns of a dataset, as 'prompt' and 'completion'; it names {}",
            if named.is_empty() { "none".into() } else { named.join(", ") }
        )));
    }
    Ok(columns)
}

/// Returns a hint for a first line that a spreadsheet writes and that is not a header here.
fn spreadsheet_hint(columns: &[String]) -> Option<String> {
    let first = columns.first()?;
    if first.to_ascii_lowercase().starts_with("sep=") {
        return Some(format!(
            "its first line is '{}', which is not a header; remove it, and save with commas",
            truncated(first)
        ));
    }
    let parted = columns.iter().flat_map(|name| name.split(';')).map(|name| name.trim().trim_matches('"'));
    Shape::of(parted).map(|_| "its header separates the columns with ';'; save the file with commas".into())
}

fn truncated(name: &str) -> String {
    name.chars().take(40).collect()
}

/// Writes a record as a JSON object.
fn object(columns: &[String], record: &ByteRecord, json: &mut Vec<u8>) -> Result<(), String> {
    if record.len() != columns.len() {
        return Err(format!("the row has {} cells, and the header has {}", record.len(), columns.len()));
    }
    let preference = columns.iter().any(|name| name == "preferred_output");
    json.clear();
    json.push(b'{');
    for (i, (name, cell)) in columns.iter().zip(record).enumerate() {
        if i > 0 {
            json.push(b',');
        }
        let text = std::str::from_utf8(cell).map_err(|e| {
            format!("{}: not UTF-8: byte {} of the cell is not valid", truncated(name), e.valid_up_to() + 1)
        })?;
        let structured = STRUCTURED.contains(&name.as_str()) || preference && name == "input";
        let optional = OPTIONAL.contains(&name.as_str());
        let text = match text.trim() {
            "" if optional => "null",
            "True" if optional => "true",
            "False" if optional => "false",
            _ => text,
        };
        serde_json::to_writer(&mut *json, name).map_err(|e| e.to_string())?;
        json.push(b':');
        if structured {
            let cell: &RawValue = serde_json::from_str(text)
                .map_err(|e| format!("{}: the cell must hold JSON{}: {e}", truncated(name), json_hint(name)))?;
            json.extend_from_slice(cell.get().as_bytes());
        } else {
            serde_json::to_writer(&mut *json, text).map_err(|e| e.to_string())?;
        }
    }
    json.push(b'}');
    Ok(())
}

fn json_hint(name: &str) -> &'static str {
    match name {
        "tools" => ", a list of tools",
        "parallel_tool_calls" => ", true or false",
        _ => ", a list of messages",
    }
}

fn unread(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => refusal(format!("it cannot be read as a table: {other:?}")),
    }
}
