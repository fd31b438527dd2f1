//! Limits of one rendering: the bytes that it produces, printed or not, and its time. A rendering runs on one thread,
//! so its meter is thread-local.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use minijinja::{Error, ErrorKind};

/// Bytes that a rendering may print in addition to its input, for a preamble or a list of tools.
const OUTPUT_BASE_BYTES: u64 = 256 << 10;

/// Bytes that it may print for each byte of its input.
const OUTPUT_PER_BYTE: u64 = 2;

/// Bytes that it may print in addition for each message, for role names and their markers.
const OUTPUT_PER_MESSAGE_BYTES: u64 = 1 << 10;

/// The maximum number of bytes that a rendering may print, for any input.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// Bytes of intermediate results that a rendering may produce (each step of a concatenation counts) for each byte that
/// it may print.
const WORK_PER_OUTPUT_BYTE: u64 = 16;

/// The maximum number of bytes of intermediate results, for any input.
const MAX_WORK_BYTES: u64 = 64 << 20;

/// The maximum time of a rendering.
const MAX_RENDER_TIME: Duration = Duration::from_secs(10);

thread_local! {
    static METER: RefCell<Option<Meter>> = const { RefCell::new(None) };
}

/// The remaining budget of a rendering.
#[derive(Debug, Clone, Copy)]
struct Meter {
    bytes: u64,
    until: Instant,
}

/// The limits of one rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// The maximum number of bytes printed.
    pub(crate) output: u64,
    /// The maximum number of bytes of intermediate results.
    pub(crate) work: u64,
}

impl Allowance {
    /// Returns the limits of a rendering with this input.
    pub(crate) fn of(input_bytes: usize, messages: usize) -> Self {
        let (bytes, messages) = (input_bytes as u64, messages as u64);
        let output = OUTPUT_BASE_BYTES
            .saturating_add(bytes.saturating_mul(OUTPUT_PER_BYTE))
            .saturating_add(messages.saturating_mul(OUTPUT_PER_MESSAGE_BYTES))
            .min(MAX_OUTPUT_BYTES);
        Self { output, work: (output * WORK_PER_OUTPUT_BYTE).min(MAX_WORK_BYTES) }
    }
}

/// Guard for a rendering on this thread; dropping it removes the thread's meter.
pub(crate) struct Metered(());

impl Metered {
    pub(crate) fn start(allowance: Allowance) -> Self {
        let meter = Meter { bytes: allowance.work, until: Instant::now() + MAX_RENDER_TIME };
        METER.with_borrow_mut(|held| *held = Some(meter));
        Self(())
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        METER.with_borrow_mut(|held| *held = None);
    }
}

/// Returns an error if the time limit is exceeded.
pub(crate) fn tick() -> Result<(), Error> {
    METER.with_borrow(|held| match held {
        Some(meter) if Instant::now() > meter.until => {
            Err(refused(format!("it takes longer than {} s", MAX_RENDER_TIME.as_secs())))
        }
        _ => Ok(()),
    })
}

/// Returns an error if `bytes` more would exceed the limit; charges none.
pub(crate) fn room(bytes: u64) -> Result<(), Error> {
    if bytes > left() { Err(too_much()) } else { tick() }
}

/// Charges `bytes`, or returns an error if a limit is exceeded.
pub(crate) fn charge(bytes: u64) -> Result<(), Error> {
    tick()?;
    METER.with_borrow_mut(|held| match held {
        Some(meter) if meter.bytes < bytes => Err(too_much()),
        Some(meter) => {
            meter.bytes -= bytes;
            Ok(())
        }
        None => Ok(()),
    })
}

/// Returns the number of bytes that may still be produced.
pub(crate) fn left() -> u64 {
    METER.with_borrow(|held| held.map_or(MAX_WORK_BYTES, |meter| meter.bytes))
}

fn too_much() -> Error {
    refused("it produces far more text than its input".into())
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// A buffer for printed output, with a limit.
#[derive(Debug)]
pub(crate) struct Printed {
    bytes: Vec<u8>,
    most: u64,
}

impl Printed {
    pub(crate) const fn new(most: u64) -> Self {
        Self { bytes: Vec::new(), most }
    }

    /// Returns whether the limit was exceeded.
    pub(crate) fn is_full(&self) -> bool {
        self.most == 0
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl io::Write for Printed {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + piece.len()) as u64 > self.most {
            self.most = 0;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the message for a rendering that prints too much.
pub(crate) fn prints_too_much(allowance: Allowance, input_bytes: usize) -> String {
    format!("it prints more than {} bytes for {input_bytes} bytes of messages and tools", allowance.output)
}

/// A string builder that charges the meter for what is written to it.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) text: String,
    failed: Option<Error>,
}

impl Built {
    /// Returns the text, or the error that stopped it.
    pub(crate) fn finish(self, written: std::fmt::Result) -> Result<String, Error> {
        self.finish_with(written.map_err(Error::from))
    }

    /// Returns the text as [`Self::finish`] does, for a writer with its own errors.
    pub(crate) fn finish_with(self, written: Result<(), Error>) -> Result<String, Error> {
        match self.failed {
            Some(error) => Err(error),
            None => written.map(|()| self.text),
        }
    }
}

impl std::fmt::Write for Built {
    fn write_str(&mut self, piece: &str) -> std::fmt::Result {
        if let Err(error) = charge(piece.len() as u64) {
            self.failed = Some(error);
            return Err(std::fmt::Error);
        }
        self.text.push_str(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_what_a_rendering_may_use_at_most() {
        assert_eq!(Allowance::of(0, 0), Allowance { output: OUTPUT_BASE_BYTES, work: 16 * OUTPUT_BASE_BYTES });
        assert_eq!(Allowance::of(1000, 3).output, OUTPUT_BASE_BYTES + 2000 + 3072);
        let most = Allowance { output: MAX_OUTPUT_BYTES, work: MAX_WORK_BYTES };
        assert_eq!(Allowance::of(usize::MAX, usize::MAX), most);
        let _metered = Metered::start(Allowance { output: 1, work: 10 });
        assert!(charge(6).is_ok() && room(4).is_ok() && charge(5).is_err() && charge(4).is_ok());
    }
}
