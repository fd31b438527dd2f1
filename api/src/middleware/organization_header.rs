//! The response header with the organization's name, as OpenAI sends it.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

use crate::auth::caller::Caller;

/// OpenAI's header with the organization's name.
const ORGANIZATION: HeaderName = HeaderName::from_static("openai-organization");

/// Adds the name of the caller's organization to the response.
pub async fn identify(request: Request, next: Next) -> Response {
    let organization = request.extensions().get::<Caller>().map(|caller| caller.0.organization.clone());
    let mut response = next.run(request).await;
    if let Some(Ok(name)) = organization.map(|name| HeaderValue::from_str(&name)) {
        response.headers_mut().insert(ORGANIZATION, name);
    }
    response
}
