//! What a project may spend in a month.

use attune_domain::id::ProjectId;
use attune_store::{db::Tenant, tenancy::money};
use axum::{Json, extract::State};
use sqlx::PgConnection;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::json_body::Body,
    middleware::preconditions::{self, Demands},
    wire::money::{BudgetView, NewBudget},
};

/// Look at the project's budget, and at what it has spent this month.
#[utoipa::path(get, path = "/v1/budget", tag = "Usage", operation_id = "retrieve_budget",
    responses((status = 200, body = BudgetView), (status = "4XX", body = ErrorBody)))]
pub async fn get(State(app): State<App>, Caller(holder): Caller) -> Result<Json<BudgetView>, ApiError> {
    let mut db = app.platform().await?;
    preconditions::hold(&mut db, Tenant::Project(holder.project_id), Demands::All).await?;
    shown(&mut db, holder.project_id).await
}

/// The budget, and what runs that are at work have spent of it, which is for the platform to reckon.
async fn shown(platform: &mut PgConnection, project: ProjectId) -> Result<Json<BudgetView>, ApiError> {
    let budget = money::budget(platform, project).await?;
    Ok(Json(BudgetView::new(project.to_string(), budget)))
}

/// Set the project's budget.
///
/// When it is spent, jobs that run are paused at their next report and jobs that wait are not started; they go on within
/// seconds when it is raised or taken away (`null`), or when the next month begins. Answers to chats are counted, and
/// never refused.
#[utoipa::path(post, path = "/v1/budget", tag = "Usage", operation_id = "set_budget", request_body = NewBudget,
    responses((status = 200, body = BudgetView), (status = "4XX", body = ErrorBody)))]
pub async fn set(
    State(app): State<App>,
    Caller(holder): Caller,
    Body(new): Body<NewBudget>,
) -> Result<Json<BudgetView>, ApiError> {
    let monthly = new.checked()?;
    let mut tx = app.tenant(holder.project_id).await?;
    money::set_budget(&mut tx, holder.project_id, monthly).await?;
    tx.commit().await?;
    shown(&mut *app.platform().await?, holder.project_id).await
}
