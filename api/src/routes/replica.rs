//! Endpoints that serving processes call: their spec, and their status reports. See `domain::serve`.

use attune_domain::{
    bytes::Bytes,
    run::Directive,
    serve::{ReplicaReply, ReplicaReport, ServeSpec},
};
use attune_process::failpoint::FailPoint;
use attune_store::{
    pools::pins,
    replica::{self, Replica},
};
use axum::{Json, extract::State};

use crate::{app::App, auth::caller::TokenHolder, error::ApiError, http::json_body::Body};

/// Returns the replica's spec, with newly presigned URLs.
pub async fn spec(
    State(app): State<App>,
    TokenHolder(replica): TokenHolder<Replica>,
) -> Result<Json<ServeSpec>, ApiError> {
    let mut db = app.platform().await?;
    let spec = replica::spec(&mut db, &app.objects, &replica).await?;
    let serving = &app.inference.serving;
    let disk_cache = Bytes(serving.disk_cache_bytes);
    Ok(Json(ServeSpec { compute: serving.compute, speculation: serving.speculation, disk_cache, ..spec }))
}

/// Records a status report of the replica. The reply names the adapters that it keeps in memory.
pub async fn reports(
    State(app): State<App>,
    TokenHolder(replica): TokenHolder<Replica>,
    Body(said): Body<ReplicaReport>,
) -> Result<Json<ReplicaReply>, ApiError> {
    let mut tx = app.platform().await?;
    let mut reply = replica::take_report(&mut tx, replica.replica_id, &said).await?;
    if reply.directive == Directive::Continue {
        let pins = pins::of_pool(&mut tx, &app.objects, replica.base, &said.resident_adapters).await?;
        reply = ReplicaReply { pinned: pins.pinned, prefetch: pins.prefetch, ..reply };
        reply = replica::instruct(&mut tx, &app.objects, &replica, &said, reply).await?;
    }
    tx.commit_at(FailPoint::ReplicaReport).await?;
    Ok(Json(reply))
}
