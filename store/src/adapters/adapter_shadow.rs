//! Shadows of aliases: a version answers copies of a share of an alias's requests, after their answers were sent. Only
//! counts are kept, no content.

use attune_domain::id::{AdapterId, AdapterShadow as ShadowKind, AdapterShadowId, AdapterVersionId, ProjectId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    adapters::{adapter::AdapterVersion, adapter_alias},
    error::StoreError,
    ids,
};

/// A shadow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// The shadow's ID.
    pub adapter_shadow_id: AdapterShadowId,
    /// The alias's name: `prod`.
    pub alias: String,
    /// The ID of the version that answers copies.
    pub adapter_version_id: AdapterVersionId,
    /// The number of that version.
    pub version: i32,
    /// The model name of that version.
    pub model_name: String,
    /// The share of the requests, in percent.
    pub percent: u8,
    /// The counts so far.
    pub counts: Comparisons,
    /// The start.
    pub started_at: DateTime<Utc>,
    /// The end; `None` while it is active.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Counts of compared answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Comparisons {
    /// The number of copies that were answered.
    pub compared: u64,
    /// The number of those with the same answers.
    pub equal: u64,
    /// The number of copies that failed.
    pub errors: u64,
    /// The number of copies that were not sent.
    pub skipped: u64,
    /// The tokens that were generated for the compared requests.
    pub answered_tokens: u64,
    /// The tokens that were generated for their copies.
    pub shadow_tokens: u64,
    /// The tokens of the copies' prompts.
    pub input_tokens: u64,
}

impl Comparisons {
    /// Adds other counts.
    pub const fn add(&mut self, other: &Self) {
        self.compared += other.compared;
        self.equal += other.equal;
        self.errors += other.errors;
        self.skipped += other.skipped;
        self.answered_tokens += other.answered_tokens;
        self.shadow_tokens += other.shadow_tokens;
        self.input_tokens += other.input_tokens;
    }
}

/// Starts a shadow of an alias, in place of the present one; both the adapter and the version are locked.
///
/// # Errors
/// [`StoreError::NotFound`]: there is no such alias.
pub async fn start(
    tx: &mut PgConnection,
    project: ProjectId,
    alias: &str,
    to: &AdapterVersion,
    percent: u8,
) -> Result<(), StoreError> {
    let adapter = to.adapter_id;
    adapter_alias::target(tx, adapter, alias).await?.ok_or(StoreError::NotFound("alias"))?;
    stop(tx, adapter, alias).await?;
    sqlx::query!(
        "insert into adapter_shadow (adapter_shadow_id, project_id, adapter_id, alias, adapter_version_id, percent)
         values ($1, $2, $3, $4, $5, $6)",
        ids::id::<ShadowKind>().uuid(),
        project.uuid(),
        adapter.uuid(),
        alias,
        to.adapter_version_id.uuid(),
        i16::from(percent),
    )
    .execute(&mut *tx)
    .await?;
    adapter_alias::touch(tx, adapter, alias).await
}

/// Ends the shadow of an alias of a locked adapter. Returns `false` if none is active.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn stop(tx: &mut PgConnection, adapter: AdapterId, alias: &str) -> Result<bool, StoreError> {
    let ended = sqlx::query!(
        "update adapter_shadow set ended_at = now() where adapter_id = $1 and alias = $2 and ended_at is null",
        adapter.uuid(),
        alias,
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    adapter_alias::touch(tx, adapter, alias).await?;
    Ok(ended > 0)
}

/// Adds counts to shadows, also to those that have ended. `rows` are sorted by the ID, so that two processes do not
/// wait for each other in a circle.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn add(tx: &mut PgConnection, rows: &[(AdapterShadowId, Comparisons)]) -> Result<(), StoreError> {
    for (id, counts) in rows {
        sqlx::query!(
            "update adapter_shadow set compared = compared + $2, equal = equal + $3, errors = errors + $4,
                 skipped = skipped + $5, answered_tokens = answered_tokens + $6, shadow_tokens = shadow_tokens + $7,
                 input_tokens = input_tokens + $8
             where adapter_shadow_id = $1",
            id.uuid(),
            counts.compared as i64,
            counts.equal as i64,
            counts.errors as i64,
            counts.skipped as i64,
            counts.answered_tokens as i64,
            counts.shadow_tokens as i64,
            counts.input_tokens as i64,
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Returns the last shadow of each alias of an adapter, active or ended; only of the alias with this name, if one is
/// given.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn last(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: Option<&str>,
) -> Result<Vec<Shadow>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select distinct on (h.alias) h.adapter_shadow_id, h.alias, h.adapter_version_id, v.version, v.model_name,
             h.percent, h.compared, h.equal, h.errors, h.skipped, h.answered_tokens, h.shadow_tokens, h.input_tokens,
             h.started_at, h.ended_at
         from adapter_shadow h join adapter_version v using (adapter_version_id)
             join adapter l on l.adapter_id = h.adapter_id
         where l.project_id = $1 and l.name = $2 and ($3::text is null or h.alias = $3)
         order by h.alias, h.adapter_shadow_id desc",
        project.uuid(),
        adapter,
        alias,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Shadow::from).collect())
}

/// The row as SQL returns it.
struct Row {
    adapter_shadow_id: Uuid,
    alias: String,
    adapter_version_id: Uuid,
    version: i32,
    model_name: String,
    percent: i16,
    compared: i64,
    equal: i64,
    errors: i64,
    skipped: i64,
    answered_tokens: i64,
    shadow_tokens: i64,
    input_tokens: i64,
    started_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

impl From<Row> for Shadow {
    fn from(row: Row) -> Self {
        Self {
            adapter_shadow_id: AdapterShadowId::new(row.adapter_shadow_id),
            alias: row.alias,
            adapter_version_id: AdapterVersionId::new(row.adapter_version_id),
            version: row.version,
            model_name: row.model_name,
            percent: row.percent.unsigned_abs().try_into().unwrap_or(u8::MAX),
            counts: Comparisons {
                compared: row.compared.unsigned_abs(),
                equal: row.equal.unsigned_abs(),
                errors: row.errors.unsigned_abs(),
                skipped: row.skipped.unsigned_abs(),
                answered_tokens: row.answered_tokens.unsigned_abs(),
                shadow_tokens: row.shadow_tokens.unsigned_abs(),
                input_tokens: row.input_tokens.unsigned_abs(),
            },
            started_at: row.started_at,
            ended_at: row.ended_at,
        }
    }
}
