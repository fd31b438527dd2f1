//! What one rendering may use: bytes that it produces, printed or not, and time. A rendering runs on one thread, so its
//! meter is that thread's.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use minijinja::{Error, ErrorKind};

/// Bytes that a rendering may print whatever it is given: a preamble, a list of tools.
const OUTPUT_BASE_BYTES: u64 = 256 << 10;

/// Bytes that it may print for each byte that it is given, at most.
const OUTPUT_PER_BYTE: u64 = 2;

/// Bytes that it may print for each message besides: the names of roles and the marks around them.
const OUTPUT_PER_MESSAGE_BYTES: u64 = 1 << 10;

/// Bytes that a rendering may print, whatever it is given.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// Bytes that a rendering may produce on its way (each step of a concatenation counts) for each byte that it may print.
const WORK_PER_OUTPUT_BYTE: u64 = 16;

/// Bytes that a rendering may produce on its way, whatever it is given.
const MAX_WORK_BYTES: u64 = 64 << 20;

/// How long a rendering may take.
const MAX_RENDER_TIME: Duration = Duration::from_secs(10);

thread_local! {
    static METER: RefCell<Option<Meter>> = const { RefCell::new(None) };
}

/// What a rendering may still use.
#[derive(Debug, Clone, Copy)]
struct Meter {
    bytes: u64,
    until: Instant,
}

/// Bounds of one rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Bytes printed, at most.
    pub(crate) output: u64,
    /// Bytes produced on the way, at most.
    pub(crate) work: u64,
}

impl Allowance {
    /// The bounds of a rendering that is given so much.
    pub(crate) fn of(input_bytes: usize, messages: usize) -> Self {
        let (bytes, messages) = (input_bytes as u64, messages as u64);
        let output = OUTPUT_BASE_BYTES
            .saturating_add(bytes.saturating_mul(OUTPUT_PER_BYTE))
            .saturating_add(messages.saturating_mul(OUTPUT_PER_MESSAGE_BYTES))
            .min(MAX_OUTPUT_BYTES);
        Self { output, work: (output * WORK_PER_OUTPUT_BYTE).min(MAX_WORK_BYTES) }
    }
}

/// A rendering on this thread; when it is dropped, the thread's meter is gone.
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

/// Fails if the time is over.
pub(crate) fn tick() -> Result<(), Error> {
    METER.with_borrow(|held| match held {
        Some(meter) if Instant::now() > meter.until => {
            Err(refused(format!("it takes longer than {} s", MAX_RENDER_TIME.as_secs())))
        }
        _ => Ok(()),
    })
}

/// Fails if `bytes` more are too many; takes none.
pub(crate) fn room(bytes: u64) -> Result<(), Error> {
    if bytes > left() { Err(too_much()) } else { tick() }
}

/// Takes `bytes`.
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

/// What may still be produced.
pub(crate) fn left() -> u64 {
    METER.with_borrow(|held| held.map_or(MAX_WORK_BYTES, |meter| meter.bytes))
}

fn too_much() -> Error {
    refused("it makes far more text than it is given".into())
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// What is printed, up to a bound.
#[derive(Debug)]
pub(crate) struct Printed {
    bytes: Vec<u8>,
    most: u64,
}

impl Printed {
    pub(crate) const fn new(most: u64) -> Self {
        Self { bytes: Vec::new(), most }
    }

    /// Whether the bound was met.
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

/// The sentence for a rendering that prints too much.
pub(crate) fn prints_too_much(allowance: Allowance, input_bytes: usize) -> String {
    format!("it prints more than {} bytes for {input_bytes} bytes of messages and tools", allowance.output)
}

/// A string that is built within the meter: what is written to it is charged.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) text: String,
    failed: Option<Error>,
}

impl Built {
    /// The text, or why it could not be built.
    pub(crate) fn finish(self, written: std::fmt::Result) -> Result<String, Error> {
        self.finish_with(written.map_err(Error::from))
    }

    /// As [`Self::finish`], where the writer has errors of its own.
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
