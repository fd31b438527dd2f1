//! `/docs`: the OpenAPI document in Swagger UI, whose files are embedded in this program: neither the build nor the
//! browser contacts another host.

use std::sync::{Arc, LazyLock};

use axum::{
    extract::Path,
    http::{HeaderValue, Uri, header},
    response::{IntoResponse, Redirect, Response},
};
use utoipa_swagger_ui::Config;

use crate::error::ApiError;

/// The Content-Security-Policy of the page: it may load its own files and the document; some of its styles are inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    let config = Config::new(["/openapi.json"]).display_request_duration(true).try_it_out_enabled(false);
    Arc::new(config.validator_url("none"))
});

/// Redirects to the page, whose files are named relative to `/docs/`.
pub async fn enter() -> Redirect {
    Redirect::permanent("/docs/index.html")
}

/// Returns the page, or one of its files.
///
/// # Errors
/// [`ApiError::NoSuchRoute`]: the file does not exist.
pub async fn file(Path(name): Path<String>, uri: Uri) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(&name, Arc::clone(&CONFIG)).map_err(|e| ApiError::internal(e.to_string()))?;
    let missing = || ApiError::NoSuchRoute { method: "GET".into(), path: uri.path().to_owned() };
    let found = found.ok_or_else(missing)?;
    let mut response = found.bytes.into_owned().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(&found.content_type).map_err(ApiError::internal)?);
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn read(name: &str) -> (Response<()>, String) {
        let response = file(Path(name.into()), Uri::from_static("/docs/x")).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, 64 << 20).await.unwrap().to_vec()).unwrap();
        (Response::from_parts(parts, ()), text)
    }

    /// Returns the URLs of everything that the page's markup loads.
    fn loaded(page: &str) -> Vec<&str> {
        let marked = ["src=\"", "href=\""].iter().flat_map(|mark| page.split(mark).skip(1));
        marked.map(|rest| rest.split('"').next().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_page_loads_only_what_is_next_to_it() {
        let (parts, page) = read("index.html").await;
        assert_eq!(parts.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        assert!(!page.contains("<script>") && !page.contains("<style>"), "{page}");
        let files = loaded(&page);
        assert!(files.len() >= 4, "{page}");
        for name in files {
            assert!(!name.contains("//"), "{name} lies elsewhere");
            let name = name.trim_start_matches("./");
            assert!(file(Path(name.into()), Uri::from_static("/docs/x")).await.is_ok(), "{name} is not there");
        }
        let (_, start) = read("swagger-initializer.js").await;
        assert!(start.contains("/openapi.json") && !start.contains("petstore"), "{start}");
        assert!(start.contains("\"validatorUrl\": \"none\""), "{start}");
    }

    #[tokio::test]
    async fn a_page_that_does_not_exist_is_not_found() {
        let refused = file(Path("../Cargo.toml".into()), Uri::from_static("/docs/x")).await.unwrap_err();
        assert!(matches!(refused, ApiError::NoSuchRoute { .. }), "{refused:?}");
    }
}
