//! The catalogue of instance types. All organizations read it; the installation's administrators change it.

use attune_domain::{
    bad_field::BadField,
    catalogue::{EntryId, built_in, check},
};
use attune_store::{catalogue, db, version::Thing};
use axum::{
    Json,
    extract::{Path, State},
};
use chrono::Utc;

use crate::{
    app::App,
    auth::caller::Administrator,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, path_id::truncated},
    policy::Policy,
    wire::{
        catalogue::{CatalogueEntryView, CatalogueView, NewCatalogueEntry},
        file::Deleted,
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::organization("list_catalogue"),
    Policy::organization("retrieve_catalogue_entry").retrieves(Thing::CatalogueEntry),
    Policy::installation("set_catalogue_entry").names(Thing::CatalogueEntry),
    Policy::installation("delete_catalogue_entry").names(Thing::CatalogueEntry),
];

/// List the catalogue.
///
/// The response has the kinds of GPUs and the instance types of AWS, Azure and GCP with their prices, of the date that
/// each entry names.
#[utoipa::path(get, path = "/v1/organization/catalogue", tag = "Organization", operation_id = "list_catalogue",
    responses((status = 200, body = CatalogueView), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(app): State<App>, administrator: Administrator) -> Result<Json<CatalogueView>, ApiError> {
    let mut db = app.organization(administrator.organization_id).await?;
    Ok(Json(CatalogueView::new(catalogue::load(&mut db).await?, Utc::now().timestamp())))
}

/// Retrieve an entry of the catalogue.
#[utoipa::path(get, path = "/v1/organization/catalogue/{entry_id}", tag = "Organization",
    operation_id = "retrieve_catalogue_entry", params(("entry_id" = String, Path)),
    responses((status = 200, body = CatalogueEntryView), (status = "4XX", body = ErrorBody)))]
pub async fn retrieve(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<CatalogueEntryView>, ApiError> {
    let mut db = app.organization(administrator.organization_id).await?;
    let entry = catalogue::get(&mut db, &known(&id)?).await.map_err(ApiError::on_read(id))?;
    Ok(Json(CatalogueEntryView::new(entry, Utc::now().timestamp())))
}

/// Set an entry of the catalogue.
///
/// The entry is added, or replaces the one with this ID, which is `cloud.instance_type.region`. A price that is
/// implausible for its GPUs, or more than 90 days old, is refused.
#[utoipa::path(post, path = "/v1/organization/catalogue/{entry_id}", tag = "Installation",
    operation_id = "set_catalogue_entry", params(("entry_id" = String, Path)), request_body = NewCatalogueEntry,
    responses((status = 200, body = CatalogueEntryView), (status = "4XX", body = ErrorBody)))]
pub async fn set(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
    Body(new): Body<NewCatalogueEntry>,
) -> Result<Json<CatalogueEntryView>, ApiError> {
    let id: EntryId = id.parse().map_err(|wrong: BadField| ApiError::from(wrong))?;
    let (entry, now) = (new.entry(id)?, Utc::now().timestamp());
    check(&entry, &built_in().gpus, now)?;
    let mut tx = app.organization(administrator.organization_id).await?;
    db::as_installation(&mut tx).await?;
    catalogue::set(&mut tx, &entry).await?;
    tx.commit().await?;
    Ok(Json(CatalogueEntryView::new(entry, now)))
}

/// Delete an entry of the catalogue.
///
/// An entry that this version of the platform has is hidden until it is set again.
#[utoipa::path(delete, path = "/v1/organization/catalogue/{entry_id}", tag = "Installation",
    operation_id = "delete_catalogue_entry", params(("entry_id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let mut tx = app.organization(administrator.organization_id).await?;
    db::as_installation(&mut tx).await?;
    catalogue::remove(&mut tx, &known(&id)?).await.map_err(ApiError::on_read(id.clone()))?;
    tx.commit().await?;
    Ok(Json(Deleted { id, object: "catalogue.entry", deleted: true }))
}

/// Parses an ID. A text that is not an ID is reported like an entry that does not exist.
fn known(id: &str) -> Result<EntryId, ApiError> {
    id.parse().map_err(|_| ApiError::NotFound { noun: "catalogue entry", name: truncated(id) })
}
