//! JSON: one object per line, or one list of objects.

use std::{
    fmt,
    io::{self, BufReader, Read, Write},
};

use attune_domain::dataset::RowChecker;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    bounded::{ByRow, RowEnd, refusal},
    sink::Sink,
};

/// Reads lines.
pub(crate) fn lines<W: Write>(mut from: impl Read, checker: &mut RowChecker, sink: &mut Sink<W>) -> io::Result<()> {
    let mut part = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut part)?;
        if read == 0 {
            return Ok(());
        }
        checker.push_shaped(&part[..read], &mut |line, shape, row| sink.take(line, shape, &row));
        sink.failure()?;
    }
}

/// Reads the objects of one list.
pub(crate) fn list<W: Write>(from: impl Read, checker: &mut RowChecker, sink: &mut Sink<W>) -> io::Result<()> {
    let (from, row_end) = ByRow::new(from);
    let mut reader = serde_json::Deserializer::from_reader(BufReader::with_capacity(64 << 10, from));
    let mut failed = None;
    let rows = Rows { checker, sink, row_end, failed: &mut failed };
    let read = reader.deserialize_any(rows).and_then(|()| reader.end());
    // Stopping early leaves the list unfinished, which `read` reports as an error too.
    if let Some(failed) = failed {
        return Err(failed);
    }
    match read {
        Ok(()) => Ok(()),
        Err(error) if error.is_io() => Err(error.into()),
        Err(error) => Err(refusal(format!("it is not a complete list of JSON objects: {error}"))),
    }
}

struct Rows<'a, W> {
    checker: &'a mut RowChecker,
    sink: &'a mut Sink<W>,
    row_end: RowEnd,
    /// The error of the sink that ended reading early.
    failed: &'a mut Option<io::Error>,
}

impl<'de, W: Write> Visitor<'de> for Rows<'_, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while self.failed.is_none() && list.next_element_seed(One(&mut self))?.is_some() {}
        Ok(())
    }
}

/// The deserializer of one object of the list.
struct One<'a, 'b, W>(&'a mut Rows<'b, W>);

impl<'de, W: Write> DeserializeSeed<'de> for One<'_, '_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let raw = <Box<RawValue>>::deserialize(deserializer)?;
        let Rows { checker, sink, row_end, failed } = self.0;
        row_end.tell();
        checker.take_row(raw.get().as_bytes(), &mut |number, shape, row| sink.take(number, shape, &row));
        **failed = sink.failure().err();
        Ok(())
    }
}
