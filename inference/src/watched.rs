//! One request to an adapter version, as its traffic counts it: once, when it has ended or the caller stops reading.

use std::{sync::Arc, time::Duration};

use attune_domain::serve::{AdapterTier, GenerateEvent};
use attune_store::adapters::adapter_traffic::{Traffic, TrafficKey};
use tokio::time::Instant;

use crate::{error::InferenceError, traffic::TrafficMeter};

/// A request that is being answered.
pub(crate) struct Watched {
    meter: Arc<TrafficMeter>,
    key: TrafficKey,
    /// The time at which the request was sent to a replica; `None`: none was ready yet.
    asked: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// In a box: its distributions would make every future that holds a request larger.
    traffic: Box<Traffic>,
    /// `false`: the request itself or a lack of capacity is the reason why it failed.
    is_counted: bool,
}

impl Watched {
    pub(crate) fn new(meter: Arc<TrafficMeter>, key: TrafficKey) -> Self {
        let traffic = Box::new(Traffic { requests: 1, ..Traffic::default() });
        Self { meter, key, asked: None, first: None, last: None, traffic, is_counted: true }
    }

    /// Begins to measure: the request is sent to a replica now.
    pub(crate) fn ask(&mut self) {
        self.asked = Some(Instant::now());
    }

    /// Notes an event of the answer, or the error that ends it.
    pub(crate) fn see(&mut self, next: &Result<GenerateEvent, InferenceError>) {
        match next {
            Ok(event) => self.see_event(event),
            Err(error) => self.fail(error),
        }
    }

    fn see_event(&mut self, event: &GenerateEvent) {
        match event {
            GenerateEvent::Started { prompt_tokens, tier, queued_ms, .. } => {
                self.traffic.input_tokens = *prompt_tokens;
                if let Some(queued_ms) = queued_ms {
                    self.traffic.queued.record(Duration::from_millis(*queued_ms));
                }
                match tier {
                    Some(AdapterTier::Memory) => self.traffic.from_memory = 1,
                    Some(AdapterTier::Disk) => self.traffic.from_disk = 1,
                    Some(AdapterTier::Store) => self.traffic.from_store = 1,
                    None => {}
                }
            }
            GenerateEvent::Done { completion_tokens } => {
                self.traffic.output_tokens = *completion_tokens;
                self.last = Some(Instant::now());
            }
            GenerateEvent::Piece { .. } | GenerateEvent::ToolCallStart { .. } | GenerateEvent::Arguments { .. } => {
                self.traffic.output_tokens += 1;
                self.first.get_or_insert_with(Instant::now);
            }
            GenerateEvent::Finished { .. } | GenerateEvent::Failed { .. } => {}
        }
    }

    /// Notes the error that ends the request.
    pub(crate) fn fail(&mut self, error: &InferenceError) {
        match error {
            InferenceError::ReplicaUnavailable { .. }
            | InferenceError::NotReady { .. }
            | InferenceError::Internal(_) => self.traffic.errors = 1,
            InferenceError::Invalid { .. }
            | InferenceError::ModelNotFound(_)
            | InferenceError::StorageRefused { .. }
            | InferenceError::Busy { .. }
            | InferenceError::TooManyAnswers { .. } => self.is_counted = false,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A request that was sent to no replica shows nothing of its version: a cold start that takes too long is not
        // its error.
        let Some(asked) = self.asked.filter(|_| self.is_counted) else { return };
        if let Some(first) = self.first {
            self.traffic.first_token.record(first - asked);
            if let (Some(last), Some(rest)) = (self.last, self.traffic.output_tokens.checked_sub(1).filter(|n| *n > 0))
            {
                self.traffic.per_token.record((last - first) / u32::try_from(rest).unwrap_or(u32::MAX));
            }
        }
        self.meter.count(self.key, &self.traffic);
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::id::{AdapterVersionId, ProjectId};
    use uuid::Uuid;

    use super::*;

    fn counted(end: impl FnOnce(&mut Watched)) -> Option<Traffic> {
        let meter = Arc::new(TrafficMeter::default());
        let key = TrafficKey {
            adapter_version_id: AdapterVersionId::new(Uuid::from_u128(1)),
            adapter_canary_id: None,
            project_id: ProjectId::new(Uuid::from_u128(2)),
        };
        let mut watched = Watched::new(meter.clone(), key);
        end(&mut watched);
        drop(watched);
        meter.counted(key)
    }

    fn late() -> InferenceError {
        InferenceError::NotReady { message: "late".into(), retry_after_seconds: 10 }
    }

    #[test]
    fn a_cold_start_that_takes_too_long_is_no_error_of_the_version() {
        let unavailable = || InferenceError::ReplicaUnavailable { message: "ended".into(), retry_after_seconds: 10 };
        assert!(counted(|watched| watched.fail(&late())).is_none());
        assert!(counted(|watched| watched.fail(&unavailable())).is_none(), "the replica could not be started");
        assert!(counted(|_| {}).is_none(), "the caller disconnected during the cold start");
        // A version that ends its replica has caused the wait that follows.
        for error in [late(), unavailable()] {
            let traffic = counted(|watched| {
                watched.ask();
                watched.fail(&error);
            });
            assert_eq!(traffic.map(|traffic| (traffic.requests, traffic.errors)), Some((1, 1)), "{error}");
        }
    }

    #[test]
    fn a_queue_time_that_is_not_measured_is_not_counted() {
        for (queued_ms, count) in [(None, 0), (Some(3), 1)] {
            let traffic = counted(|watched| {
                watched.ask();
                let (echo, adapter, tier) = (None, None, None);
                let started =
                    GenerateEvent::Started { prompt_tokens: 5, cached_tokens: 0, echo, adapter, tier, queued_ms };
                watched.see(&Ok(started));
            });
            assert_eq!(traffic.map(|traffic| traffic.queued.count()), Some(count));
        }
    }
}
