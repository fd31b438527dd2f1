//! The state of the queue, the runs, the machines and the replicas.

use attune_store::status;
use axum::{Json, extract::State};

use crate::{
    app::App,
    auth::caller::Administrator,
    error::{ApiError, ErrorBody},
    http::pagination::Params,
    policy::Policy,
    wire::status::OrganizationStatusView,
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[Policy::organization("retrieve_organization_status")];

/// Retrieve the organization's status.
///
/// The response has the queued jobs and the runs of all projects of the organization, the machines that the providers
/// offer, and the serving processes. Each list has its first 100 objects and the number of all. Of the other
/// organizations it has counts only.
#[utoipa::path(get, path = "/v1/organization/status", tag = "Organization",
    operation_id = "retrieve_organization_status",
    responses((status = 200, body = OrganizationStatusView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    query: Params,
) -> Result<Json<OrganizationStatusView>, ApiError> {
    query.done()?;
    let owner = administrator.organization_id;
    let mut tx = app.organization(owner).await?;
    Ok(Json(status::read(&mut tx, owner).await?.into()))
}
