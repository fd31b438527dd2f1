//! The platform as a node sees it: one address and one bearer token. Every answer is sorted into what can be done about
//! it; nothing is tried twice here, because only the caller knows how long it may wait.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::NodeError;

/// How long a small request may take. Objects have no such limit, only one on silence.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the other side may be silent in the middle of an object.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP client with TLS by rustls and ring.
///
/// A machine without root certificates still gets one: it can then reach plain `http` addresses only.
///
/// # Errors
/// [`NodeError::Client`].
pub fn http_client() -> Result<Client, NodeError> {
    // An error means that a provider is there already, which is as good.
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

/// Where the platform is, and who we are to it.
#[derive(Clone)]
pub struct Platform {
    client: Client,
    base_url: String,
    token: SecretString,
}

impl Platform {
    /// A platform at `base_url` (`http://127.0.0.1:8080`), spoken to with `token` as bearer.
    #[must_use]
    pub fn new(client: Client, base_url: &str, token: SecretString) -> Self {
        Self { client, base_url: base_url.trim_end_matches('/').to_owned(), token }
    }

    /// For objects, which need no token of ours.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`NodeError::Away`], [`NodeError::Busy`], [`NodeError::Ended`] (409), [`NodeError::Refused`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, NodeError> {
        let request = self.client.get(format!("{}{path}", self.base_url));
        self.answer(format!("GET {path}"), request).await
    }

    /// `POST path` with `body` as JSON.
    ///
    /// # Errors
    /// As for [`Platform::get`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, NodeError> {
        let request = self.client.post(format!("{}{path}", self.base_url)).json(body);
        self.answer(format!("POST {path}"), request).await
    }

    async fn answer<T: DeserializeOwned>(&self, what: String, request: RequestBuilder) -> Result<T, NodeError> {
        let request = request.bearer_auth(self.token.expose_secret()).timeout(ANSWER_TIMEOUT);
        let response = match request.send().await {
            Ok(response) => sorted(&what, response).await?,
            Err(source) => return Err(NodeError::Away { what, source }),
        };
        response.json().await.map_err(|source| match source.is_decode() {
            true => NodeError::Refused { what, status: 200, body: format!("the answer cannot be read: {source}") },
            false => NodeError::Away { what, source },
        })
    }
}

/// A response that went well, or what can be done about it.
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
