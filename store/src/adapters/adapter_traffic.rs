//! The traffic of adapter versions, by the minute: requests, errors, tokens and times. Every process that answers
//! requests adds its counts every few seconds, so no request writes a row.

use std::collections::HashMap;

use attune_domain::{
    id::{AdapterCanaryId, AdapterVersionId, ProjectId},
    traffic::canary::Observed,
    traffic::latency::Latencies,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{db, error::StoreError, sweep_batch::Batch};

/// The hours for which the traffic of a minute is kept.
pub const KEPT_HOURS: i32 = 48;

/// The maximum number of rows that one batch of the sweep deletes.
const SWEEP_ROWS: i64 = 5000;

/// The version and the canary whose traffic is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficKey {
    /// The version that answered.
    pub adapter_version_id: AdapterVersionId,
    /// The canary that was running on the alias of the request; it counts for both of its versions.
    pub adapter_canary_id: Option<AdapterCanaryId>,
    /// The project.
    pub project_id: ProjectId,
}

/// Counts of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The number of requests.
    pub requests: u64,
    /// The number of requests that failed for a reason other than the request itself or a lack of capacity.
    pub errors: u64,
    /// The number of prompt tokens.
    pub input_tokens: u64,
    /// The number of generated tokens.
    pub output_tokens: u64,
    /// The number of requests whose adapter was in the replica's memory.
    pub from_memory: u64,
    /// The number of requests whose adapter was loaded from the node's disk.
    pub from_disk: u64,
    /// The number of requests whose adapter was fetched from the object store.
    pub from_store: u64,
    /// The times to the first token.
    pub first_token: Latencies,
    /// The mean times between the tokens of a request.
    pub per_token: Latencies,
    /// The times that requests waited in the replica's queue.
    pub queued: Latencies,
}

impl Traffic {
    /// Adds the counts of other requests.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.from_memory += other.from_memory;
        self.from_disk += other.from_disk;
        self.from_store += other.from_store;
        self.first_token.add(&other.first_token);
        self.per_token.add(&other.per_token);
        self.queued.add(&other.queued);
    }
}

/// Adds counts to the present minute. `rows` are sorted by their key, so that two processes that write the same rows do
/// not wait for each other in a circle.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn add(tx: &mut PgConnection, rows: &[(TrafficKey, Traffic)]) -> Result<(), StoreError> {
    for (key, traffic) in rows {
        sqlx::query!(
            "insert into adapter_traffic as sums (project_id, adapter_version_id, adapter_canary_id, minute, requests,
                 errors, input_tokens, output_tokens, from_memory, from_disk, from_store, first_token, per_token,
                 queued)
             values ($1, $2, $3, date_trunc('minute', now()), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             on conflict on constraint adapter_traffic_key do update set
                 requests = sums.requests + excluded.requests, errors = sums.errors + excluded.errors,
                 input_tokens = sums.input_tokens + excluded.input_tokens,
                 output_tokens = sums.output_tokens + excluded.output_tokens,
                 from_memory = sums.from_memory + excluded.from_memory, from_disk = sums.from_disk + excluded.from_disk,
                 from_store = sums.from_store + excluded.from_store,
                 first_token = add_counts(sums.first_token, excluded.first_token),
                 per_token = add_counts(sums.per_token, excluded.per_token),
                 queued = add_counts(sums.queued, excluded.queued)",
            key.project_id.uuid(),
            key.adapter_version_id.uuid(),
            key.adapter_canary_id.map(|id| id.uuid()),
            traffic.requests as i64,
            traffic.errors as i64,
            traffic.input_tokens as i64,
            traffic.output_tokens as i64,
            traffic.from_memory as i64,
            traffic.from_disk as i64,
            traffic.from_store as i64,
            &counts(&traffic.first_token),
            &counts(&traffic.per_token),
            &counts(&traffic.queued),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

fn counts(latencies: &Latencies) -> Vec<i64> {
    latencies.counts().iter().map(|count| *count as i64).collect()
}

fn latencies(counts: Vec<i64>) -> Latencies {
    Latencies::from_counts(counts.into_iter().map(i64::unsigned_abs))
}

/// Returns the requests of both versions of these canaries since they began, as far as they are kept.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_canaries(
    db: &mut PgConnection,
    canaries: &[AdapterCanaryId],
) -> Result<HashMap<(AdapterCanaryId, AdapterVersionId), Observed>, StoreError> {
    let ids: Vec<Uuid> = canaries.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query!(
        r#"select adapter_canary_id as "adapter_canary_id!", adapter_version_id, sum(requests)::bigint as "requests!",
             sum(errors)::bigint as "errors!", sum_counts(first_token) as "first_token!"
         from adapter_traffic where adapter_canary_id = any($1) group by 1, 2"#,
        &ids,
    )
    .fetch_all(db)
    .await?;
    let observed = rows.into_iter().map(|row| {
        let key = (AdapterCanaryId::new(row.adapter_canary_id), AdapterVersionId::new(row.adapter_version_id));
        let observed = Observed {
            requests: row.requests.unsigned_abs(),
            errors: row.errors.unsigned_abs(),
            first_token: latencies(row.first_token),
        };
        (key, observed)
    });
    Ok(observed.collect())
}

/// The traffic of a version in a time.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionTraffic {
    /// The version's ID.
    pub adapter_version_id: AdapterVersionId,
    /// The version's number.
    pub version: i32,
    /// The version's model name.
    pub model_name: String,
    /// The counts.
    pub traffic: Traffic,
    /// The cost per million tokens of the replicas that serve the version's base in its quantization, in millionths of
    /// a US dollar: the price of their nodes' time divided by all tokens of that base's adapters in the same time;
    /// `None`: there were no tokens, or no replica.
    pub micro_usd_per_million_tokens: Option<f64>,
}

/// Returns the traffic of an adapter's versions in the last `minutes`, newest version first. A version without traffic
/// is omitted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of_adapter(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    minutes: i32,
) -> Result<Vec<VersionTraffic>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"select t.adapter_version_id, v.version, v.model_name, v.base_model_id, v.quantization,
             sum(t.requests)::bigint as "requests!", sum(t.errors)::bigint as "errors!",
             sum(t.input_tokens)::bigint as "input_tokens!", sum(t.output_tokens)::bigint as "output_tokens!",
             sum(t.from_memory)::bigint as "from_memory!", sum(t.from_disk)::bigint as "from_disk!",
             sum(t.from_store)::bigint as "from_store!", sum_counts(t.first_token) as "first_token!",
             sum_counts(t.per_token) as "per_token!", sum_counts(t.queued) as "queued!"
         from adapter_traffic t join adapter_version v using (adapter_version_id)
             join adapter l on l.adapter_id = v.adapter_id
         where l.project_id = $1 and l.name = $2 and t.minute > now() - make_interval(mins => $3)
         group by 1, 2, 3, 4, 5 order by v.version desc"#,
        project.uuid(),
        adapter,
        minutes,
    )
    .fetch_all(&mut *db)
    .await?;
    let (mut costs, mut all) = (HashMap::new(), Vec::with_capacity(rows.len()));
    for row in rows {
        let pool = (row.base_model_id, row.quantization.clone());
        let cost = if let Some(known) = costs.get(&pool) {
            *known
        } else {
            let cost = cost_of_pool(db, project, &pool, minutes).await?;
            costs.insert(pool, cost);
            cost
        };
        all.push(VersionTraffic { micro_usd_per_million_tokens: cost, ..VersionTraffic::from(row) });
    }
    Ok(all)
}

/// Returns the cost per million tokens of the replicas that answer a project's requests to a base in a quantization: of
/// all projects that share them.
async fn cost_of_pool(
    tx: &mut PgConnection,
    project: ProjectId,
    (base, quantization): &(Uuid, String),
    minutes: i32,
) -> Result<Option<f64>, StoreError> {
    db::as_platform(tx).await?;
    let cost = sqlx::query_scalar!(
        r#"with since as (
             select now() - make_interval(mins => $3) as began, deployment_of($4, $1, $2) as deployment_id)
         select ((select sum(extract(epoch from coalesce(node.released_at, now()) - greatest(node.created_at, began))
                     * node.micro_usd_per_hour / 3600)
                 from replica join node using (node_id)
                 where replica.base_model_id = $1 and replica.quantization = $2
                     and replica.deployment_id is not distinct from since.deployment_id
                     and coalesce(node.released_at, now()) > began)
             / (select nullif(sum(tokens), 0)
                 from (select v.project_id, sum(t.input_tokens + t.output_tokens) as tokens
                     from adapter_traffic t join adapter_version v using (adapter_version_id)
                     where v.base_model_id = $1 and v.quantization = $2 and t.minute > began
                     group by v.project_id) as projects
                 where deployment_of(project_id, $1, $2) is not distinct from since.deployment_id)
             * 1000000)::float8 as cost
         from since"#,
        base,
        quantization,
        minutes,
        project.uuid(),
    )
    .fetch_one(&mut *tx)
    .await?;
    db::as_application(tx).await?;
    Ok(cost)
}

/// A version's sums as SQL returns them.
struct Row {
    adapter_version_id: Uuid,
    version: i32,
    model_name: String,
    base_model_id: Uuid,
    quantization: String,
    requests: i64,
    errors: i64,
    input_tokens: i64,
    output_tokens: i64,
    from_memory: i64,
    from_disk: i64,
    from_store: i64,
    first_token: Vec<i64>,
    per_token: Vec<i64>,
    queued: Vec<i64>,
}

impl From<Row> for VersionTraffic {
    fn from(row: Row) -> Self {
        Self {
            adapter_version_id: AdapterVersionId::new(row.adapter_version_id),
            version: row.version,
            model_name: row.model_name,
            traffic: Traffic {
                requests: row.requests.unsigned_abs(),
                errors: row.errors.unsigned_abs(),
                input_tokens: row.input_tokens.unsigned_abs(),
                output_tokens: row.output_tokens.unsigned_abs(),
                from_memory: row.from_memory.unsigned_abs(),
                from_disk: row.from_disk.unsigned_abs(),
                from_store: row.from_store.unsigned_abs(),
                first_token: latencies(row.first_token),
                per_token: latencies(row.per_token),
                queued: latencies(row.queued),
            },
            micro_usd_per_million_tokens: None,
        }
    }
}

/// Returns the versions with the most requests in the last hour, at most `most`, for the scheduler's metrics. The cost
/// is not computed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn busiest(conn: &mut PgConnection, most: u32) -> Result<Vec<VersionTraffic>, StoreError> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query_as!(
        Row,
        r#"select t.adapter_version_id, v.version, v.model_name, v.base_model_id, v.quantization,
             sum(t.requests)::bigint as "requests!", sum(t.errors)::bigint as "errors!",
             sum(t.input_tokens)::bigint as "input_tokens!", sum(t.output_tokens)::bigint as "output_tokens!",
             sum(t.from_memory)::bigint as "from_memory!", sum(t.from_disk)::bigint as "from_disk!",
             sum(t.from_store)::bigint as "from_store!", sum_counts(t.first_token) as "first_token!",
             sum_counts(t.per_token) as "per_token!", sum_counts(t.queued) as "queued!"
         from adapter_traffic t join adapter_version v using (adapter_version_id)
         where t.minute > now() - interval '1 hour'
         group by 1, 2, 3, 4, 5 order by sum(t.requests) desc, t.adapter_version_id limit $1"#,
        i64::from(most),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(VersionTraffic::from).collect())
}

/// Deletes the traffic of minutes that are not kept any longer.
pub(crate) async fn sweep(tx: &mut PgConnection) -> Result<Batch, StoreError> {
    let gone = sqlx::query!(
        "delete from adapter_traffic where ctid in (
             select ctid from adapter_traffic where minute < now() - make_interval(hours => $1) limit $2)",
        KEPT_HOURS,
        SWEEP_ROWS,
    )
    .execute(tx)
    .await?
    .rows_affected();
    Ok(Batch { gone, has_more: gone >= SWEEP_ROWS.unsigned_abs() })
}
