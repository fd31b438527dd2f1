//! Metrics of requests to the object store.

use std::time::Instant;

use attune_process::metrics::{OBJECT_REQUEST_SECONDS, OBJECT_REQUESTS};
use aws_sdk_s3::error::SdkError;

/// A request in progress.
#[derive(Debug)]
pub(super) struct Timing {
    operation: &'static str,
    began: Instant,
}

impl Timing {
    /// Starts the measurement of a request.
    pub(super) fn of(operation: &'static str) -> Self {
        Self { operation, began: Instant::now() }
    }

    /// Counts the request.
    pub(super) fn end<T, E>(self, response: &Result<T, SdkError<E>>) {
        let outcome = match response {
            Ok(_) => "ok",
            Err(error) => match error.raw_response().map(|response| response.status().as_u16()) {
                Some(404) => "missing",
                Some(_) => "refused",
                None => "failed",
            },
        };
        OBJECT_REQUESTS.inc([self.operation, outcome]);
        OBJECT_REQUEST_SECONDS.observe([self.operation], self.began.elapsed().as_secs_f64());
    }
}
