//! The log on standard error. No thread waits for the log's reader: lines go through a bounded queue to a thread that
//! writes them, and are dropped while the queue is full. If the reader is gone or the disk is full, only lines are
//! lost. The same spans and events are exported as traces if that is configured ([`crate::telemetry`]).

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Display,
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    panic::PanicHookInfo,
    str::FromStr,
};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{error_chain::chain, telemetry::Traces};

/// The maximum number of lines that wait for a slow reader; more are dropped.
pub const QUEUED_LOG_LINES: usize = 8192;

/// A guard that keeps the log's thread alive. Drop it last, at the end of `main`: the thread then has a second to write
/// the queued lines.
#[derive(Debug)]
#[must_use = "the log ends with it"]
pub struct Log {
    // Dropped first, since the last export may log.
    _traces: Option<Traces>,
    _thread: WorkerGuard,
}

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object, with the fields of the event and of its spans.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{name}` is neither text nor json. Use text or json.")),
        }
    }
}

/// A writer that never blocks. Each call of `write` is one line of the queue.
#[derive(Debug, Clone)]
pub struct LossyWriter(NonBlocking);

impl Write for LossyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a thread that writes to `sink`.
pub fn lossy(sink: impl Write + Send + 'static) -> (LossyWriter, Log) {
    let (writer, thread) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LOG_LINES)
        .thread_name("log")
        .finish(Unfailing(sink));
    (LossyWriter(writer), Log { _traces: None, _thread: thread })
}

/// Starts the thread for standard error, like [`lossy`]. It has a descriptor of its own: while it waits for a reader,
/// it does not hold the lock of [`io::stderr`].
pub fn lossy_stderr() -> (LossyWriter, Log) {
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(own) => lossy(File::from(own)),
        Err(_) => lossy(io::stderr()),
    }
}

/// Logs what `filter` allows, and every panic's message, to standard error, and starts the export of `program`'s
/// traces. Call it once, early in `main`, and keep the returned guard.
pub fn start(program: &'static str, filter: EnvFilter, format: Format) -> Log {
    let (writer, mut log) = lossy_stderr();
    let lines = fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false)
        .with_writer(move || writer.clone());
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().boxed(),
    };
    let traces = Traces::open(program);
    let spans = traces.as_ref().ok().and_then(|traces| traces.as_ref().map(Traces::layer));
    tracing_subscriber::registry().with(filter).with(lines).with(spans).init();
    on_panic(|message| tracing::error!("{message}"));
    match traces {
        Ok(traces) => log._traces = traces,
        Err(error) => tracing::error!(error = chain(error.as_ref()), "no traces are exported"),
    }
    log
}

/// Passes every panic's location and message to the callback, which must not block, instead of writing to standard
/// error.
pub fn on_panic(tell: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| tell(&described(panic))));
}

/// Returns a panic's location and message on one line, followed by a backtrace if `RUST_BACKTRACE` enables it.
fn described(panic: &PanicHookInfo<'_>) -> String {
    let trace = Backtrace::capture();
    let trace: &dyn Display = if trace.status() == BacktraceStatus::Captured { &trace } else { &"" };
    let thread = std::thread::current();
    format!("thread '{}' {}{trace}", thread.name().unwrap_or("unnamed"), panic.to_string().replace('\n', " "))
}

/// A sink that ignores errors: they cannot be reported anywhere.
struct Unfailing<W>(W);

impl<W: Write> Write for Unfailing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        time::{Duration, Instant},
    };

    use super::*;

    /// A sink that blocks until it is allowed to write, like a pipe whose reader has stalled.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn limit_a_log_whose_reader_stalls_drops_lines_and_delays_no_process() {
        let (release, held) = mpsc::channel();
        let (mut writer, log) = lossy(Stuck(held));
        let began = Instant::now();
        for _ in 0..2 * QUEUED_LOG_LINES {
            assert!(writer.write(b"a line\n").is_ok());
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(writer.0.error_counter().dropped_lines() >= QUEUED_LOG_LINES / 2);
        drop(release);
        drop(log);
    }

    #[test]
    fn a_format_is_named_or_refused() {
        assert_eq!(("text".parse(), "json".parse()), (Ok(Format::Text), Ok(Format::Json)));
        let refused = "JSON".parse::<Format>().unwrap_err();
        assert_eq!(refused, "`JSON` is neither text nor json. Use text or json.");
    }

    #[test]
    fn attack_a27_a_log_without_a_reader_fails_nowhere() {
        let (mut writer, log) = lossy(Gone);
        for _ in 0..10 {
            assert!(writeln!(writer, "a line").is_ok());
        }
        drop(log);
    }
}
