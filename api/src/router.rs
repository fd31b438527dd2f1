//! The table of contents: every path, and the middleware of all of them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue, Method, header, header::InvalidHeaderValue},
    middleware::{from_fn, from_fn_with_state},
    routing::{get, post},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa::{OpenApi, openapi::OpenApi as Document};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::guard,
    config::Cors,
    http::{docs_ui, trace},
    middleware::{idempotency, organization_header, preconditions, rate_limit},
    openapi::{self, Doc},
    policy::Policies,
    routes::{
        POLICIES, adapter_aliases, adapter_promotion, adapter_residency, adapters,
        admin::{
            api_keys, audit_logs, budget, catalogue, organizations, project_queue, project_users, projects, status,
            usage, users,
        },
        base_models, batches, chat, checkpoint_permissions, completions, deployments, exports, files, health,
        job_events, job_placement, jobs, lorax, models, replica, responses, run, uploads, webhook_deliveries, webhooks,
    },
};

/// Returns all routes for users, and their OpenAPI document.
fn public() -> (Router<App>, Document) {
    let (router, mut document) = routes().split_for_parts();
    openapi::say_what_no_query_holds(&mut document);
    (router, document)
}

fn routes() -> OpenApiRouter<App> {
    // These handlers limit their bodies themselves, while they stream.
    let uploads = OpenApiRouter::new()
        .routes(routes!(files::create, files::list))
        .routes(routes!(uploads::add_part))
        .routes(routes!(base_models::find_blob, base_models::put_blob))
        .routes(routes!(adapters::list, adapters::import))
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::with_openapi(Doc::openapi())
        .merge(uploads)
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(files::content))
        .routes(routes!(files::preview))
        .routes(routes!(files::report))
        .routes(routes!(uploads::create))
        .routes(routes!(uploads::retrieve))
        .routes(routes!(uploads::complete))
        .routes(routes!(uploads::cancel))
        .routes(routes!(base_models::create, base_models::list))
        .routes(routes!(base_models::retrieve, base_models::delete))
        .routes(routes!(jobs::create, jobs::list))
        .routes(routes!(jobs::estimate))
        .routes(routes!(jobs::retrieve, jobs::update))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::pause))
        .routes(routes!(jobs::resume))
        .routes(routes!(job_events::events))
        .routes(routes!(jobs::checkpoints))
        .routes(routes!(job_placement::explain))
        .routes(routes!(checkpoint_permissions::create, checkpoint_permissions::list))
        .routes(routes!(checkpoint_permissions::delete))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve, models::delete))
        .merge(adapters())
        .routes(routes!(exports::create))
        .routes(routes!(exports::list))
        .routes(routes!(exports::retrieve, exports::delete))
        .routes(routes!(exports::file))
        .routes(routes!(usage::completions))
        .routes(routes!(usage::training))
        .routes(routes!(usage::costs))
        .routes(routes!(usage::storage))
        .routes(routes!(usage::quotas))
        .routes(routes!(budget::get, budget::set))
        .routes(routes!(chat::create))
        .routes(routes!(completions::create))
        .routes(routes!(responses::create))
        .routes(routes!(lorax::compatible))
        .routes(routes!(lorax::generate))
        .routes(routes!(lorax::generate_stream))
        .routes(routes!(deployments::create, deployments::list))
        .routes(routes!(deployments::retrieve, deployments::update, deployments::delete))
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::retrieve))
        .routes(routes!(batches::cancel))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::retrieve, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::rotate_secret))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhook_deliveries::list))
        .routes(routes!(webhook_deliveries::retrieve))
        .routes(routes!(webhook_deliveries::replay))
        .merge(administration())
        .routes(routes!(health::get))
}

/// Returns the routes of adapters' versions and aliases, except those that take large bodies.
fn adapters() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(adapters::retrieve))
        .routes(routes!(adapters::versions))
        .routes(routes!(adapters::manifest))
        .routes(routes!(adapters::file))
        .routes(routes!(adapters::export))
        .routes(routes!(adapters::metrics))
        .routes(routes!(adapter_residency::retrieve))
        .routes(routes!(adapter_residency::prefetch))
        .routes(routes!(adapter_aliases::list))
        .routes(routes!(adapter_aliases::retrieve, adapter_aliases::set, adapter_aliases::delete))
        .routes(routes!(adapter_aliases::moves))
        .routes(routes!(adapter_promotion::start_canary))
        .routes(routes!(adapter_promotion::promote))
        .routes(routes!(adapter_promotion::abort))
        .routes(routes!(adapter_promotion::roll_back))
        .routes(routes!(adapter_promotion::start_shadow, adapter_promotion::stop_shadow))
}

/// Returns the routes of an organization's administration.
fn administration() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(projects::list, projects::create))
        .routes(routes!(projects::retrieve, projects::modify))
        .routes(routes!(projects::archive))
        .routes(routes!(project_queue::retrieve, project_queue::set))
        .routes(routes!(api_keys::list, api_keys::create))
        .routes(routes!(api_keys::retrieve, api_keys::delete))
        .routes(routes!(project_users::list, project_users::create))
        .routes(routes!(project_users::retrieve, project_users::modify, project_users::delete))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::retrieve, users::modify, users::delete))
        .routes(routes!(audit_logs::list))
        .routes(routes!(status::retrieve))
        .routes(routes!(organizations::list, organizations::create))
        .routes(routes!(catalogue::list))
        .routes(routes!(catalogue::retrieve, catalogue::set, catalogue::delete))
}

/// Returns the routes for trainers and replicas, which the document does not describe.
fn internal() -> Router<App> {
    Router::new()
        .route("/internal/run/spec", get(run::spec))
        .route("/internal/run/blobs", post(run::blobs))
        .route("/internal/run/reports", post(run::reports))
        .route("/internal/replica/spec", get(replica::spec))
        .route("/internal/replica/reports", post(replica::reports))
}

/// Returns the OpenAPI document of the public routes.
pub fn document() -> Document {
    public().1
}

/// Adds the middleware of users' requests, from the innermost layer to the outermost.
fn with_middleware(public: Router<App>, app: &App) -> Router<App> {
    public
        .route_layer(from_fn(preconditions::keep))
        .route_layer(from_fn_with_state(app.clone(), idempotency::once))
        .route_layer(from_fn_with_state(app.clone(), rate_limit::limit))
        .route_layer(from_fn(organization_header::identify))
        .route_layer(from_fn_with_state(app.clone(), guard::guard))
}

/// Allows the pages of these origins to call the API.
fn cors(cors: &Cors) -> Result<CorsLayer, InvalidHeaderValue> {
    let origins: Vec<HeaderValue> = cors.allowed_origins.iter().map(|o| o.parse()).collect::<Result<_, _>>()?;
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let asked = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        HeaderName::from_static("last-event-id"),
        HeaderName::from_static("openai-organization"),
        HeaderName::from_static("openai-project"),
        idempotency::KEY,
        trace::CHOSEN,
    ];
    let told = [trace::HEADER, header::ETAG, header::RETRY_AFTER, header::CONTENT_DISPOSITION];
    let layer = CorsLayer::new().allow_origin(AllowOrigin::list(origins)).allow_methods(methods);
    Ok(layer.allow_headers(asked).expose_headers(told).max_age(Duration::from_secs(600)))
}

/// Returns the router of the whole API, reached at `public_url`.
///
/// # Errors
/// An origin of `allowed` is not a valid header value.
pub fn router(mut app: App, public_url: &str, allowed: &Cors) -> Result<Router, InvalidHeaderValue> {
    let (public, mut document) = public();
    app.policies = Arc::new(Policies::of(&document, POLICIES));
    let job = openapi::job_schema(&document).unwrap_or_default();
    document.servers = Some(vec![utoipa::openapi::Server::new(public_url)]);
    let json_bytes = usize::try_from(app.limits.json_bytes).unwrap_or(usize::MAX);
    let inner = with_middleware(public, &app)
        .merge(internal())
        .route("/openapi.json", get(move || std::future::ready(Json(document.clone()))))
        .route("/schemas/job.json", get(move || std::future::ready(Json(job.clone()))))
        .route("/docs", get(docs_ui::enter))
        .route("/docs/{*file}", get(docs_ui::file))
        .fallback(trace::no_such_route)
        .method_not_allowed_fallback(trace::method_not_allowed)
        .layer(DefaultBodyLimit::max(json_bytes))
        .layer(from_fn(trace::plain_path))
        .layer(CatchPanicLayer::custom(trace::panicked));
    let inner = if allowed.allowed_origins.is_empty() { inner } else { inner.layer(cors(allowed)?) };
    let inner = inner.layer(from_fn(trace::trace)).layer(from_fn(attune_inbound::measure)).with_state(app);
    Ok(Router::new().fallback_service(inner).layer(from_fn(trace::normalize)))
}
