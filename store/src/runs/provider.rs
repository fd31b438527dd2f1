//! The configured providers, as last published by the scheduler, and the reason of each that did not answer.

use sqlx::PgConnection;

use crate::error::StoreError;

/// Seconds after which a provider that was not published again counts as gone.
const STALE_SECONDS: f64 = 180.0;

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderState {
    /// The provider's name.
    pub name: String,
    /// The human-readable reason why it did not answer; `None`: it did.
    pub unreachable: Option<String>,
}

/// Publishes all configured providers; others are deleted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn publish(tx: &mut PgConnection, all: &[ProviderState]) -> Result<(), StoreError> {
    let names: Vec<String> = all.iter().map(|provider| provider.name.clone()).collect();
    let reasons: Vec<Option<String>> = all.iter().map(|provider| provider.unreachable.clone()).collect();
    sqlx::query!("delete from provider where name <> all($1)", &names).execute(&mut *tx).await?;
    sqlx::query!(
        "insert into provider (name, unreachable) select * from unnest($1::text[], $2::text[])
         on conflict (name) do update set unreachable = excluded.unreachable, seen_at = now()",
        &names,
        &reasons as &[Option<String>],
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the first `most` current providers, by name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(conn: &mut PgConnection, most: i64) -> Result<Vec<ProviderState>, StoreError> {
    let providers = sqlx::query_as!(
        ProviderState,
        "select name, unreachable from provider where seen_at > now() - make_interval(secs => $1)
         order by name limit $2",
        STALE_SECONDS,
        most,
    )
    .fetch_all(conn)
    .await?;
    Ok(providers)
}
