//! The rows of a file while its content streams, until the reader has enough or its result is no longer needed.

use std::{
    cell::Cell,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use attune_domain::dataset::{Row, RowChecker};
use bytes::Bytes;

/// The signal that the work's result is no longer needed.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Sends the signal.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether no request waits for the result any more.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Calls `each` with each row and its line, until `each` breaks, `stop` is set or the file ends. The file was checked
/// when it was uploaded, so defects are ignored.
pub fn each_row(
    chunks: impl IntoIterator<Item = Bytes>,
    stop: &Stop,
    mut each: impl FnMut(u64, &Row) -> ControlFlow<()>,
) {
    let done = Cell::new(false);
    let take = &mut |line, row: Row| {
        if !done.get() {
            done.set(stop.is_set() || each(line, &row).is_break());
        }
    };
    let mut checker = RowChecker::new();
    for chunk in chunks {
        checker.push_with(&chunk, take);
        if done.get() || stop.is_set() {
            return;
        }
    }
    let _ = checker.finish_with(take);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\"}";

    /// Returns the lines that are passed on until line `last`, and the number of chunks that are taken.
    fn read(stop: &Stop, last: u64) -> (Vec<u64>, usize) {
        let (mut lines, mut taken) = (Vec::new(), 0);
        let chunks = FILE.as_bytes().chunks(7).map(Bytes::copy_from_slice).inspect(|_| taken += 1);
        each_row(chunks, stop, |line, _| {
            lines.push(line);
            if line == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (lines, taken)
    }

    #[test]
    fn all_rows_are_passed_on_with_the_last_line_that_has_no_end() {
        assert_eq!(read(&Stop::default(), 9), (vec![1, 2, 3], 6));
    }

    #[test]
    fn a_reader_that_has_enough_takes_no_further_chunk() {
        // The first row's newline is the 14th byte.
        assert_eq!(read(&Stop::default(), 1), (vec![1], 2));
    }

    #[test]
    fn a_result_that_nothing_waits_for_is_not_computed() {
        let stop = Stop::default();
        assert!(!stop.is_set());
        stop.clone().set();
        assert_eq!(read(&stop, 9), (vec![], 1));
    }
}
