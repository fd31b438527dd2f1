//! The catalogue of instance types: the data of this version, with the changes of the installation's administrators.

use std::collections::HashMap;

use attune_domain::catalogue::{Catalogue, EntryId, InstanceType, built_in};
use serde_json::Value;
use sqlx::PgConnection;

use crate::error::{StoreError, json, to_json};

/// The noun of an entry in errors.
const NOUN: &str = "catalogue entry";

/// Returns the catalogue, ordered by ID.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn load(conn: &mut PgConnection) -> Result<Catalogue, StoreError> {
    let rows = sqlx::query!("select name, entry, deleted_at is not null as \"is_removed!\" from catalogue_entry")
        .fetch_all(conn)
        .await?;
    let mut changes = HashMap::with_capacity(rows.len());
    for row in rows {
        changes.insert(row.name, if row.is_removed { None } else { Some(read(row.entry)?) });
    }
    let unchanged = built_in().instances.iter().filter(|entry| !changes.contains_key(&entry.id().to_string())).cloned();
    let mut instances: Vec<InstanceType> = unchanged.collect();
    instances.extend(changes.into_values().flatten());
    instances.sort_by_key(|entry| entry.id().to_string());
    Ok(Catalogue { gpus: built_in().gpus.clone(), instances })
}

/// Returns the version of the administrators' changes: it differs after each one.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn version(conn: &mut PgConnection) -> Result<String, StoreError> {
    // `xmin`, not the time: a transaction that commits later may have begun, and set its time, earlier.
    let version = sqlx::query_scalar!(
        r#"select coalesce(md5(string_agg(name || ' ' || xmin::text, ',' order by name)), '') as "version!"
         from catalogue_entry"#,
    )
    .fetch_one(conn)
    .await?;
    Ok(version)
}

/// Returns one entry.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn get(conn: &mut PgConnection, id: &EntryId) -> Result<InstanceType, StoreError> {
    let row = sqlx::query!(
        "select entry, deleted_at is not null as \"is_removed!\" from catalogue_entry where name = $1",
        id.to_string(),
    )
    .fetch_optional(conn)
    .await?;
    match row {
        Some(row) if row.is_removed => Err(StoreError::NotFound(NOUN)),
        Some(row) => read(row.entry),
        None => built_in().instance(id).cloned().ok_or(StoreError::NotFound(NOUN)),
    }
}

/// Locks an entry, whether it exists or not, until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock(tx: &mut PgConnection, id: &EntryId) -> Result<(), StoreError> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('attune: catalogue ' || $1::text, 0))", id.to_string())
        .fetch_one(tx)
        .await?;
    Ok(())
}

/// Adds or replaces an entry, which the caller has checked. The transaction must have the rights of an administrator of
/// the installation ([`crate::db::as_installation`]).
///
/// # Errors
/// [`StoreError::Database`].
pub async fn set(tx: &mut PgConnection, entry: &InstanceType) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into catalogue_entry (name, entry) values ($1, $2)
         on conflict (name) do update set entry = excluded.entry, changed_at = now(), deleted_at = null",
        entry.id().to_string(),
        to_json("catalogue_entry.entry", entry)?,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes an entry. The transaction must have the rights of an administrator of the installation.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn remove(tx: &mut PgConnection, id: &EntryId) -> Result<(), StoreError> {
    let entry = to_json("catalogue_entry.entry", &get(tx, id).await?)?;
    // The audit log has the end of an entry that was changed before, and else its row and its end.
    sqlx::query!(
        "insert into catalogue_entry (name, entry) values ($1, $2) on conflict (name) do nothing",
        id.to_string(),
        entry,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("update catalogue_entry set deleted_at = now() where name = $1", id.to_string()).execute(tx).await?;
    Ok(())
}

fn read(entry: Value) -> Result<InstanceType, StoreError> {
    json("catalogue_entry.entry", entry)
}
