//! The size of answers that are collected in memory, and its limit.

use attune_domain::serve::GenerateEvent;

/// The maximum size in memory of the answers to one request that are collected, in bytes; streams that collect nothing
/// have no such limit.
pub(crate) const WHOLE_BYTES: usize = 64 << 20;

/// The size of the answers to one request that are collected, and its limit.
#[derive(Debug)]
pub(crate) struct Collected {
    bytes: usize,
    most: usize,
}

impl Collected {
    /// Creates the count of one of `requests` requests, which share [`WHOLE_BYTES`].
    pub(crate) fn one_of(requests: usize) -> Self {
        Self { bytes: 0, most: WHOLE_BYTES / requests.max(1) }
    }

    /// Counts an event. Returns whether everything that is collected still fits.
    pub(crate) fn fits(&mut self, event: &GenerateEvent) -> bool {
        self.bytes += bytes_of(event);
        self.bytes <= self.most
    }
}

/// Returns the approximate size of an event in memory, in bytes.
fn bytes_of(event: &GenerateEvent) -> usize {
    match event {
        GenerateEvent::Piece { text, tokens, .. } => {
            // The text of a token is an allocation of its own, and so is that of each of its top alternatives.
            text.len() + tokens.iter().map(|token| 96 + 64 * token.top.len()).sum::<usize>()
        }
        GenerateEvent::Arguments { text, .. } => text.len(),
        GenerateEvent::ToolCallStart { name, .. } => 128 + name.len(),
        GenerateEvent::Started { .. }
        | GenerateEvent::Finished { .. }
        | GenerateEvent::Done { .. }
        | GenerateEvent::Failed { .. } => 0,
    }
}
