//! Replicas: serving processes. The row is created first and launched afterwards; one live replica serves a base in one
//! quantization.

use attune_domain::{
    bytes::Bytes,
    event::EventType,
    id::{BaseModelId, NodeId, ProjectId, ReplicaId},
    run::Directive,
    serve::{CONTRACT_VERSION, ReplicaReply, ReplicaReport, ServeSpec},
    spec::Quantization,
    text::tenant_text::for_tenant,
};
use sqlx::PgConnection;
use strum::EnumString;
use uuid::Uuid;

use crate::{
    error::{StoreError, quantization},
    files::objects::Objects,
    ids,
    queue::{self, EnsureReplica},
    runs::{
        node::{self, NewNode},
        run_spec,
    },
    webhooks::outbox,
};

/// The state of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum ReplicaState {
    /// Requested, not launched yet.
    Wanted,
    /// Launched; its process loads the base.
    Launching,
    /// Ready; it serves requests at its address.
    Ready,
    /// Ended.
    Ended,
}

/// The base weights that a replica serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedBase {
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The quantization of the weights.
    pub quantization: Quantization,
}

impl ServedBase {
    /// Returns the base without quantization.
    #[must_use]
    pub const fn as_imported(base_model_id: BaseModelId) -> Self {
        Self { base_model_id, quantization: Quantization::None }
    }
}

/// A replica's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    /// The replica's ID.
    pub replica_id: ReplicaId,
    /// The base that it serves.
    pub base: ServedBase,
    /// The node that it runs on, once it is placed.
    pub node_id: Option<NodeId>,
    /// The state.
    pub state: ReplicaState,
    /// The address, `host:port`, once it listens.
    pub address: Option<String>,
    /// The bearer token that it accepts, and that authenticates its own reports.
    pub token: String,
    /// The error, if it failed.
    pub error: Option<String>,
    /// Seconds since its last report, by the database's clock.
    pub silent_seconds: f64,
    /// Seconds since it was last requested, or had a request in progress.
    pub idle_seconds: f64,
    /// The provider's handle of its process.
    pub handle: Option<String>,
}

/// Returns the live replica of a base in its quantization, or requests a new one. Counts as use: call it for every
/// request.
///
/// # Errors
/// [`StoreError::Conflict`]: the base does not exist. [`StoreError::Database`], [`StoreError::Queue`].
pub async fn ensure(tx: &mut PgConnection, base: ServedBase) -> Result<Replica, StoreError> {
    ensure_for(tx, base, None).await
}

/// As [`ensure`], for a request of a project: if this starts the replica, the project receives the replica's events.
///
/// # Errors
/// As [`ensure`].
pub async fn ensure_for(
    tx: &mut PgConnection,
    base: ServedBase,
    project: Option<ProjectId>,
) -> Result<Replica, StoreError> {
    let id: ReplicaId = ids::id();
    let new = sqlx::query!(
        "insert into replica (replica_id, base_model_id, quantization, state, token, wanted_by)
         values ($1, $2, $3, 'wanted', $4, $5)
         on conflict (base_model_id, quantization) where state <> 'ended' do nothing",
        id.uuid(),
        base.base_model_id.uuid(),
        base.quantization.name(),
        ids::secret(),
        project.map(|id| id.uuid()),
    )
    .execute(&mut *tx)
    .await?;
    if new.rows_affected() == 1 {
        queue::push(tx, &EnsureReplica { replica_id: id }).await?;
        tell(tx, id, EventType::DeploymentRequested).await?;
    }
    let living = sqlx::query_scalar!(
        "update replica set last_used_at = now() where base_model_id = $1 and quantization = $2 and state <> 'ended'
         returning replica_id",
        base.base_model_id.uuid(),
        base.quantization.name(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    // It may have ended between the two statements; the caller retries in any case.
    get(tx, ReplicaId::new(living.unwrap_or(id.uuid()))).await
}

/// Pushes an event to the project that had the replica started, if there is one.
async fn tell(tx: &mut PgConnection, id: ReplicaId, event: EventType) -> Result<(), StoreError> {
    let row = sqlx::query!(
        "select wanted_by, base_model.name as model, quantization, error
         from replica join base_model using (base_model_id)
         where replica_id = $1",
        id.uuid(),
    )
    .fetch_one(&mut *tx)
    .await?;
    let Some(project) = row.wanted_by else { return Ok(()) };
    let mut data = serde_json::json!({ "id": id, "model": row.model, "quantization": row.quantization });
    if let Some(error) = row.error {
        data["error"] = error.into();
    }
    outbox::push(tx, ProjectId::new(project), event, &data).await?;
    Ok(())
}

/// Returns a replica by its ID.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Database`].
pub async fn get(conn: &mut PgConnection, id: ReplicaId) -> Result<Replica, StoreError> {
    select(conn, Filter { id: Some(id), ..Filter::default() }).await?.pop().ok_or(StoreError::NotFound("replica"))
}

/// Returns the replica that this token authenticates.
///
/// # Errors
/// [`StoreError::NotFound`]: no replica has this token. [`StoreError::Database`].
pub async fn by_token(conn: &mut PgConnection, token: &str) -> Result<Replica, StoreError> {
    let filter = Filter { token: Some(token), ..Filter::default() };
    select(conn, filter).await?.pop().ok_or(StoreError::NotFound("replica"))
}

/// Returns all replicas that have not ended, oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn active(conn: &mut PgConnection) -> Result<Vec<Replica>, StoreError> {
    select(conn, Filter { active: true, ..Filter::default() }).await
}

#[derive(Default)]
struct Filter<'a> {
    id: Option<ReplicaId>,
    token: Option<&'a str>,
    active: bool,
}

async fn select(conn: &mut PgConnection, filter: Filter<'_>) -> Result<Vec<Replica>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select replica_id, base_model_id, quantization, replica.node_id, state, address, token, error,
             extract(epoch from clock_timestamp() - heartbeat_at)::float8 as "silent_seconds!",
             extract(epoch from clock_timestamp() - last_used_at)::float8 as "idle_seconds!",
             node.handle as "handle?"
         from replica left join node using (node_id)
         where replica_id in (select replica_id from replica where replica_id = $1
             union select replica_id from replica where token = $2
             union select replica_id from replica where $3 and state <> 'ended')
         order by replica_id"#,
        filter.id.map(|id| id.uuid()),
        filter.token,
        filter.active,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Replica::try_from).collect()
}

/// The row as PostgreSQL returns it.
struct Row {
    replica_id: Uuid,
    base_model_id: Uuid,
    quantization: String,
    node_id: Option<Uuid>,
    state: String,
    address: Option<String>,
    token: String,
    error: Option<String>,
    silent_seconds: f64,
    idle_seconds: f64,
    handle: Option<String>,
}

impl TryFrom<Row> for Replica {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            replica_id: ReplicaId::new(row.replica_id),
            base: ServedBase {
                base_model_id: BaseModelId::new(row.base_model_id),
                quantization: quantization("replica.quantization", &row.quantization)?,
            },
            node_id: row.node_id.map(NodeId::new),
            state: row.state.parse().unwrap_or(ReplicaState::Ended),
            address: row.address,
            token: row.token,
            error: row.error,
            silent_seconds: row.silent_seconds,
            idle_seconds: row.idle_seconds,
            handle: row.handle,
        })
    }
}

/// The placement of a replica.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The node to reserve.
    pub node: NewNode,
    /// Memory for adapters, keys and values, in addition to the base.
    pub memory_budget: Bytes,
    /// The number of CPU threads.
    pub threads: u32,
    /// Seconds between its reports.
    pub heartbeat_seconds: u64,
}

/// Reserves the node of a wanted replica. Returns `None` if it is not wanted any more, or was already placed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn place(tx: &mut PgConnection, id: ReplicaId, placement: &Placement) -> Result<Option<NodeId>, StoreError> {
    let wanted = sqlx::query_scalar!(
        "select replica_id from replica where replica_id = $1 and state = 'wanted' for update",
        id.uuid()
    )
    .fetch_optional(&mut *tx)
    .await?;
    if wanted.is_none() {
        return Ok(None);
    }
    let node_id = node::reserve(tx, &placement.node).await?;
    sqlx::query!(
        "update replica set state = 'launching', node_id = $2, memory_budget = $3, threads = $4,
             heartbeat_seconds = $5, heartbeat_at = now()
         where replica_id = $1",
        id.uuid(),
        node_id.uuid(),
        placement.memory_budget.to_i64(),
        placement.threads as i32,
        placement.heartbeat_seconds as i32,
    )
    .execute(tx)
    .await?;
    Ok(Some(node_id))
}

/// Returns the contract of a serving process, with new presigned URLs.
///
/// # Errors
/// [`StoreError::Stale`]: the replica has ended, or was never launched. [`StoreError::Object`],
/// [`StoreError::Database`].
pub async fn spec(conn: &mut PgConnection, objects: &Objects, replica: &Replica) -> Result<ServeSpec, StoreError> {
    let row = sqlx::query!(
        "select memory_budget, threads, heartbeat_seconds from replica where replica_id = $1 and state <> 'ended'",
        replica.replica_id.uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?
    .ok_or(StoreError::Stale)?;
    let (Some(budget), Some(threads), Some(heartbeat)) = (row.memory_budget, row.threads, row.heartbeat_seconds) else {
        return Err(StoreError::Stale);
    };
    let (base_digest, base) = run_spec::base_files(conn, objects, replica.base.base_model_id.uuid()).await?;
    Ok(ServeSpec {
        version: CONTRACT_VERSION,
        replica_id: replica.replica_id,
        base_digest,
        base,
        quantization: replica.base.quantization,
        heartbeat_seconds: heartbeat.unsigned_abs().into(),
        memory_budget: Bytes::from_i64(budget),
        threads: threads.unsigned_abs(),
    })
}

/// Applies a report: a heartbeat, an address, or the end.
///
/// # Errors
/// [`StoreError::Stale`]: it has ended. [`StoreError::Database`].
#[tracing::instrument(skip(tx, report), fields(replica.id = %id))]
pub async fn take_report(
    tx: &mut PgConnection,
    id: ReplicaId,
    report: &ReplicaReport,
) -> Result<ReplicaReply, StoreError> {
    if let Some(reason) = &report.failed {
        return if end(tx, id, Some(reason)).await? {
            Ok(ReplicaReply { directive: Directive::Stop })
        } else {
            Err(StoreError::Stale)
        };
    }
    let taken = sqlx::query!(
        r#"update replica set heartbeat_at = now(), address = coalesce($2, address),
             state = case when $2::text is not null then 'ready' else replica.state end,
             last_used_at = case when $3 then now() else last_used_at end
         from (select replica_id, state from replica where replica_id = $1 for update) as before
         where replica.replica_id = before.replica_id and before.state in ('launching', 'ready')
         returning before.state <> replica.state as "came_up!""#,
        id.uuid(),
        report.address,
        report.active_requests > 0,
    )
    .fetch_optional(&mut *tx)
    .await?;
    if taken.ok_or(StoreError::Stale)?.came_up {
        tell(tx, id, EventType::DeploymentReady).await?;
    }
    Ok(ReplicaReply { directive: Directive::Continue })
}

/// Ends a replica and releases its node. Returns `false` if it had ended before.
///
/// The error is shown to users of any project who wait for the replica, so paths and addresses are removed from it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end(tx: &mut PgConnection, id: ReplicaId, error: Option<&str>) -> Result<bool, StoreError> {
    let error = error.map(for_tenant);
    let ended = sqlx::query!(
        "update replica set state = 'ended', ended_at = now(), error = $2
         where replica_id = $1 and state <> 'ended' returning node_id",
        id.uuid(),
        error.as_deref(),
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(ended) = ended else { return Ok(false) };
    if let Some(node_id) = ended.node_id {
        node::release(tx, NodeId::new(node_id)).await?;
    }
    let event = if error.is_some() { EventType::DeploymentFailed } else { EventType::DeploymentStopped };
    tell(tx, id, event).await?;
    Ok(true)
}

/// Ends a replica that was not used for `idle_seconds`. Returns `false` if it was used meanwhile.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn end_if_idle(tx: &mut PgConnection, id: ReplicaId, idle_seconds: f64) -> Result<bool, StoreError> {
    let idle = sqlx::query_scalar!(
        "select replica_id from replica where replica_id = $1 and state = 'ready'
             and last_used_at < now() - make_interval(secs => $2) for update",
        id.uuid(),
        idle_seconds,
    )
    .fetch_optional(&mut *tx)
    .await?;
    match idle {
        Some(_) => end(tx, id, None).await,
        None => Ok(false),
    }
}

/// Returns wanted replicas whose last message is older than `seconds`; their messages count as pushed now, so the
/// caller must push them in the same transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim_unpushed(tx: &mut PgConnection, seconds: f64) -> Result<Vec<ReplicaId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "update replica set pushed_at = now()
         where state = 'wanted' and pushed_at < now() - make_interval(secs => $1) returning replica_id",
        seconds,
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(ReplicaId::new).collect())
}
