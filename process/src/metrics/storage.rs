//! Metrics of the database and of the object store.

use super::{http::REQUEST_SECONDS, metric::metrics};

metrics! {
    /// Connections of the pool.
    DB_CONNECTIONS: Gauge = "attune_db_connections" ["state"];
    /// The size limit of the pool.
    DB_CONNECTIONS_MAX: Gauge = "attune_db_connections_max" [];
    /// Time until a connection of the pool was available, or not.
    DB_WAIT_SECONDS: Histogram = "attune_db_wait_seconds" ["outcome"] in REQUEST_SECONDS;
    /// Requests to the object store.
    OBJECT_REQUESTS: Counter = "attune_object_requests_total" ["operation", "outcome"];
    /// Time until the object store's response.
    OBJECT_REQUEST_SECONDS: Histogram = "attune_object_request_seconds" ["operation"] in REQUEST_SECONDS;
}
