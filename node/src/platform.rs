//! The client of the platform's internal API: one address and one bearer token. Every response is classified by the
//! possible reaction; nothing is retried here, because only the caller knows how long it may wait.

use std::time::Duration;

use attune_process::telemetry;
use reqwest::{Client, RequestBuilder, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::NodeError;

/// The timeout of a request to the platform. Object downloads have no such timeout, only one on inactivity.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout on inactivity in the middle of an object download.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns an HTTP client with TLS by rustls and ring.
///
/// On a machine without root certificates the client can reach plain `http` addresses only.
///
/// # Errors
/// [`NodeError::Client`].
pub fn http_client() -> Result<Client, NodeError> {
    // An error means that a provider is already installed, which is equivalent.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(SILENCE_TIMEOUT);
    builder()
        .build()
        .or_else(|why| {
            tracing::warn!(%why, "no root certificates were found, so https addresses cannot be reached");
            builder().tls_certs_only([]).build()
        })
        .map_err(|e| NodeError::Client(e.to_string()))
}

/// The platform's address, and this process's credentials.
#[derive(Clone)]
pub struct Platform {
    client: Client,
    base_url: String,
    token: SecretString,
}

impl Platform {
    /// Returns a client for the platform at `base_url` (`http://127.0.0.1:8080`), with `token` as bearer.
    #[must_use]
    pub fn new(client: Client, base_url: &str, token: SecretString) -> Self {
        Self { client, base_url: base_url.trim_end_matches('/').to_owned(), token }
    }

    /// Returns the HTTP client for objects, which need no token.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Sends `GET path`.
    ///
    /// # Errors
    /// [`NodeError::Away`], [`NodeError::Busy`], [`NodeError::Ended`] (409), [`NodeError::Refused`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, NodeError> {
        let request = self.client.get(format!("{}{path}", self.base_url));
        self.answer(format!("GET {path}"), request).await
    }

    /// Sends `POST path` with `body` as JSON.
    ///
    /// # Errors
    /// The errors of [`Platform::get`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, NodeError> {
        let request = self.client.post(format!("{}{path}", self.base_url)).json(body);
        self.answer(format!("POST {path}"), request).await
    }

    async fn answer<T: DeserializeOwned>(&self, what: String, request: RequestBuilder) -> Result<T, NodeError> {
        let mut request = request.bearer_auth(self.token.expose_secret()).timeout(ANSWER_TIMEOUT);
        if let Some(name) = telemetry::traceparent() {
            request = request.header(telemetry::TRACEPARENT, name);
        }
        let response = match request.send().await {
            Ok(response) => sorted(&what, response).await?,
            Err(source) => return Err(NodeError::Away { what, source }),
        };
        response.json().await.map_err(|source| match source.is_decode() {
            true => NodeError::Refused { what, status: 200, body: format!("the response cannot be parsed: {source}") },
            false => NodeError::Away { what, source },
        })
    }
}

/// Returns a successful response, or the error for its status.
pub(crate) async fn sorted(what: &str, response: Response) -> Result<Response, NodeError> {
    let (what, status) = (what.to_owned(), response.status().as_u16());
    match status {
        200..=299 => Ok(response),
        409 => Err(NodeError::Ended { what }),
        408 | 429 | 500..=599 => Err(NodeError::Busy { what, status }),
        _ => {
            let body = response.text().await.unwrap_or_default().chars().take(300).collect();
            Err(NodeError::Refused { what, status, body })
        }
    }
}
