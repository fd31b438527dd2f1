//! The listener of metrics, and the measurement of requests.

use std::{future, io, net::SocketAddr, time::Instant};

use attune_process::metrics::{
    self, CONTENT_TYPE, HTTP_IN_FLIGHT, HTTP_REQUEST_SECONDS, HTTP_REQUESTS, Held as InFlight,
};
use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::{Method, header},
    middleware::Next,
    response::Response,
    routing::get,
};
use tokio::net::TcpListener;

use crate::server::{Bounds, serve};

/// The program that publishes its metrics.
#[derive(Debug, Clone, Copy)]
pub struct Publisher {
    /// The program's name.
    pub program: &'static str,
    /// The program's version.
    pub version: &'static str,
}

/// Listens on `address`, and answers `GET /metrics` until the process ends. `sample` runs before each answer, and sets
/// the metrics that are read rather than counted; it must not block. Returns the address.
///
/// # Errors
/// The address cannot be listened on.
pub async fn publish_metrics(
    publisher: Publisher,
    address: SocketAddr,
    sample: impl Fn() + Clone + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    metrics::start(publisher.program, publisher.version);
    let scrape = move || {
        sample();
        future::ready(([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics::render()))
    };
    let router = Router::new().route("/metrics", get(scrape));
    tokio::spawn(serve(listener, router, Bounds::default(), future::pending()));
    tracing::info!(%address, "metrics are published on http://{address}/metrics");
    Ok(address)
}

/// Measures a request: the middleware of a server's router.
pub async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let mut measured = Measured {
        method: method(request.method()),
        route,
        status: "cancelled",
        began: Instant::now(),
        _in_flight: HTTP_IN_FLIGHT.hold(),
    };
    let response = next.run(request).await;
    measured.status = class(response.status().as_u16());
    response
}

/// A request that is being measured, until it is dropped: with the response, or because the caller disconnected.
struct Measured {
    method: &'static str,
    route: String,
    status: &'static str,
    began: Instant,
    _in_flight: InFlight,
}

impl Drop for Measured {
    fn drop(&mut self) {
        HTTP_REQUESTS.inc([self.method, &self.route, self.status]);
        if self.status != "cancelled" {
            HTTP_REQUEST_SECONDS.observe([self.method, &self.route], self.began.elapsed().as_secs_f64());
        }
    }
}

/// Returns the method's name. A caller may invent methods; these have one name.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

const fn class(status: u16) -> &'static str {
    match status {
        ..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::StatusCode, middleware::from_fn};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt;

    use super::*;

    async fn scraped(address: SocketAddr) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn requests_are_counted_by_the_template_of_their_route() {
        let router = Router::new()
            .route("/measured/{id}", get(|| future::ready(StatusCode::IM_A_TEAPOT)).put(future::pending::<StatusCode>))
            .layer(from_fn(measure));
        let send = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request)
        };
        for id in 0..3 {
            send("GET", &format!("/measured/{id}")).await.unwrap();
        }
        send("INVENTED", "/measured/1").await.unwrap();
        let waiting = send("PUT", "/measured/1");
        tokio::time::timeout(std::time::Duration::from_millis(50), waiting).await.unwrap_err();

        let publisher = Publisher { program: "test", version: "0" };
        let address = publish_metrics(publisher, ([127, 0, 0, 1], 0).into(), || {}).await.unwrap();
        let text = scraped(address).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains(CONTENT_TYPE), "{text}");
        for line in [
            r#"attune_http_requests_total{method="GET",route="/measured/{id}",status="4xx"} 3.0"#,
            r#"attune_http_requests_total{method="other",route="/measured/{id}",status="4xx"} 1.0"#,
            r#"attune_http_requests_total{method="PUT",route="/measured/{id}",status="cancelled"} 1.0"#,
            r#"attune_http_request_seconds_count{method="GET",route="/measured/{id}"} 3"#,
            "attune_http_requests_in_flight 0.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("/measured/0"), "{text}");
    }
}
