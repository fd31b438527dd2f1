//! The margins of offers: measured in past runs when the offers are published, and read at each placement.

use std::collections::HashMap;

use attune_domain::{
    bytes::Bytes,
    memory::{MARGIN_RUNS, Margin, MarginSource},
    offer::{Offer, PastPeak},
};
use sqlx::PgConnection;

use crate::error::StoreError;

/// The number of ended runs among which the past runs are.
const RECENT_RUNS: i64 = 2000;

/// Returns the predicted and measured peaks of the newest runs on each offer, newest first. The slots of an offer are
/// one offer. A run counts if it published, or if it exceeded its prediction before it ended otherwise: the peak of one
/// that ended early is not known.
///
/// # Errors
/// [`StoreError::Database`].
pub(crate) async fn recent(conn: &mut PgConnection) -> Result<Vec<PastPeak>, StoreError> {
    let rows = sqlx::query!(
        r#"with recent as (
             select run_id, node_id, ended_at, outcome, predicted_peak, measured_peak from run
             where state = 'ended' order by ended_at desc limit $1),
         numbered as (
             select recent.run_id, recent.ended_at, recent.predicted_peak, recent.measured_peak, node.provider,
                 node.offer, row_number() over (
                     partition by node.provider, split_part(node.offer, '/', 1) order by recent.ended_at desc) as place
             from recent join node using (node_id)
             where recent.outcome = 'published' or recent.measured_peak > recent.predicted_peak)
         select numbered.provider as "provider!", numbered.offer as "offer!",
             run.placed #>> '{processor,name}' as "processor?", numbered.predicted_peak as "predicted!",
             numbered.measured_peak as "measured!"
         from numbered join run using (run_id)
         where numbered.place <= $2 and numbered.measured_peak is not null order by numbered.ended_at desc"#,
        RECENT_RUNS,
        i64::try_from(MARGIN_RUNS).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await?;
    let peaks = rows.into_iter().map(|row| PastPeak {
        provider: row.provider,
        offer: row.offer,
        processor: row.processor,
        predicted: Bytes::from_i64(row.predicted),
        measured: Bytes::from_i64(row.measured),
    });
    Ok(peaks.collect())
}

/// The margins of the offers, as last published.
#[derive(Debug, Clone)]
pub struct Margins(HashMap<(String, String), Margin>);

impl Margins {
    /// Returns the margin of an offer: the default for one that was not published yet.
    #[must_use]
    pub fn of(&self, offer: &Offer) -> Margin {
        self.0.get(&(offer.provider.clone(), offer.name.clone())).copied().unwrap_or_default()
    }
}

/// Returns the margins of all offers.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(conn: &mut PgConnection) -> Result<Margins, StoreError> {
    let rows = sqlx::query!("select provider, name, margin_percent from offer where margin_percent is not null")
        .fetch_all(conn)
        .await?;
    let margins = rows.into_iter().map(|row| ((row.provider, row.name), read(row.margin_percent)));
    Ok(Margins(margins.collect()))
}

/// Reads the column of a margin.
pub(crate) fn read(percent: Option<i32>) -> Margin {
    percent.map_or_else(Margin::default, |percent| Margin::measured(percent.unsigned_abs().into()))
}

/// Returns the column of a margin: null for the default.
pub(crate) fn write(margin: Margin) -> Option<i32> {
    match margin.source {
        MarginSource::Default => None,
        MarginSource::Measured => i32::try_from(margin.percent).ok(),
    }
}
