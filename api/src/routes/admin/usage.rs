//! Usage and costs, in time buckets. A key has access to its own project only.

use attune_domain::{
    access::{Role, Scope},
    id::{ApiKey, Id},
};
use attune_store::{
    files::storage,
    tenancy::{
        api_key::Holder,
        usage::{self, Question, Sums},
    },
};
use axum::{Json, extract::State};
use chrono::Utc;

use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    files::storage::quota,
    http::{
        pagination::{LATEST, Params},
        path_id::truncated,
    },
    jobs::quotas as project_quotas,
    policy::Policy,
    wire::{
        project_queue::QuotasView,
        query::{AtPage, CompletionsGroup, CostsGroup, Days, Interval, KeyId, OfProjects, TrainingGroup},
        usage::{Bucket, CompletionsUsage, Cost, Page, StorageUsage, TrainingUsage},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[
    Policy::project("usage_completions", Scope::UsageRead, Role::Viewer),
    Policy::project("usage_training", Scope::UsageRead, Role::Viewer),
    Policy::project("costs", Scope::UsageRead, Role::Viewer),
    Policy::project("usage_storage", Scope::UsageRead, Role::Viewer),
    Policy::project("usage_quotas", Scope::UsageRead, Role::Viewer),
];

/// Bucket widths: the name, the seconds, the default number of buckets and the maximum number of buckets.
const WIDTHS: [(&str, i64, i64, i64); 3] = [("1m", 60, 60, 1440), ("1h", 3600, 24, 168), ("1d", 86_400, 7, 31)];

/// The maximum number of buckets in a report on costs.
const MOST_COSTS: i64 = 180;

/// Report the usage of completions.
#[utoipa::path(get, path = "/v1/organization/usage/completions", tag = "Usage", operation_id = "usage_completions",
    params(
        Interval,
        ("group_by" = Option<Vec<CompletionsGroup>>, Query, description = "The fields to group results by."),
        OfProjects,
        ("api_key_ids" = Option<Vec<KeyId>>, Query, description = "Return only usage of these API keys."),
        ("models" = Option<Vec<String>>, Query, description = "Return only usage of these models."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1440,
            description = "Number of buckets. Default (maximum): 7 (31) of `1d`, 24 (168) of `1h`, 60 (1440) of `1m`."),
        AtPage,
    ),
    responses((status = 200, body = Page<CompletionsUsage>), (status = "4XX", body = ErrorBody)))]
pub async fn completions(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<Page<CompletionsUsage>>, ApiError> {
    let asked = Asked::read(query, &holder, "completions", CompletionsGroup::WORDS)?;
    asked.answer(&app, &holder, CompletionsUsage::new).await.map(Json)
}

/// Report the usage of training, for runs that have ended. Attune extension.
#[utoipa::path(get, path = "/v1/organization/usage/training", tag = "Usage", operation_id = "usage_training",
    params(
        Interval,
        ("group_by" = Option<Vec<TrainingGroup>>, Query, description = "The fields to group results by."),
        OfProjects,
        ("api_key_ids" = Option<Vec<KeyId>>, Query,
            description = "Return only usage of jobs that these API keys created."),
        ("models" = Option<Vec<String>>, Query, description = "Return only usage of these base models."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1440,
            description = "Number of buckets, as for completions."),
        AtPage,
    ),
    responses((status = 200, body = Page<TrainingUsage>), (status = "4XX", body = ErrorBody)))]
pub async fn training(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<Page<TrainingUsage>>, ApiError> {
    let asked = Asked::read(query, &holder, "training", TrainingGroup::WORDS)?;
    asked.answer(&app, &holder, TrainingUsage::new).await.map(Json)
}

/// Report the costs, at the prices in force at the time.
#[utoipa::path(get, path = "/v1/organization/costs", tag = "Usage", operation_id = "costs",
    params(
        Days,
        ("group_by" = Option<Vec<CostsGroup>>, Query, description = "The fields to group results by."),
        OfProjects,
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 180, description = "Number of days. Defaults to 7."),
        AtPage,
    ),
    responses((status = 200, body = Page<Cost>), (status = "4XX", body = ErrorBody)))]
pub async fn costs(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<Page<Cost>>, ApiError> {
    let asked = Asked::read(query, &holder, "costs", CostsGroup::WORDS)?;
    asked.answer(&app, &holder, Cost::new).await.map(Json)
}

/// Report the storage that the project uses. Attune extension.
#[utoipa::path(get, path = "/v1/organization/usage/storage", tag = "Usage", operation_id = "usage_storage",
    responses((status = 200, body = StorageUsage), (status = "4XX", body = ErrorBody)))]
pub async fn storage(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<StorageUsage>, ApiError> {
    query.done()?;
    let mut db = app.tenant(holder.project_id).await?;
    let stored = storage::stored(&mut db, holder.project_id).await?;
    let quota = quota(&app, &mut db, holder.project_id).await?;
    Ok(Json(StorageUsage {
        object: "organization.usage.storage",
        project_id: holder.project_id.to_string(),
        bytes: stored.bytes.0,
        objects: stored.objects,
        limit_bytes: quota.bytes.0,
        limit_objects: quota.objects,
    }))
}

/// Report the project's quotas and their use: running jobs, node-hours, stored bytes, spending. Attune extension.
#[utoipa::path(get, path = "/v1/organization/usage/quotas", tag = "Usage", operation_id = "usage_quotas",
    responses((status = 200, body = QuotasView), (status = "4XX", body = ErrorBody)))]
pub async fn quotas(
    State(app): State<App>,
    Caller(holder): Caller,
    query: Params,
) -> Result<Json<QuotasView>, ApiError> {
    query.done()?;
    let mut db = app.platform().await?;
    Ok(Json(project_quotas::of(&app, &mut db, holder.project_id).await?))
}

/// The parameters of a report.
#[derive(Debug)]
struct Asked {
    question: Question,
    /// The maximum number of buckets in this page.
    limit: i64,
    /// `true` if the report is grouped by project.
    by_project: bool,
    /// `true` if `project_ids` was given without the caller's project.
    is_of_others: bool,
}

impl Asked {
    fn read(mut query: Params, holder: &Holder, report: &str, groups: &[&str]) -> Result<Self, ApiError> {
        let is_costs = report == "costs";
        let start = query.moment("start_time")?.ok_or_else(|| ApiError::Invalid {
            param: Some("start_time".into()),
            code: "missing_required_parameter",
            message: "Missing required parameter: 'start_time'.".into(),
        })?;
        let end = query.moment("end_time")?.unwrap_or_else(|| Utc::now().timestamp() + 1);
        let (_, width, usual, most) = width(query.take("bucket_width")?.as_deref(), is_costs)?;
        let limit = query.limit(usual, if is_costs { MOST_COSTS } else { most })?;
        let grouped = query.take_all("group_by");
        if let Some(wrong) = grouped.iter().find(|group| !groups.contains(&group.as_str())) {
            let message = format!("Invalid 'group_by': '{wrong}'; it must be one of {}.", groups.join(", "));
            return Err(ApiError::invalid("group_by", message));
        }
        let by = |name: &str| grouped.iter().any(|group| group == name);
        let projects = query.take_all("project_ids");
        let (api_keys, models) =
            if is_costs { (None, None) } else { (keys(&mut query)?, Some(query.take_all("models"))) };
        let from = query.take("page")?.map_or(Ok(start), |page| page_start(&page))?;
        query.done()?;
        Ok(Self {
            question: Question {
                kind: ["completions", "training"].into_iter().find(|kind| *kind == report),
                from: from - from.rem_euclid(width),
                until: end,
                width,
                api_keys,
                models: models.filter(|models| !models.is_empty()),
                by_key: by("api_key_id"),
                by_model: by("model"),
                by_adapter: by("adapter_id"),
                by_job: by("fine_tuning_job_id"),
                by_kind: by("line_item"),
            },
            limit,
            by_project: by("project_id"),
            is_of_others: !projects.is_empty() && !projects.contains(&holder.project_id.to_string()),
        })
    }

    /// Returns the page, with the sums of each bucket converted by `result`.
    async fn answer<T>(
        mut self,
        app: &App,
        holder: &Holder,
        result: impl Fn(Sums, Option<&str>) -> T,
    ) -> Result<Page<T>, ApiError> {
        let (from, width, end) = (self.question.from, self.question.width, self.question.until);
        let stop = from.saturating_add(self.limit.saturating_mul(width));
        self.question.until = end.min(stop);
        let mut sums = Vec::new();
        if !self.is_of_others && from < self.question.until {
            let mut db = app.tenant(holder.project_id).await?;
            sums = usage::sums(&mut db, holder.project_id, &self.question).await?;
        }
        let project = holder.project_id.to_string();
        let project = self.by_project.then_some(project.as_str());
        let mut sums = sums.into_iter().peekable();
        let mut data = Vec::new();
        let mut at = from;
        while at < self.question.until {
            let mut results = Vec::new();
            while let Some(of_bucket) = sums.next_if(|sums| sums.bucket == at.div_euclid(width)) {
                results.push(result(of_bucket, project));
            }
            data.push(Bucket { object: "bucket", start_time: at, end_time: at + width, results });
            at += width;
        }
        let has_more = at < end;
        Ok(Page { object: "page", data, has_more, next_page: has_more.then(|| format!("page_{at}")) })
    }
}

fn width(asked: Option<&str>, only_days: bool) -> Result<(&'static str, i64, i64, i64), ApiError> {
    let asked = asked.unwrap_or("1d");
    WIDTHS.into_iter().find(|(name, ..)| *name == asked && (!only_days || *name == "1d")).ok_or_else(|| {
        let allowed = if only_days { "1d" } else { "1m, 1h or 1d" };
        ApiError::invalid("bucket_width", format!("Invalid 'bucket_width': '{asked}'; it must be {allowed}."))
    })
}

fn keys(query: &mut Params) -> Result<Option<Vec<uuid::Uuid>>, ApiError> {
    let named = query.take_all("api_key_ids");
    let keys: Result<Vec<_>, _> = named.iter().map(|key| key.parse::<Id<ApiKey>>().map(|id| id.uuid())).collect();
    let keys = keys.map_err(|e| ApiError::invalid("api_key_ids", format!("Invalid 'api_key_ids': {e}.")))?;
    Ok(Some(keys).filter(|keys| !keys.is_empty()))
}

fn page_start(page: &str) -> Result<i64, ApiError> {
    let start = page.strip_prefix("page_").and_then(|start| start.parse().ok());
    start.filter(|start| (0..=LATEST).contains(start)).ok_or_else(|| {
        let shown = truncated(page);
        ApiError::invalid("page", format!("Invalid 'page': '{shown}' is not the 'next_page' of a report."))
    })
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        access::Actor,
        id::{ApiKeyId, OrganizationId, ProjectId},
    };
    use axum::{
        extract::FromRequestParts,
        http::{Request, request::Parts},
    };
    use uuid::Uuid;

    use super::*;

    fn holder() -> Holder {
        Holder {
            actor: Actor::ApiKey(ApiKeyId::new(Uuid::from_u128(1))),
            api_key_id: Some(ApiKeyId::new(Uuid::from_u128(1))),
            project_id: ProjectId::new(Uuid::from_u128(2)),
            project: "default".into(),
            organization_id: OrganizationId::new(Uuid::from_u128(3)),
            organization: "default".into(),
            administers_installation: false,
        }
    }

    async fn asked(report: &str, query: &str) -> Result<Asked, ApiError> {
        let request = Request::builder().uri(format!("/v1/organization/x?{query}")).body(()).unwrap();
        let (mut parts, ()): (Parts, ()) = request.into_parts();
        let params = Params::from_request_parts(&mut parts, &()).await.unwrap();
        Asked::read(params, &holder(), report, &["project_id", "model"])
    }

    #[tokio::test]
    async fn a_report_begins_with_the_bucket_of_its_start() {
        let day = asked("completions", "start_time=90000&end_time=200000&group_by[]=model").await.unwrap();
        assert_eq!((day.question.from, day.question.width, day.limit), (86_400, 86_400, 7));
        assert!(day.question.by_model && !day.by_project);
        let next = asked("completions", "start_time=0&bucket_width=1h&page=page_7200&limit=168").await.unwrap();
        assert_eq!((next.question.from, next.question.width, next.limit), (7200, 3600, 168));
    }

    #[tokio::test]
    async fn what_cannot_be_reported_is_named() {
        for (report, query, param) in [
            ("completions", "", "start_time"),
            ("completions", "start_time=-1", "start_time"),
            ("completions", "start_time=0&bucket_width=1w", "bucket_width"),
            ("costs", "start_time=0&bucket_width=1h", "bucket_width"),
            ("costs", "start_time=0&limit=181", "limit"),
            ("completions", "start_time=0&limit=32", "limit"),
            ("completions", "start_time=0&group_by=line_item", "group_by"),
            ("completions", "start_time=0&api_key_ids=x", "api_key_ids"),
            ("completions", "start_time=0&page=2", "page"),
            ("costs", "start_time=0&models=x", "models"),
        ] {
            let refused = asked(report, query).await.unwrap_err().body().error;
            assert_eq!(refused.param.as_deref(), Some(param), "{report} {query}: {}", refused.message);
        }
    }

    #[tokio::test]
    async fn other_projects_usage_is_nothing() {
        let mine = holder().project_id;
        assert!(!asked("costs", &format!("start_time=0&project_ids[]={mine}")).await.unwrap().is_of_others);
        assert!(asked("costs", "start_time=0&project_ids=proj_1").await.unwrap().is_of_others);
    }
}
