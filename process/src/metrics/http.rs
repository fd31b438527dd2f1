//! Metrics of the HTTP servers.

use super::metric::metrics;

/// The bounds of the times of requests, from 1 ms to 30 s.
pub(crate) const REQUEST_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

metrics! {
    /// Requests with a response, or that the caller cancelled.
    HTTP_REQUESTS: Counter = "attune_http_requests_total" ["method", "route", "status"];
    /// Time from the request's headers to the response's.
    HTTP_REQUEST_SECONDS: Histogram = "attune_http_request_seconds" ["method", "route"] in REQUEST_SECONDS;
    /// Requests without a response yet.
    HTTP_IN_FLIGHT: Gauge = "attune_http_requests_in_flight" [];
    /// Requests refused with 429, by the limit.
    HTTP_RATE_LIMITED: Counter = "attune_http_rate_limited_total" ["limit"];
}
