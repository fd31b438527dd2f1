//! Providers' offers, as last published by the scheduler, and their reservations: the input of estimates.

use attune_domain::{bytes::Bytes, id::BaseModelId, offer::Offer};
use sqlx::PgConnection;

use crate::{error::StoreError, runs::node};

/// Seconds after which an offer that was not published again counts as gone.
const STALE_SECONDS: f64 = 180.0;

/// The number of recent runs from which throughput is measured.
const THROUGHPUT_RUNS: i64 = 20;

/// Publishes a provider's offers, without reservations; offers that it no longer has are deleted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn publish(tx: &mut PgConnection, provider: &str, offers: &[Offer]) -> Result<(), StoreError> {
    let names: Vec<String> = offers.iter().map(|offer| offer.name.clone()).collect();
    sqlx::query!("delete from offer where provider = $1 and name <> all($2)", provider, &names)
        .execute(&mut *tx)
        .await?;
    for offer in offers {
        sqlx::query!(
            "insert into offer (provider, name, memory, slots, threads, micro_usd_per_hour)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (provider, name) do update set memory = excluded.memory, slots = excluded.slots,
                 threads = excluded.threads, micro_usd_per_hour = excluded.micro_usd_per_hour, seen_at = now()",
            provider,
            offer.name,
            offer.memory.to_i64(),
            i32::try_from(offer.free_slots).unwrap_or(i32::MAX),
            i32::try_from(offer.threads).unwrap_or(i32::MAX),
            i64::try_from(offer.micro_usd_per_hour).unwrap_or(i64::MAX),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Returns all current offers, with their reservations. Several providers may use the same offer name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(conn: &mut PgConnection) -> Result<Vec<Offer>, StoreError> {
    let rows = sqlx::query!(
        "select provider, name, memory, slots, threads, micro_usd_per_hour from offer
         where seen_at > now() - make_interval(secs => $1) order by provider, name",
        STALE_SECONDS,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut offers = Vec::with_capacity(rows.len());
    for row in rows {
        let mut offer = Offer {
            provider: row.provider,
            name: row.name,
            memory: Bytes::from_i64(row.memory),
            reserved: Bytes(0),
            free_slots: usize::try_from(row.slots).unwrap_or(0),
            threads: u32::try_from(row.threads).unwrap_or(1),
            micro_usd_per_hour: u64::try_from(row.micro_usd_per_hour).unwrap_or(0),
        };
        let nodes = node::active(conn, &offer.provider).await?;
        reserve(&mut offer, &nodes);
        offers.push(offer);
    }
    Ok(offers)
}

/// Subtracts the reservations of the nodes of the offer's provider from the offer.
pub fn reserve(offer: &mut Offer, nodes: &[node::Node]) {
    for node in nodes.iter().filter(|node| node.offer == offer.name) {
        offer.reserved = offer.reserved + node.memory;
        if node.run_id.is_some() {
            offer.free_slots = offer.free_slots.saturating_sub(1);
        }
    }
}

/// The throughput of recent runs on an offer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// All tokens of the steps per second of step time.
    pub tokens_per_second: f64,
    /// The number of runs measured.
    pub runs: i64,
}

/// Returns the throughput of recent runs of a base on an offer; `None`: there were none yet.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn throughput(
    conn: &mut PgConnection,
    offer: &Offer,
    base: BaseModelId,
) -> Result<Option<Throughput>, StoreError> {
    let row = sqlx::query!(
        r#"select sum(tokens)::float8 * 1000 / nullif(sum(step_ms), 0)::float8 as tokens_per_second, count(*) as "runs!"
         from (select run.tokens, run.step_ms from run join node using (node_id) join job on job.job_id = run.job_id
             where node.provider = $1 and node.offer = $2 and job.base_model_id = $3 and run.steps > 0
             order by run.run_id desc limit $4) as late"#,
        offer.provider,
        offer.name,
        base.uuid(),
        THROUGHPUT_RUNS,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.tokens_per_second.map(|tokens_per_second| Throughput { tokens_per_second, runs: row.runs }))
}
