//! The bearer token of a request.

use axum::http::{HeaderMap, header};

use crate::error::ApiError;

/// Returns the secret of `Authorization: Bearer …`.
///
/// # Errors
/// [`ApiError::Unauthenticated`]: the header is missing, repeated or malformed.
pub fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    const MISSING: ApiError = ApiError::Unauthenticated(
        "You didn't provide an API key: send it in the Authorization header, as 'Authorization: Bearer YOUR_KEY'.",
    );
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(MISSING) };
    let (scheme, secret) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(MISSING)?;
    let secret = secret.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() { Ok(secret) } else { Err(MISSING) }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn read(values: &[&str]) -> Option<String> {
        let request = values.iter().fold(Request::builder(), |r, v| r.header(header::AUTHORIZATION, *v));
        let (parts, ()) = request.body(()).unwrap().into_parts();
        bearer(&parts.headers).ok().map(str::to_owned)
    }

    #[test]
    fn a_bearer_is_read_whatever_the_case_of_its_scheme() {
        assert_eq!(read(&["Bearer sk-attune-x"]).as_deref(), Some("sk-attune-x"));
        assert_eq!(read(&["bearer  sk-attune-x "]).as_deref(), Some("sk-attune-x"));
        for bad in [&["sk-attune-x"][..], &["Basic abc"], &["Bearer "], &[""], &[], &["Bearer a", "Bearer b"]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
