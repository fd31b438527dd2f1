//! The child process: it sets resource limits that it cannot raise again, reads one file, and exits.
//!
//! A hostile file can at worst end this process (out of memory, out of time, a crash); the parent sees that in its exit
//! status.

use std::{
    error::Error,
    io::{self, BufWriter, Read, Write},
    process::ExitCode,
};

use attune_domain::dataset::RowChecker;
use nix::sys::resource::{Resource, setrlimit};

use crate::{
    bounded::Refusal,
    columns,
    contract::{Container, Found, Orders, Verdict},
    delimited, json,
    sink::Sink,
    source::{self, Source},
};

/// Runs as the child; `orders` is its only argument.
pub fn run(orders: &str) -> ExitCode {
    match obey(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The parent logs it.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn obey(orders: &str) -> Result<(), Box<dyn Error>> {
    let orders: Orders = serde_json::from_str(orders)?;
    confine(&orders)?;
    let verdict = judge(io::stdin().lock(), io::stdout().lock(), &orders)?;
    writeln!(io::stderr(), "{}", serde_json::to_string(&verdict)?)?;
    Ok(())
}

/// Sets the resource limits of this process.
fn confine(orders: &Orders) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_AS, orders.memory_bytes, orders.memory_bytes)?;
    setrlimit(Resource::RLIMIT_CPU, orders.cpu_seconds, orders.cpu_seconds)?;
    setrlimit(Resource::RLIMIT_FSIZE, orders.file_bytes, orders.file_bytes)?;
    setrlimit(Resource::RLIMIT_NOFILE, 16, 16)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// Reads a file from `from` and writes its rows to `to`.
///
/// # Errors
/// An error of the streams; defects of the file are in the verdict.
pub fn judge(from: impl Read + 'static, to: impl Write, orders: &Orders) -> io::Result<Verdict> {
    match read(from, to, orders) {
        Err(error) => match reason(&error) {
            Some(reason) => Ok(Verdict::Refused { reason }),
            None => Err(error),
        },
        verdict => verdict,
    }
}

fn read(from: impl Read + 'static, to: impl Write, orders: &Orders) -> io::Result<Verdict> {
    let Source { container, compression, content } = source::open(from, orders)?;
    let verbatim = container == Container::Jsonl && compression.is_none();
    let mut sink = Sink::new(BufWriter::with_capacity(256 << 10, to), verbatim, orders.rows_bytes);
    let mut checker = RowChecker::new();
    match container {
        Container::Jsonl => json::lines(content, &mut checker, &mut sink)?,
        Container::Json => json::list(content, &mut checker, &mut sink)?,
        Container::Csv => delimited::records(content, b',', &mut checker, &mut sink)?,
        Container::Tsv => delimited::records(content, b'\t', &mut checker, &mut sink)?,
        Container::Parquet => columns::rows(content, &mut checker, &mut sink)?,
    }
    let by_rows = container != Container::Jsonl;
    let checked = checker.finish_shaped(&mut |line, shape, row| sink.take(line, shape, &row));
    Ok(match sink.finish(checked)? {
        Ok((facts, rewritten)) => Verdict::Sound(Found {
            container,
            compression,
            shape: facts.shape,
            format: facts.format,
            rows: facts.rows,
            rewritten,
        }),
        Err(defects) => Verdict::Defects { by_rows, defects },
    })
}

/// Returns the message for the user that an error contains.
fn reason(error: &io::Error) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(inner) = cause {
        if let Some(Refusal(reason)) = inner.downcast_ref() {
            return Some(reason.clone());
        }
        cause = match inner.downcast_ref::<io::Error>() {
            Some(wrapped) => wrapped.get_ref().map(|inner| inner as _),
            None => inner.source(),
        };
    }
    None
}
