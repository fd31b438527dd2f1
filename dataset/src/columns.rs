//! Parquet. The format's metadata is at the end of the file, so the file is first copied to an unnamed file in the
//! temporary folder, which the system removes when the process exits.

use std::io::{self, Read, Seek, Write};

use attune_domain::dataset::RowChecker;
use parquet::{
    errors::ParquetError,
    file::serialized_reader::SerializedFileReader,
    record::{Field, Row, reader::RowIter},
};
use serde_json::{Map, Value};

use crate::{bounded::refusal, sink::Sink};

/// The number of rows decoded at a time: each may be as long as a line.
const BATCH: usize = 16;

/// Reads rows. Row numbers count from the first row of the file.
pub(crate) fn rows<W: Write>(mut from: impl Read, checker: &mut RowChecker, sink: &mut Sink<W>) -> io::Result<()> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut from, &mut file)?;
    file.rewind()?;
    let reader = SerializedFileReader::new(file).map_err(|e| unread(&e))?;
    for row in RowIter::from_file(None, &reader).map_err(|e| unread(&e))?.with_batch_size(BATCH) {
        match object(row.map_err(|e| unread(&e))?) {
            Ok(object) => {
                let json = serde_json::to_vec(&object)?;
                checker.take_row(&json, &mut |number, shape, row| sink.take(number, shape, &row));
            }
            Err(why) => checker.refuse_row(why),
        }
        sink.failure()?;
    }
    Ok(())
}

fn unread(error: &ParquetError) -> io::Error {
    refusal(format!("it cannot be read as Parquet: {error}"))
}

/// Drops nulls: columns have one schema, and a field that a row lacks is null.
fn object(row: Row) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, field) in row.into_columns() {
        if let Some(value) = value(&field).map_err(|why| format!("{name}{why}"))? {
            object.insert(name, value);
        }
    }
    Ok(object)
}

/// Converts a field. An error starts with `: …`, `.field: …` or `[0]: …`.
fn value(field: &Field) -> Result<Option<Value>, String> {
    Ok(Some(match field {
        Field::Null => return Ok(None),
        Field::Bool(yes) => Value::from(*yes),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) => Value::from(*number),
        Field::Long(number) => Value::from(*number),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        // Weights are often floats. NaN and infinity have no JSON.
        Field::Double(number) if number.is_finite() => Value::from(*number),
        Field::Float(number) if number.is_finite() => Value::from(*number),
        Field::Double(_) | Field::Float(_) => return Err(": a number must be finite".into()),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::from(text),
            Err(e) => return Err(format!(": not UTF-8: byte {} is not valid", e.valid_up_to() + 1)),
        },
        Field::Group(row) => {
            let mut object = Map::new();
            for (name, field) in row.get_column_iter() {
                if let Some(value) = value(field).map_err(|why| format!(".{name}{why}"))? {
                    object.insert(name.clone(), value);
                }
            }
            Value::Object(object)
        }
        Field::ListInternal(list) => {
            let mut values = Vec::with_capacity(list.len());
            for (i, field) in list.elements().iter().enumerate() {
                let value = value(field).map_err(|why| format!("[{i}]{why}"))?;
                values.push(value.unwrap_or(Value::Null));
            }
            Value::Array(values)
        }
        _ => return Err(": columns of this type are not supported".into()),
    }))
}
