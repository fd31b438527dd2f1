//! The rate limits of a request's key, applied before its handler and reported in OpenAI's headers.

use std::{sync::Arc, time::Instant};

use attune_domain::access::Actor;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    app::App,
    auth::caller::Caller,
    http::request_context::RequestContext,
    middleware::rate_limiter::{Allowance, RateStatus},
};

/// Counts a request, refuses it if its key has used up its allowance, and reports in the response what is left.
pub async fn limit(State(app): State<App>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().filter(|_| app.rate_limiter.limits_any());
    let key = caller.map(|caller| match caller.0.actor {
        Actor::ApiKey(id) => id.uuid(),
        Actor::Person(id) => id.uuid(),
    });
    let Some(key) = key else { return next.run(request).await };
    match app.rate_limiter.admit(key, Instant::now()) {
        Ok(statuses) => {
            let allowance = Allowance::new(Arc::clone(&app.rate_limiter), key);
            let context = RequestContext::current().with_allowance(allowance);
            let mut response = context.run(next.run(request)).await;
            set_headers(response.headers_mut(), &statuses);
            response
        }
        Err(refused) => {
            let statuses = app.rate_limiter.statuses(key, Instant::now());
            let mut response = refused.into_response();
            set_headers(response.headers_mut(), &statuses);
            response
        }
    }
}

/// Adds OpenAI's headers. Source: OpenAI's guide to rate limits, "Rate limits in headers".
fn set_headers(headers: &mut HeaderMap, statuses: &[RateStatus]) {
    for status in statuses {
        let name = status.kind.name();
        let full_in = duration(status.seconds_until(f64::from(status.limit)));
        for (kind, value) in [
            ("limit", status.limit.to_string()),
            ("remaining", (status.left.max(0.0) as u64).to_string()),
            ("reset", full_in),
        ] {
            let header = HeaderName::try_from(format!("x-ratelimit-{kind}-{name}"));
            if let (Ok(header), Ok(value)) = (header, HeaderValue::try_from(value)) {
                headers.insert(header, value);
            }
        }
    }
}

/// Formats a duration as OpenAI does: `1m2s`, `1s`, `6ms`.
fn duration(seconds: f64) -> String {
    let ms = (seconds * 1000.0).ceil() as u64;
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", ms.div_ceil(1000)),
        _ => {
            let whole = ms.div_ceil(1000);
            format!("{}m{}s", whole / 60, whole % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LimitKind;

    #[test]
    fn the_headers_are_openais() {
        let mut headers = HeaderMap::new();
        set_headers(&mut headers, &[RateStatus { kind: LimitKind::Tokens, limit: 600, left: 590.5 }]);
        assert_eq!(headers["x-ratelimit-limit-tokens"], "600");
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "590");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "950ms");
        assert_eq!([duration(0.0), duration(1.0), duration(61.5)], ["0ms", "1s", "1m2s"]);
    }
}
