//! Canaries of aliases: a version answers a share of an alias's requests until it is promoted or aborted, by a user or
//! by the platform. The platform aborts a canary by the rule that its row holds ([`attune_domain::traffic::canary`]),
//! and evaluates it whenever the traffic of one of its versions is written.
//!
//! Each change locks the adapter first, then writes the alias's row too: its version for `If-Match` includes the
//! canary.

use attune_domain::{
    event::EventType,
    id::{AdapterCanary as CanaryKind, AdapterCanaryId, AdapterId, AdapterVersionId, ProjectId},
    traffic::canary::{self, AbortRule, Observed, Verdict},
};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgConnection;
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use crate::{
    adapters::{
        adapter::{self, AdapterVersion},
        adapter_alias, adapter_traffic,
    },
    error::{StoreError, named},
    ids,
    webhooks::outbox,
};

/// The state of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum CanaryState {
    /// The version answers its share of the requests.
    Running,
    /// The version answers all requests; the alias names it.
    Promoted,
    /// The stable version answers all requests.
    Aborted,
}

/// A canary.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// The canary's ID.
    pub adapter_canary_id: AdapterCanaryId,
    /// The alias's name: `prod`.
    pub alias: String,
    /// The ID of the version on trial.
    pub adapter_version_id: AdapterVersionId,
    /// The number of that version.
    pub version: i32,
    /// The model name of that version.
    pub model_name: String,
    /// The ID of the version that the alias named when the canary began.
    pub stable_version_id: AdapterVersionId,
    /// The share of the requests, in percent.
    pub percent: u8,
    /// The rule that aborts it.
    pub rule: AbortRule,
    /// The state.
    pub state: CanaryState,
    /// The reason why it was aborted.
    pub reason: Option<String>,
    /// The start.
    pub started_at: DateTime<Utc>,
    /// The end; `None` while it runs.
    pub ended_at: Option<DateTime<Utc>>,
}

/// The share and the rule of a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The share of the requests, in percent.
    pub percent: u8,
    /// The rule that aborts it.
    pub rule: AbortRule,
}

/// The outcome of a request to start a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The canary runs with this share and rule.
    Running,
    /// The alias names the version already; nothing changed.
    Stable,
    /// Another version is the canary: this one; nothing changed.
    Other(AdapterVersionId),
}

/// Starts the canary of an alias with a version; both the adapter and the version are locked. If the version is the
/// canary already, its share and its rule change, and its requests so far continue to count.
///
/// # Errors
/// [`StoreError::NotFound`]: there is no such alias.
pub async fn start(
    tx: &mut PgConnection,
    project: ProjectId,
    alias: &str,
    to: &AdapterVersion,
    share: Share,
) -> Result<Start, StoreError> {
    let adapter = to.adapter_id;
    let stable = adapter_alias::target(tx, adapter, alias).await?.ok_or(StoreError::NotFound("alias"))?;
    if stable == to.adapter_version_id {
        return Ok(Start::Stable);
    }
    let (percent, rule) = (i16::from(share.percent), share.rule);
    let known = running(tx, adapter, alias).await?;
    match known {
        Some(known) if known.version != to.adapter_version_id => return Ok(Start::Other(known.version)),
        Some(known) => {
            sqlx::query!(
                "update adapter_canary set percent = $2, max_error_rate = $3, max_latency_ratio = $4, min_requests = $5
                 where adapter_canary_id = $1",
                known.id.uuid(),
                percent,
                rule.max_error_rate,
                rule.max_latency_ratio,
                rule.min_requests as i32,
            )
            .execute(&mut *tx)
            .await?;
        }
        None => {
            sqlx::query!(
                "insert into adapter_canary (adapter_canary_id, project_id, adapter_id, alias, stable_version_id,
                     adapter_version_id, percent, max_error_rate, max_latency_ratio, min_requests)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                ids::id::<CanaryKind>().uuid(),
                project.uuid(),
                adapter.uuid(),
                alias,
                stable.uuid(),
                to.adapter_version_id.uuid(),
                percent,
                rule.max_error_rate,
                rule.max_latency_ratio,
                rule.min_requests as i32,
            )
            .execute(&mut *tx)
            .await?;
        }
    }
    adapter_alias::touch(tx, adapter, alias).await?;
    Ok(Start::Running)
}

/// A running canary.
struct Running {
    id: AdapterCanaryId,
    version: AdapterVersionId,
    stable: AdapterVersionId,
}

async fn running(tx: &mut PgConnection, adapter: AdapterId, alias: &str) -> Result<Option<Running>, StoreError> {
    let row = sqlx::query!(
        "select adapter_canary_id, adapter_version_id, stable_version_id from adapter_canary
         where adapter_id = $1 and alias = $2 and state = 'running'",
        adapter.uuid(),
        alias,
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|row| Running {
        id: AdapterCanaryId::new(row.adapter_canary_id),
        version: AdapterVersionId::new(row.adapter_version_id),
        stable: AdapterVersionId::new(row.stable_version_id),
    }))
}

/// Promotes the canary of an alias of a locked adapter: the alias moves to its version. Returns `false` if none runs.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn promote(
    tx: &mut PgConnection,
    project: ProjectId,
    adapter: AdapterId,
    alias: &str,
) -> Result<bool, StoreError> {
    let Some(running) = running(tx, adapter, alias).await? else { return Ok(false) };
    // A running canary's version cannot be deleted.
    let to = adapter::lock(tx, project, &running.version.to_string()).await?;
    adapter_alias::move_to(tx, project, alias, &to, (Some(running.stable), Some(running.stable))).await?;
    end(tx, running.id, CanaryState::Promoted, None).await?;
    Ok(true)
}

/// Aborts the canary of an alias of a locked adapter. Returns `false` if none runs.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn abort(tx: &mut PgConnection, adapter: AdapterId, alias: &str, reason: &str) -> Result<bool, StoreError> {
    let Some(running) = running(tx, adapter, alias).await? else { return Ok(false) };
    end(tx, running.id, CanaryState::Aborted, Some(reason)).await?;
    adapter_alias::touch(tx, adapter, alias).await?;
    Ok(true)
}

/// Ends a running canary, and pushes the event of it.
async fn end(
    tx: &mut PgConnection,
    id: AdapterCanaryId,
    state: CanaryState,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let row = sqlx::query!(
        "update adapter_canary c set state = $2, reason = $3, ended_at = now() from adapter l
         where c.adapter_canary_id = $1 and l.adapter_id = c.adapter_id
         returning c.project_id, l.name, c.alias, c.adapter_version_id, c.stable_version_id",
        id.uuid(),
        <&str>::from(state),
        reason,
    )
    .fetch_one(&mut *tx)
    .await?;
    let mut told = json!({
        "id": id,
        "alias": format!("{}@{}", row.name, row.alias),
        "adapter_version": AdapterVersionId::new(row.adapter_version_id),
        "stable_version": AdapterVersionId::new(row.stable_version_id),
    });
    if let Some(reason) = reason {
        told["reason"] = reason.into();
    }
    let event = if state == CanaryState::Promoted { EventType::CanaryPromoted } else { EventType::CanaryAborted };
    outbox::push(tx, ProjectId::new(row.project_id), event, &told).await?;
    Ok(())
}

/// Evaluates a canary by its traffic, and aborts it if its rule demands that. Nothing is done to one that has ended.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn evaluate(tx: &mut PgConnection, id: AdapterCanaryId) -> Result<Verdict, StoreError> {
    let row = sqlx::query!(
        "select adapter_id, alias, stable_version_id, adapter_version_id, max_error_rate, max_latency_ratio,
             min_requests
         from adapter_canary where adapter_canary_id = $1 and state = 'running'",
        id.uuid(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(Verdict::Continue) };
    let mut observed = adapter_traffic::of_canaries(tx, &[id]).await?;
    let mut of = |version| observed.remove(&(id, AdapterVersionId::new(version))).unwrap_or_default();
    let (stable, canary): (Observed, Observed) = (of(row.stable_version_id), of(row.adapter_version_id));
    let rule = rule(row.max_error_rate, row.max_latency_ratio, row.min_requests);
    let verdict = canary::verdict(rule, &stable, &canary);
    if let Verdict::Abort(reason) = verdict {
        sqlx::query!("select from adapter where adapter_id = $1 for update", row.adapter_id)
            .fetch_optional(&mut *tx)
            .await?;
        // It may have ended while this waited for the lock, and another one may have begun.
        let adapter = AdapterId::new(row.adapter_id);
        if running(tx, adapter, &row.alias).await?.is_some_and(|running| running.id == id) {
            abort(tx, adapter, &row.alias, &reason.to_string()).await?;
        }
    }
    Ok(verdict)
}

fn rule(max_error_rate: f64, max_latency_ratio: f64, min_requests: i32) -> AbortRule {
    AbortRule { max_error_rate, max_latency_ratio, min_requests: min_requests.unsigned_abs() }
}

/// Returns the last canary of each alias of an adapter, running or ended; only of the alias with this name, if one is
/// given.
///
/// # Errors
/// [`StoreError::Database`], [`StoreError::Corrupt`].
pub async fn last(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: Option<&str>,
) -> Result<Vec<Canary>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "select distinct on (c.alias) c.adapter_canary_id, c.alias, c.adapter_version_id, v.version, v.model_name,
             c.stable_version_id, c.percent, c.max_error_rate, c.max_latency_ratio, c.min_requests, c.state, c.reason,
             c.started_at, c.ended_at
         from adapter_canary c join adapter_version v using (adapter_version_id)
             join adapter l on l.adapter_id = c.adapter_id
         where l.project_id = $1 and l.name = $2 and ($3::text is null or c.alias = $3)
         order by c.alias, c.adapter_canary_id desc",
        project.uuid(),
        adapter,
        alias,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Canary::try_from).collect()
}

/// The row as SQL returns it.
struct Row {
    adapter_canary_id: Uuid,
    alias: String,
    adapter_version_id: Uuid,
    version: i32,
    model_name: String,
    stable_version_id: Uuid,
    percent: i16,
    max_error_rate: f64,
    max_latency_ratio: f64,
    min_requests: i32,
    state: String,
    reason: Option<String>,
    started_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Canary {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            adapter_canary_id: AdapterCanaryId::new(row.adapter_canary_id),
            alias: row.alias,
            adapter_version_id: AdapterVersionId::new(row.adapter_version_id),
            version: row.version,
            model_name: row.model_name,
            stable_version_id: AdapterVersionId::new(row.stable_version_id),
            percent: row.percent.unsigned_abs().try_into().unwrap_or(u8::MAX),
            rule: rule(row.max_error_rate, row.max_latency_ratio, row.min_requests),
            state: named("adapter_canary.state", &row.state, "state of a canary")?,
            reason: row.reason,
            started_at: row.started_at,
            ended_at: row.ended_at,
        })
    }
}
