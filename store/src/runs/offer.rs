//! Providers' offers, as last published by the scheduler, and their reservations: the input of estimates.

use attune_domain::{
    bytes::Bytes,
    offer::{Offer, OfferDevice, margin},
};
use sqlx::PgConnection;

use crate::{
    error::StoreError,
    runs::{margins, node},
};

/// Seconds after which an offer that was not published again counts as gone.
const STALE_SECONDS: f64 = 180.0;

/// Publishes a provider's offers, without reservations, with the margins of their past runs; offers that it no longer
/// has are deleted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn publish(tx: &mut PgConnection, provider: &str, offers: &[Offer]) -> Result<(), StoreError> {
    let names: Vec<String> = offers.iter().map(|offer| offer.name.clone()).collect();
    sqlx::query!("delete from offer where provider = $1 and name <> all($2)", provider, &names)
        .execute(&mut *tx)
        .await?;
    let past = margins::recent(tx).await?;
    for offer in offers {
        let gpu = Gpu::of(&offer.device);
        sqlx::query!(
            "insert into offer (provider, name, memory, slots, threads, micro_usd_per_hour, device, gpu_product, gpus,
                 gpu_memory, spot, region, no_price, margin_percent)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             on conflict (provider, name) do update set memory = excluded.memory, slots = excluded.slots,
                 threads = excluded.threads, micro_usd_per_hour = excluded.micro_usd_per_hour,
                 device = excluded.device, gpu_product = excluded.gpu_product, gpus = excluded.gpus,
                 gpu_memory = excluded.gpu_memory, spot = excluded.spot, region = excluded.region,
                 no_price = excluded.no_price, margin_percent = excluded.margin_percent, seen_at = now()",
            provider,
            offer.name,
            offer.memory.to_i64(),
            i32::try_from(offer.free_slots).unwrap_or(i32::MAX),
            i32::try_from(offer.threads).unwrap_or(i32::MAX),
            i64::try_from(offer.micro_usd_per_hour).unwrap_or(i64::MAX),
            offer.device.name(),
            gpu.product,
            gpu.count,
            gpu.memory,
            offer.spot,
            offer.region,
            offer.no_price,
            margins::write(margin(&past, offer)),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// The columns of an offer's GPUs; all null without any.
#[derive(Default)]
struct Gpu {
    product: Option<String>,
    count: Option<i32>,
    memory: Option<i64>,
}

impl Gpu {
    fn of(device: &OfferDevice) -> Self {
        match device {
            OfferDevice::Cpu => Self::default(),
            OfferDevice::Cuda { product, count, memory } => Self {
                product: Some(product.clone()),
                count: Some(i32::try_from(*count).unwrap_or(i32::MAX)),
                memory: Some(memory.to_i64()),
            },
        }
    }

    /// Returns the device. A constraint of the table keeps the columns together.
    fn device(self) -> OfferDevice {
        match (self.product, self.count, self.memory) {
            (Some(product), Some(count), Some(memory)) => {
                OfferDevice::Cuda { product, count: count.unsigned_abs(), memory: Bytes::from_i64(memory) }
            }
            _ => OfferDevice::Cpu,
        }
    }
}

/// Returns all current offers, without reservations: as if they were idle.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn current(conn: &mut PgConnection) -> Result<Vec<Offer>, StoreError> {
    published_within(conn, Some(STALE_SECONDS)).await
}

/// Returns all current offers, with their reservations. Several providers may use the same offer name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(conn: &mut PgConnection) -> Result<Vec<Offer>, StoreError> {
    let mut offers = current(conn).await?;
    for offer in &mut offers {
        let nodes = node::active(conn, &offer.provider).await?;
        reserve(offer, &nodes);
    }
    Ok(offers)
}

/// Returns all offers as last published, without reservations: also those of a scheduler that does not run now.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn last_published(conn: &mut PgConnection) -> Result<Vec<Offer>, StoreError> {
    published_within(conn, None).await
}

/// Returns the offers that were published in the last seconds; `None`: all.
async fn published_within(conn: &mut PgConnection, seconds: Option<f64>) -> Result<Vec<Offer>, StoreError> {
    let rows = sqlx::query!(
        "select provider, name, memory, slots, threads, micro_usd_per_hour, gpu_product, gpus, gpu_memory, spot,
             region, no_price, margin_percent
         from offer
         where $1::float8 is null or seen_at > now() - make_interval(secs => $1) order by provider, name",
        seconds,
    )
    .fetch_all(conn)
    .await?;
    let offers = rows.into_iter().map(|row| Offer {
        provider: row.provider,
        name: row.name,
        memory: Bytes::from_i64(row.memory),
        reserved: Bytes(0),
        free_slots: usize::try_from(row.slots).unwrap_or(0),
        threads: u32::try_from(row.threads).unwrap_or(1),
        micro_usd_per_hour: u64::try_from(row.micro_usd_per_hour).unwrap_or(0),
        device: Gpu { product: row.gpu_product, count: row.gpus, memory: row.gpu_memory }.device(),
        spot: row.spot,
        region: row.region,
        no_price: row.no_price,
        margin: margins::read(row.margin_percent),
    });
    Ok(offers.collect())
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
