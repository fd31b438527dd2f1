//! Comma- or tab-separated values. The first line names the columns; each further record is a row.

use std::io::{self, Read, Write};

use attune_domain::dataset::{RowChecker, Shape};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::value::RawValue;

use crate::{
    bounded::{ByRow, refusal},
    sink::Sink,
};

/// Columns whose cells may hold JSON: lists of messages.
const STRUCTURED: [&str; 4] = ["messages", "conversations", "preferred_output", "non_preferred_output"];

/// Reads records. Their numbers count from the first under the header.
pub(crate) fn records<W: Write>(
    from: impl Read,
    delimiter: u8,
    checker: &mut RowChecker,
    sink: &mut Sink<W>,
) -> io::Result<()> {
    let (from, row_end) = ByRow::new(from);
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(from);
    let header = reader.byte_headers().map_err(unread)?.clone();
    let columns = columns(&header)?;
    row_end.tell();
    let (mut record, mut json) = (ByteRecord::new(), Vec::new());
    while reader.read_byte_record(&mut record).map_err(unread)? {
        row_end.tell();
        match object(&columns, &record, &mut json) {
            Ok(()) => checker.take_row(&json, &mut |number, shape, row| sink.take(number, shape, &row)),
            Err(why) => checker.refuse_row(why),
        }
        sink.failure()?;
    }
    Ok(())
}

/// The columns' names, if they can be those of a dataset.
fn columns(header: &ByteRecord) -> io::Result<Vec<String>> {
    let mut columns: Vec<String> = Vec::with_capacity(header.len());
    for (i, name) in header.iter().enumerate() {
        let name = if i == 0 { name.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(name) } else { name };
        let name = std::str::from_utf8(name).map_err(|_| refusal("its header is not UTF-8".into()))?.trim();
        if columns.iter().any(|known| known == name) {
            return Err(refusal(format!("its header names the column '{}' twice", shown(name))));
        }
        columns.push(name.to_owned());
    }
    if Shape::of(columns.iter()).is_none() {
        let named: Vec<_> = columns.iter().take(20).map(|name| format!("'{}'", shown(name))).collect();
        return Err(refusal(format!(
            "its header must name the columns of a dataset, as 'prompt' and 'completion'; it names {}",
            if named.is_empty() { "none".into() } else { named.join(", ") }
        )));
    }
    Ok(columns)
}

fn shown(name: &str) -> String {
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
            format!("{}: not UTF-8: byte {} of the cell is not valid", shown(name), e.valid_up_to() + 1)
        })?;
        let structured = STRUCTURED.contains(&name.as_str()) || preference && name == "input";
        serde_json::to_writer(&mut *json, name).map_err(|e| e.to_string())?;
        json.push(b':');
        if structured {
            let cell: &RawValue = serde_json::from_str(text)
                .map_err(|e| format!("{}: the cell must hold JSON, a list of messages: {e}", shown(name)))?;
            json.extend_from_slice(cell.get().as_bytes());
        } else {
            serde_json::to_writer(&mut *json, text).map_err(|e| e.to_string())?;
        }
    }
    json.push(b'}');
    Ok(())
}

fn unread(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => refusal(format!("it cannot be read as a table: {other:?}")),
    }
}
