//! The rows of replicas.

use attune_domain::{
    id::{BaseModelId, DeploymentId, NodeId, ReplicaId},
    offer::ReplicaKind,
    serve::AdapterKey,
    spec::Quantization,
};
use sqlx::PgConnection;
use strum::EnumString;
use uuid::Uuid;

use crate::error::{StoreError, json, named, quantization};

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
    /// Gets no new requests, and ends when it has none in progress.
    Draining,
    /// Ended.
    Ended,
}

/// The base weights that a replica serves, and the deployment that it belongs to: a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServedBase {
    /// The base model's ID.
    pub base_model_id: BaseModelId,
    /// The quantization of the weights.
    pub quantization: Quantization,
    /// The deployment whose replicas these are; `None`: those that all projects without a deployment share.
    pub deployment_id: Option<DeploymentId>,
}

impl ServedBase {
    /// Returns the base without quantization, as all projects share it.
    #[must_use]
    pub const fn as_imported(base_model_id: BaseModelId) -> Self {
        Self::shared(base_model_id, Quantization::None)
    }

    /// Returns the base as all projects without a deployment of it share it.
    #[must_use]
    pub const fn shared(base_model_id: BaseModelId, quantization: Quantization) -> Self {
        Self { base_model_id, quantization, deployment_id: None }
    }

    /// Returns the UUID of the deployment, for SQL.
    pub(crate) fn deployment(self) -> Option<Uuid> {
        self.deployment_id.map(|id| id.uuid())
    }
}

/// A replica's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    /// The replica's ID.
    pub replica_id: ReplicaId,
    /// The base that it serves.
    pub base: ServedBase,
    /// The program that generates its tokens, the devices that it may use, and how it decodes.
    pub kind: ReplicaKind,
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
    /// Seconds since its pool was last requested, or it had a request in progress.
    pub idle_seconds: f64,
    /// Seconds since it began to drain, if it drains.
    pub draining_seconds: Option<f64>,
    /// The adapters in its memory, as of its last report.
    pub resident_adapters: Vec<AdapterKey>,
    /// The provider's handle of its process.
    pub handle: Option<String>,
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

/// Returns the replicas of a pool that serve requests or will, oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_pool(conn: &mut PgConnection, base: ServedBase) -> Result<Vec<Replica>, StoreError> {
    select(conn, Filter { pool: Some(base), ..Filter::default() }).await
}

#[derive(Default)]
struct Filter<'a> {
    id: Option<ReplicaId>,
    token: Option<&'a str>,
    active: bool,
    pool: Option<ServedBase>,
}

async fn select(conn: &mut PgConnection, filter: Filter<'_>) -> Result<Vec<Replica>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select replica_id, base_model_id, quantization, deployment_id, engine, device, kv_cache_dtype,
             draft_model_id, replica.node_id, state, address, token, error,
             extract(epoch from clock_timestamp() - heartbeat_at)::float8 as "silent_seconds!",
             extract(epoch from clock_timestamp() - last_used_at)::float8 as "idle_seconds!",
             extract(epoch from clock_timestamp() - draining_since)::float8 as draining_seconds,
             resident_adapters, node.handle as "handle?"
         from replica left join node using (node_id)
         where replica_id in (select replica_id from replica where replica_id = $1
             union select replica_id from replica where token = $2
             union select replica_id from replica where $3 and state <> 'ended'
             union select replica_id from replica where base_model_id = $4 and quantization = $5
                 and deployment_id is not distinct from $6 and state in ('wanted', 'launching', 'ready'))
         order by replica_id"#,
        filter.id.map(|id| id.uuid()),
        filter.token,
        filter.active,
        filter.pool.map(|base| base.base_model_id.uuid()),
        filter.pool.map(|base| base.quantization.name()),
        filter.pool.and_then(ServedBase::deployment),
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
    deployment_id: Option<Uuid>,
    engine: String,
    device: String,
    kv_cache_dtype: String,
    draft_model_id: Option<Uuid>,
    node_id: Option<Uuid>,
    state: String,
    address: Option<String>,
    token: String,
    error: Option<String>,
    silent_seconds: f64,
    idle_seconds: f64,
    draining_seconds: Option<f64>,
    resident_adapters: serde_json::Value,
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
                deployment_id: row.deployment_id.map(DeploymentId::new),
            },
            kind: ReplicaKind {
                engine: named("replica.engine", &row.engine, "engine")?,
                device: named("replica.device", &row.device, "device")?,
                kv_cache_dtype: named("replica.kv_cache_dtype", &row.kv_cache_dtype, "type of keys and values")?,
                draft: row.draft_model_id.map(BaseModelId::new),
            },
            node_id: row.node_id.map(NodeId::new),
            state: row.state.parse().unwrap_or(ReplicaState::Ended),
            address: row.address,
            token: row.token,
            error: row.error,
            silent_seconds: row.silent_seconds,
            idle_seconds: row.idle_seconds,
            draining_seconds: row.draining_seconds,
            resident_adapters: json("replica.resident_adapters", row.resident_adapters)?,
            handle: row.handle,
        })
    }
}
