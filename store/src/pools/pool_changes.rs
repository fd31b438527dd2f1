//! Notifications of changed replicas.

use sqlx::{PgPool, postgres::PgListener};

use crate::error::StoreError;

/// The channel that the trigger of `replica` notifies.
const CHANNEL: &str = "attune_replica";

/// Calls `changed` now, and whenever a replica has a new state or notifications may have been lost. Returns when the
/// connection, which is one of its own, cannot be established.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn listen(pool: &PgPool, changed: impl Fn() + Send) -> Result<(), StoreError> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        changed();
        // `None`: the connection was lost, and is established again.
        listener.try_recv().await?;
    }
}
