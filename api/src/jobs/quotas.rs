//! The quotas of a project, and their use.

use attune_domain::id::ProjectId;
use attune_store::{
    files::storage,
    tenancy::{money, project_queue},
};
use sqlx::PgConnection;

use crate::{app::App, error::ApiError, files::storage::quota, wire::project_queue::QuotasView};

/// Returns a project's quotas and their use. For a transaction of the platform: tenants cannot see the nodes of active
/// runs.
///
/// # Errors
/// [`ApiError::Internal`].
pub async fn of(app: &App, platform: &mut PgConnection, project: ProjectId) -> Result<QuotasView, ApiError> {
    let settings = project_queue::get(platform, project).await?;
    let used = project_queue::used(platform, project).await?;
    let budget = money::budget(platform, project).await?;
    let stored = storage::stored(platform, project).await?;
    let max_stored = quota(app, platform, project).await?;
    Ok(QuotasView::new(project, settings, (used, budget), (stored, max_stored)))
}
