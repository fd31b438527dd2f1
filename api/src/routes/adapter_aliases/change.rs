//! Changes of an alias: each is one transaction, in which the adapter is locked.

use attune_domain::id::{AdapterId, AdapterVersionId, ProjectId};
use attune_process::failpoint::FailPoint;
use attune_store::{
    adapters::{
        adapter::{self, AdapterVersion},
        adapter_alias,
    },
    db::Tx,
    error::StoreError,
};
use axum::Json;

use super::views::view;
use crate::{app::App, error::ApiError, http::path_id::truncated, routes::adapters::find, wire::adapter::AliasView};

/// A change of an alias, which may not exist yet.
pub(crate) struct AliasChange {
    /// The transaction; it locks the adapter.
    pub(crate) tx: Tx,
    /// The adapter's project.
    pub(crate) project: ProjectId,
    /// The adapter's ID.
    pub(crate) adapter_id: AdapterId,
    /// The alias, without its adapter.
    pub(crate) alias: String,
    /// The alias with its adapter: `records@prod`.
    pub(crate) whole: String,
    adapter: String,
}

impl AliasChange {
    /// Begins a change of an alias. The adapter is named as in a path.
    ///
    /// # Errors
    /// [`ApiError::NotFound`]: there is no such adapter. As [`App::tenant`].
    pub(crate) async fn begin(
        app: &App,
        project: ProjectId,
        (name, alias): (String, String),
    ) -> Result<Self, ApiError> {
        let mut tx = app.tenant(project).await?;
        let adapter = find(&mut tx, project, name).await?.adapter;
        let adapter_id = adapter_alias::lock(&mut tx, project, &adapter).await?;
        let whole = format!("{adapter}@{alias}");
        Ok(Self { tx, project, adapter_id, alias, whole, adapter })
    }

    /// Returns the view of the alias.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub(crate) async fn view(&mut self) -> Result<AliasView, ApiError> {
        view(&mut self.tx, self.project, &self.adapter, &self.alias).await
    }

    /// Returns a version of the adapter by its number or by any of its names, locked until the transaction ends.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the adapter does not have the version that the parameter names.
    pub(crate) async fn version(&mut self, param: &'static str, given: &str) -> Result<AdapterVersion, ApiError> {
        let adapter = &self.adapter;
        let is_number = !given.is_empty() && given.bytes().all(|b| b.is_ascii_digit());
        let reference = if is_number { format!("{adapter}@{given}") } else { given.to_owned() };
        let shown = truncated(given);
        match adapter::lock(&mut self.tx, self.project, &reference).await {
            Ok(version) if version.adapter == *adapter => Ok(version),
            Ok(version) => {
                let other = &version.adapter;
                let message = format!("Invalid '{param}': '{shown}' is a version of '{other}', not of '{adapter}'.");
                Err(ApiError::invalid(param, message))
            }
            Err(StoreError::NotFound(_)) => {
                Err(ApiError::invalid(param, format!("Invalid '{param}': '{adapter}' has no version '{shown}'.")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Commits the change. Returns the view of the alias after it.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub(crate) async fn commit(self) -> Result<Json<AliasView>, ApiError> {
        self.commit_at(&[]).await
    }

    /// Commits as [`AliasChange::commit`], with fail points around it.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub(crate) async fn commit_at(mut self, points: &[FailPoint]) -> Result<Json<AliasView>, ApiError> {
        let view = self.view().await?;
        self.tx.commit_at_all(points).await?;
        Ok(Json(view))
    }

    /// Returns the refusal of a change that is not possible while a canary runs.
    pub(crate) fn canary_runs(&self, canary: AdapterVersionId) -> ApiError {
        let whole = &self.whole;
        let message =
            format!("A canary with {canary} runs on '{whole}'. Promote or abort it first. Nothing was changed.");
        ApiError::Conflict(message)
    }
}
