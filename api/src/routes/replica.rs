//! Endpoints that serving processes call: their spec, and their status reports. See `domain::serve`.

use attune_domain::serve::{ReplicaReply, ReplicaReport, ServeSpec};
use attune_process::failpoint::FailPoint;
use attune_store::replica::{self, Replica};
use axum::{Json, extract::State};

use crate::{app::App, auth::caller::TokenHolder, error::ApiError, http::json_body::Body};

/// Returns the replica's spec, with newly presigned URLs.
pub async fn spec(
    State(app): State<App>,
    TokenHolder(replica): TokenHolder<Replica>,
) -> Result<Json<ServeSpec>, ApiError> {
    let mut db = app.platform().await?;
    Ok(Json(replica::spec(&mut db, &app.objects, &replica).await?))
}

/// Records a status report of the replica.
pub async fn reports(
    State(app): State<App>,
    TokenHolder(replica): TokenHolder<Replica>,
    Body(said): Body<ReplicaReport>,
) -> Result<Json<ReplicaReply>, ApiError> {
    let mut tx = app.platform().await?;
    let reply = replica::take_report(&mut tx, replica.replica_id, &said).await?;
    tx.commit_at(FailPoint::ReplicaReport).await?;
    Ok(Json(reply))
}
