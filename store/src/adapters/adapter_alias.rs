//! Aliases: names of an adapter that move from version to version, `house@prod`. A move updates one row, so the next
//! request uses the new version. The row keeps the version before, to which a rollback moves. Each move is recorded.
//!
//! While a canary of the alias runs ([`crate::adapters::adapter_canary`]), only its promotion moves the alias.

use attune_domain::{
    event::EventType,
    id::{AdapterAliasMove as MoveKind, AdapterAliasMoveId, AdapterId, AdapterVersionId, ProjectId},
};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    adapters::adapter::{self, AdapterVersion},
    error::StoreError,
    ids,
    webhooks::outbox,
};

/// An alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The alias's name: `prod`.
    pub alias: String,
    /// The ID of the version that it names.
    pub adapter_version_id: AdapterVersionId,
    /// The number of that version.
    pub version: i32,
    /// The model name of that version.
    pub model_name: String,
    /// The ID of the version that a rollback moves it to; `None`: there is none.
    pub previous: Option<AdapterVersionId>,
    /// The time of the last move.
    pub moved_at: DateTime<Utc>,
}

/// A move of an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The move's ID.
    pub adapter_alias_move_id: AdapterAliasMoveId,
    /// The version that it named before; `None`: the alias did not exist.
    pub from: Option<AdapterVersionId>,
    /// The version that it names since; `None`: the alias was deleted.
    pub to: Option<AdapterVersionId>,
    /// The time of the move.
    pub moved_at: DateTime<Utc>,
}

/// The outcome of a request to move an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The alias names the version now.
    Moved,
    /// The alias already named the version; nothing changed.
    Same,
    /// The alias names another version than expected: this one; nothing changed.
    Differs(Option<AdapterVersionId>),
    /// A canary runs with this version; nothing changed.
    Canary(AdapterVersionId),
}

/// The outcome of a request to roll an alias back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollback {
    /// The alias names the version before its last move.
    Moved,
    /// The alias has no earlier version: it was created or rolled back last, or the version was deleted.
    Nothing,
    /// A canary runs with this version; nothing changed.
    Canary(AdapterVersionId),
}

/// Returns the ID of the adapter with this name, locked until the transaction ends.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn lock(tx: &mut PgConnection, project: ProjectId, adapter: &str) -> Result<AdapterId, StoreError> {
    let id = sqlx::query_scalar!(
        "select adapter_id from adapter where project_id = $1 and name = $2 for update",
        project.uuid(),
        adapter,
    )
    .fetch_optional(tx)
    .await?;
    id.map(AdapterId::new).ok_or(StoreError::NotFound("adapter"))
}

/// Moves an alias of a locked adapter to one of its versions, which is locked too, if it names what is `expected`;
/// `None`: unconditionally.
///
/// # Errors
/// [`StoreError::Database`], also when `alias` is not a valid name.
pub async fn set(
    tx: &mut PgConnection,
    project: ProjectId,
    alias: &str,
    to: &AdapterVersion,
    expected: Option<Option<AdapterVersionId>>,
) -> Result<Outcome, StoreError> {
    let current = target(tx, to.adapter_id, alias).await?;
    if expected.is_some_and(|expected| expected != current) {
        return Ok(Outcome::Differs(current));
    }
    if current == Some(to.adapter_version_id) {
        return Ok(Outcome::Same);
    }
    if let Some(canary) = running_canary(tx, to.adapter_id, alias).await? {
        return Ok(Outcome::Canary(canary));
    }
    move_to(tx, project, alias, to, (current, current)).await?;
    Ok(Outcome::Moved)
}

/// Moves an alias of a locked adapter back to the version that it named before its last move.
///
/// # Errors
/// [`StoreError::NotFound`]: no alias has this name.
pub async fn roll_back(
    tx: &mut PgConnection,
    project: ProjectId,
    adapter: AdapterId,
    alias: &str,
) -> Result<Rollback, StoreError> {
    let row = sqlx::query!(
        "select adapter_version_id, previous_version_id from adapter_alias where adapter_id = $1 and alias = $2",
        adapter.uuid(),
        alias,
    )
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(StoreError::NotFound("alias"))?;
    if let Some(canary) = running_canary(tx, adapter, alias).await? {
        return Ok(Rollback::Canary(canary));
    }
    let Some(previous) = row.previous_version_id.map(AdapterVersionId::new) else { return Ok(Rollback::Nothing) };
    match adapter::lock(tx, project, &previous.to_string()).await {
        Ok(to) => {
            // Without an earlier version, so that a repeated rollback does not revert this one.
            let current = Some(AdapterVersionId::new(row.adapter_version_id));
            move_to(tx, project, alias, &to, (current, None)).await?;
            Ok(Rollback::Moved)
        }
        Err(StoreError::NotFound(_)) => Ok(Rollback::Nothing),
        Err(error) => Err(error),
    }
}

/// Moves an alias of a locked adapter from its `current` version to a locked one, and keeps `previous` for a rollback.
pub(crate) async fn move_to(
    tx: &mut PgConnection,
    project: ProjectId,
    alias: &str,
    to: &AdapterVersion,
    (current, previous): (Option<AdapterVersionId>, Option<AdapterVersionId>),
) -> Result<(), StoreError> {
    let (adapter, wanted) = (to.adapter_id, to.adapter_version_id);
    sqlx::query!(
        "insert into adapter_alias (project_id, adapter_id, alias, adapter_version_id) values ($1, $2, $3, $4)
         on conflict (adapter_id, alias) do update set adapter_version_id = excluded.adapter_version_id,
             previous_version_id = $5, moved_at = now()",
        project.uuid(),
        adapter.uuid(),
        alias,
        wanted.uuid(),
        previous.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    write_down(tx, project, adapter, alias, (current, Some(wanted))).await?;
    let told =
        json!({ "id": format!("{}@{alias}", to.adapter), "from": current, "to": wanted, "model": to.model_name });
    outbox::push(tx, project, EventType::AliasMoved, &told).await?;
    Ok(())
}

/// Writes the row of an alias without a change, so that its version changes with its canary and its shadow.
pub(crate) async fn touch(tx: &mut PgConnection, adapter: AdapterId, alias: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update adapter_alias set moved_at = moved_at where adapter_id = $1 and alias = $2",
        adapter.uuid(),
        alias,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the version of the canary that runs on an alias.
async fn running_canary(
    tx: &mut PgConnection,
    adapter: AdapterId,
    alias: &str,
) -> Result<Option<AdapterVersionId>, StoreError> {
    let id = sqlx::query_scalar!(
        "select adapter_version_id from adapter_canary where adapter_id = $1 and alias = $2 and state = 'running'",
        adapter.uuid(),
        alias,
    )
    .fetch_optional(tx)
    .await?;
    Ok(id.map(AdapterVersionId::new))
}

/// Deletes an alias of a locked adapter, and ends its canary and its shadow.
///
/// # Errors
/// [`StoreError::NotFound`]: no alias has this name.
pub async fn remove(
    tx: &mut PgConnection,
    project: ProjectId,
    adapter: AdapterId,
    alias: &str,
) -> Result<(), StoreError> {
    let current = target(tx, adapter, alias).await?.ok_or(StoreError::NotFound("alias"))?;
    sqlx::query!(
        "update adapter_canary set state = 'aborted', reason = 'The alias was deleted.', ended_at = now()
         where adapter_id = $1 and alias = $2 and state = 'running'",
        adapter.uuid(),
        alias,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "update adapter_shadow set ended_at = now() where adapter_id = $1 and alias = $2 and ended_at is null",
        adapter.uuid(),
        alias,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("delete from adapter_alias where adapter_id = $1 and alias = $2", adapter.uuid(), alias)
        .execute(&mut *tx)
        .await?;
    write_down(tx, project, adapter, alias, (Some(current), None)).await
}

/// Returns the version that an alias names; `None`: there is no such alias.
pub(crate) async fn target(
    tx: &mut PgConnection,
    adapter: AdapterId,
    alias: &str,
) -> Result<Option<AdapterVersionId>, StoreError> {
    let id = sqlx::query_scalar!(
        "select adapter_version_id from adapter_alias where adapter_id = $1 and alias = $2",
        adapter.uuid(),
        alias,
    )
    .fetch_optional(tx)
    .await?;
    Ok(id.map(AdapterVersionId::new))
}

async fn write_down(
    tx: &mut PgConnection,
    project: ProjectId,
    adapter: AdapterId,
    alias: &str,
    (from, to): (Option<AdapterVersionId>, Option<AdapterVersionId>),
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into adapter_alias_move (adapter_alias_move_id, project_id, adapter_id, alias, from_version_id,
             to_version_id)
         values ($1, $2, $3, $4, $5, $6)",
        ids::id::<MoveKind>().uuid(),
        project.uuid(),
        adapter.uuid(),
        alias,
        from.map(|id| id.uuid()),
        to.map(|id| id.uuid()),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Returns the aliases of an adapter by name; only the one with this name, if one is given.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: Option<&str>,
) -> Result<Vec<Alias>, StoreError> {
    let rows = sqlx::query!(
        "select s.alias, s.adapter_version_id, v.version, v.model_name, s.moved_at,
             case when p.deleted_at is null then s.previous_version_id end as previous
         from adapter_alias s join adapter_version v using (adapter_version_id)
             join adapter l on l.adapter_id = s.adapter_id
             left join adapter_version p on p.adapter_version_id = s.previous_version_id
         where l.project_id = $1 and l.name = $2 and ($3::text is null or s.alias = $3) order by s.alias",
        project.uuid(),
        adapter,
        alias,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Alias {
            alias: row.alias,
            adapter_version_id: AdapterVersionId::new(row.adapter_version_id),
            version: row.version,
            model_name: row.model_name,
            previous: row.previous.map(AdapterVersionId::new),
            moved_at: row.moved_at,
        })
        .collect())
}

/// Returns the moves of an alias, newest first: at most `limit` after `after`. A deleted alias keeps its moves.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn history(
    db: &mut PgConnection,
    project: ProjectId,
    (adapter, alias): (&str, &str),
    after: Option<AdapterAliasMoveId>,
    limit: i64,
) -> Result<Vec<Move>, StoreError> {
    let rows = sqlx::query!(
        "select m.adapter_alias_move_id, m.from_version_id, m.to_version_id, m.moved_at
         from adapter_alias_move m join adapter l using (adapter_id)
         where l.project_id = $1 and l.name = $2 and m.alias = $3
             and ($4::uuid is null or m.adapter_alias_move_id < $4)
         order by m.adapter_alias_move_id desc limit $5",
        project.uuid(),
        adapter,
        alias,
        after.map(|id| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Move {
            adapter_alias_move_id: AdapterAliasMoveId::new(row.adapter_alias_move_id),
            from: row.from_version_id.map(AdapterVersionId::new),
            to: row.to_version_id.map(AdapterVersionId::new),
            moved_at: row.moved_at,
        })
        .collect())
}
