//! The client: it sends a request and reads the beginning of the response, under one deadline. A redirect is returned
//! like any other response.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{client::legacy, rt::TokioExecutor};
use rustls::{ClientConfig, crypto::ring};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::{
    connector::{ConnectError, Connector, Dial, Names, Sockets, SystemNames},
    policy::{self, Policy, Refusal},
};

/// The maximum number of bytes read of a response's body; the rest is left unread.
pub const MOST_BODY_BYTES: usize = 1024;

/// The client for user-provided URLs. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<Connector>, Full<Bytes>>,
    policy: Arc<Policy>,
    patience: Duration,
}

/// The response to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response's status.
    pub status: StatusCode,
    /// The response's headers.
    pub headers: HeaderMap,
    /// The first [`MOST_BODY_BYTES`] of the body, or the part that arrived before the deadline.
    pub body: Bytes,
}

/// The reason why a request has no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The policy does not allow the URL.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// No status was received before the deadline.
    #[error("no response within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection failed, or the response was not HTTP.
    #[error("{0}")]
    Failed(String),
}

impl Client {
    /// Returns a client that connects only where `policy` allows, with a timeout of `patience` for each request.
    ///
    /// # Errors
    /// The system's certificates cannot be read.
    pub fn new(policy: Policy, patience: Duration) -> Result<Self, rustls::Error> {
        Self::with(policy, patience, Arc::new(SystemNames), Arc::new(Sockets))
    }

    /// Returns a client like [`new`](Self::new), with another resolver and other sockets than the system's.
    ///
    /// # Errors
    /// The system's certificates cannot be read.
    pub fn with(
        policy: Policy,
        patience: Duration,
        names: Arc<dyn Names>,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(policy.clone(), names, dial));
        // A reused connection would bypass the check of its address.
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { http, policy: Arc::new(policy), patience })
    }

    /// Sends a `POST` request with a body.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn post(&self, url: &Url, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        // The policy may have changed since the URL was accepted.
        let uri = policy::uri(&self.policy.url(url.as_str())?)?;
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (Method::POST, uri, headers);
        let agent = HeaderValue::from_static(concat!("Attune/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        let deadline = Instant::now() + self.patience;
        let answer = timeout_at(deadline, self.http.request(request))
            .await
            .map_err(|_| SendError::Timeout(self.patience))?
            .map_err(|error| failure(&error))?;
        let (parts, mut rest) = answer.into_parts();
        let mut read = BytesMut::new();
        while read.len() < MOST_BODY_BYTES {
            let Ok(Some(Ok(frame))) = timeout_at(deadline, rest.frame()).await else { break };
            if let Some(data) = frame.data_ref() {
                read.extend_from_slice(&data[..data.len().min(MOST_BODY_BYTES - read.len())]);
            }
        }
        Ok(Answer { status: parts.status, headers: parts.headers, body: read.freeze() })
    }
}

/// Returns the first cause that is meaningful to a user.
fn failure(error: &legacy::Error) -> SendError {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    for cause in causes {
        if let Some(connect) = cause.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::Refused(refusal) => SendError::Refused(refusal.clone()),
                other => SendError::Failed(other.to_string()),
            };
        }
    }
    let last = std::iter::successors(std::error::Error::source(error), |cause| cause.source()).last();
    SendError::Failed(last.map_or_else(|| error.to_string(), ToString::to_string))
}
