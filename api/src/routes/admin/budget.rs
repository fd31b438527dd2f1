//! The monthly budget of a project.

use attune_domain::{
    access::{Role, Scope},
    id::ProjectId,
};
use attune_store::{db::Tenant, tenancy::money, version::Thing};
use axum::{Json, extract::State};
use sqlx::PgConnection;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, request_context::RequestContext},
    middleware::conditions::Demands,
    policy::Policy,
    wire::money::{BudgetView, NewBudget},
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("retrieve_budget", Scope::UsageRead, Role::Viewer).retrieves(Thing::Budget),
    // Members who spend the budget must not set it.
    Policy::project("set_budget", Scope::All, Role::Admin).names(Thing::Budget),
];

/// Retrieve the project's budget and its spending this month.
#[utoipa::path(get, path = "/v1/budget", tag = "Usage", operation_id = "retrieve_budget",
    responses((status = 200, body = BudgetView), (status = "4XX", body = ErrorBody)))]
pub async fn get(State(app): State<App>, Caller(holder): Caller) -> Result<Json<BudgetView>, ApiError> {
    let mut db = app.platform().await?;
    RequestContext::current().check(&mut db, Tenant::Project(holder.project_id), Demands::All).await?;
    budget_view(&mut db, holder.project_id).await
}

/// Returns the budget and its spending. Spending includes runs in progress, which only the platform's role can compute.
async fn budget_view(platform: &mut PgConnection, project: ProjectId) -> Result<Json<BudgetView>, ApiError> {
    let budget = money::budget(platform, project).await?;
    Ok(Json(BudgetView::new(project.to_string(), budget)))
}

/// Set the project's budget.
///
/// When the budget is spent, running jobs are paused at their next report and waiting jobs are not started. They
/// continue within seconds when the budget is raised or removed (`null`), or when the next month begins. Completions
/// count towards the budget, and are never refused.
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
    budget_view(&mut *app.platform().await?, holder.project_id).await
}
