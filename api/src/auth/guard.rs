//! The authentication and authorization of users' requests, before their bodies are read: the caller, the project, and
//! the permission. Handlers then extract [`crate::auth::caller::Caller`] or [`crate::auth::caller::Administrator`].
//!
//! An operation without a policy ([`crate::policy`]) is refused to all callers.

use std::net::{IpAddr, SocketAddr};

use attune_domain::access::{Actor, Role};
use attune_store::tenancy::{api_key::Holder, audit::Origin};
use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderMap, Method},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    app::App,
    auth::{
        bearer::bearer,
        caller::{Administrator, Caller},
        credentials::Credential,
        permissions::{Level, Permission, Rule},
    },
    error::ApiError,
    http::{request_context::RequestContext, trace::RequestId},
};

/// Authenticates and authorizes the request, or refuses it.
pub async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let Some(policy) = path.and_then(|path| app.policies.find(request.method(), &path)) else {
        return ApiError::internal("the operation has no policy").into_response();
    };
    request.extensions_mut().insert(policy);
    let permission = match policy.rule {
        Rule::Open => return next.run(request).await,
        Rule::Asks(permission) => permission,
    };
    match admit(&app, &permission, &mut request).await {
        Ok(actor) => {
            let context = RequestContext::current().with_origin(noted(policy.operation, actor, &request));
            context.run(next.run(request)).await
        }
        Err(error) => error.into_response(),
    }
}

/// Returns the origin of a request for the audit log; `None` for methods that change nothing.
fn noted(operation: &'static str, actor: Actor, request: &Request) -> Option<Origin> {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return None;
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| canonical(info.0.ip()));
    let id = request.extensions().get::<RequestId>().and_then(|id| id.0.strip_prefix("req_")?.parse().ok());
    let request = id.unwrap_or_else(uuid::Uuid::new_v4);
    Some(Origin { actor, address, request, operation })
}

/// Returns an IPv4-mapped IPv6 address as an IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

async fn admit(app: &App, permission: &Permission, request: &mut Request) -> Result<Actor, ApiError> {
    let secret = bearer(request.headers())?;
    let credential = app.authenticator.check(secret).await?;
    match permission.level {
        Level::Project => {
            let holder = project(&credential, permission, request.headers())?;
            tracing::Span::current().record("project.id", tracing::field::display(holder.project_id));
            let actor = holder.actor;
            request.extensions_mut().insert(Caller(holder));
            Ok(actor)
        }
        Level::Organization | Level::Installation => {
            let administrator = organization(&credential, permission, request.headers())?;
            let actor = administrator.actor;
            request.extensions_mut().insert(administrator);
            Ok(actor)
        }
    }
}

/// Returns the holder for a request to a project, if it is permitted.
fn project(credential: &Credential, permission: &Permission, headers: &HeaderMap) -> Result<Holder, ApiError> {
    let (wanted, of) = (header_text(headers, "openai-project")?, header_text(headers, "openai-organization")?);
    match credential {
        Credential::Key(grant, _) => {
            key_matches(&grant.holder, wanted, of)?;
            permission.check_key(&grant.scopes)?;
            Ok(grant.holder.clone())
        }
        Credential::Person(person) => {
            let reach = person.choose_project(wanted, of)?;
            permission.check_role(reach.role)?;
            Ok(person.holder(reach))
        }
    }
}

fn organization(
    credential: &Credential,
    permission: &Permission,
    headers: &HeaderMap,
) -> Result<Administrator, ApiError> {
    let of = header_text(headers, "openai-organization")?;
    match credential {
        Credential::Key(grant, _) => {
            let holder = &grant.holder;
            key_matches(holder, header_text(headers, "openai-project")?, of)?;
            permission.check_key(&grant.scopes)?;
            // A key with the administration scope acts with the role of an owner.
            Ok(Administrator {
                actor: holder.actor,
                organization_id: holder.organization_id,
                role: Role::Owner,
                administers_installation: holder.administers_installation,
            })
        }
        Credential::Person(person) => {
            let belonging = person.choose_organization(of)?;
            permission.check_role(belonging.role)?;
            Ok(Administrator {
                actor: Actor::Person(person.person_id),
                organization_id: belonging.organization_id,
                role: belonging.role,
                administers_installation: false,
            })
        }
    }
}

/// Checks that the headers, if they are set, name the key's own project and organization.
fn key_matches(holder: &Holder, project: Option<&str>, organization: Option<&str>) -> Result<(), ApiError> {
    let same = project.is_none_or(|id| id == holder.project_id.to_string())
        && organization.is_none_or(|id| id == holder.organization_id.to_string());
    if same { Ok(()) } else { Err(ApiError::Mismatched) }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    match headers.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        Some(Err(_)) => Err(ApiError::Mismatched),
    }
}
