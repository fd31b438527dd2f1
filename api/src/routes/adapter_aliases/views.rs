//! The views of an adapter's aliases, with their canaries and shadows.

use std::collections::HashMap;

use attune_domain::id::ProjectId;
use attune_store::adapters::{adapter_alias, adapter_canary, adapter_shadow, adapter_traffic};
use sqlx::PgConnection;

use crate::{
    error::ApiError,
    wire::{
        adapter::AliasView,
        promotion::{canary::CanaryView, shadow::ShadowView},
    },
};

/// Returns the view of an alias.
///
/// # Errors
/// [`ApiError::NotFound`].
pub(crate) async fn view(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: &str,
) -> Result<AliasView, ApiError> {
    let found = views(db, project, adapter, Some(alias)).await?.pop();
    found.ok_or_else(|| ApiError::NotFound { noun: "alias", name: format!("{adapter}@{alias}") })
}

/// Returns the views of an adapter's aliases by name; only of the one with this name, if one is given.
pub(crate) async fn views(
    db: &mut PgConnection,
    project: ProjectId,
    adapter: &str,
    alias: Option<&str>,
) -> Result<Vec<AliasView>, ApiError> {
    let aliases = adapter_alias::list(db, project, adapter, alias).await?;
    let canaries = adapter_canary::last(db, project, adapter, alias).await?;
    let ids: Vec<_> = canaries.iter().map(|canary| canary.adapter_canary_id).collect();
    let mut observed = adapter_traffic::of_canaries(db, &ids).await?;
    let canaries = canaries.into_iter().map(|canary| {
        let id = canary.adapter_canary_id;
        let mut of = |version| observed.remove(&(id, version)).unwrap_or_default();
        let (trial, stable) = (of(canary.adapter_version_id), of(canary.stable_version_id));
        (canary.alias.clone(), CanaryView::new(canary, trial, stable))
    });
    let mut canaries: HashMap<_, _> = canaries.collect();
    let shadows = adapter_shadow::last(db, project, adapter, alias).await?.into_iter();
    let mut shadows: HashMap<_, _> = shadows.map(|shadow| (shadow.alias.clone(), ShadowView::from(shadow))).collect();
    let views = aliases.into_iter().map(|alias| {
        let (canary, shadow) = (canaries.remove(&alias.alias), shadows.remove(&alias.alias));
        AliasView::new(adapter, alias, canary, shadow)
    });
    Ok(views.collect())
}
