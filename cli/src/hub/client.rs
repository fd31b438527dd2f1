//! The HTTP client of a hub. Redirects are followed here, so that the token is sent to the hub alone.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE},
    redirect::Policy,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    connection::client::innermost,
    error::{CliError, Doing, Result},
    hub::address::HubModel,
};

/// The hub that is used if `HF_ENDPOINT` is not set.
const HUGGING_FACE: &str = "https://huggingface.co";

/// The maximum number of redirects of one request.
const MOST_REDIRECTS: usize = 5;

/// The maximum size of the description of a model, in bytes.
const DESCRIPTION_BYTES: usize = 16 << 20;

/// The time and the number of attempts for which a hub is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The longest time without a byte.
    pub(crate) silence: Duration,
    /// The pause before another attempt.
    pub(crate) pause: Duration,
    /// The maximum number of consecutive attempts without a new byte.
    pub(crate) tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), pause: Duration::from_secs(2), tries: 5 }
    }
}

/// An error of a request.
#[derive(Debug)]
pub(crate) enum HubError {
    /// Another attempt may succeed.
    Passing(String),
    /// Another attempt fails too.
    Final(CliError),
}

impl From<HubError> for CliError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Passing(why) => Self::Failed(why),
            HubError::Final(error) => error,
        }
    }
}

/// The result of one attempt.
pub(crate) type Attempted<T> = std::result::Result<T, HubError>;

/// A client of one hub.
pub(crate) struct Hub {
    http: reqwest::Client,
    endpoint: Url,
    token: Option<String>,
    /// The patience with this hub.
    pub(crate) patience: Patience,
}

/// A model's description.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Description {
    /// The commit that the revision was resolved to.
    pub(crate) sha: String,
    /// The files.
    pub(crate) siblings: Vec<Sibling>,
    /// The front matter of the model card, of any shape.
    #[serde(default, rename = "cardData")]
    pub(crate) card: Value,
}

/// A file of a repository.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sibling {
    /// The path in the repository.
    pub(crate) rfilename: String,
    /// The size in bytes.
    pub(crate) size: Option<u64>,
    /// The content's digest, if it is stored outside of Git.
    pub(crate) lfs: Option<Lfs>,
}

/// Content outside of Git.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Lfs {
    /// The SHA-256.
    pub(crate) sha256: String,
}

/// The hub's own statements about a file, from its responses before any redirect to another host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// The commit.
    pub(crate) commit: Option<String>,
    /// The entity tag: a SHA-256, or the SHA-1 of a Git blob.
    pub(crate) etag: Option<String>,
    /// The size in bytes.
    pub(crate) bytes: Option<u64>,
}

impl FileFacts {
    fn add(&mut self, headers: &HeaderMap, status: StatusCode) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.commit = text("x-repo-commit").or(self.commit.take());
        let etag = text("x-linked-etag").or_else(|| status.is_success().then(|| text(ETAG.as_str())).flatten());
        self.etag = etag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned()).or(self.etag.take());
        let length = || (status == StatusCode::OK).then(|| text(CONTENT_LENGTH.as_str())).flatten();
        let bytes = text("x-linked-size").or_else(length);
        self.bytes = bytes.and_then(|bytes| bytes.parse().ok()).or(self.bytes);
    }
}

/// A response after all redirects.
pub(crate) struct Answer {
    /// The response.
    pub(crate) response: Response,
    /// The hub's statements.
    pub(crate) facts: FileFacts,
}

impl Hub {
    /// Creates a client of the hub at `endpoint`, or of Hugging Face; sends nothing.
    ///
    /// # Errors
    /// [`CliError::Usage`] if the address is not an HTTP URL.
    pub(crate) fn new(endpoint: Option<String>, token: Option<String>, patience: Patience) -> Result<Self> {
        let text = endpoint.unwrap_or_else(|| HUGGING_FACE.into());
        let endpoint = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let endpoint = endpoint
            .ok_or_else(|| CliError::Usage(format!("HF_ENDPOINT: '{text}' is not an http:// or https:// URL")))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("attune/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(patience.silence)
            .redirect(Policy::none());
        if matches!(endpoint.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
            builder = builder.no_proxy(); // a proxy would connect to its own localhost
        }
        let http = builder.build().doing(|| "create an HTTP client".into())?;
        Ok(Self { http, endpoint, token, patience })
    }

    /// Returns the hub's host, with its port if that is not the scheme's.
    pub(crate) fn host(&self) -> String {
        let host = self.endpoint.host_str().unwrap_or_default();
        self.endpoint.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Resolves the revision of a model, and returns the commit and its files.
    ///
    /// # Errors
    /// [`CliError::Failed`]: the hub has no such model, or refuses access to it, or cannot be reached.
    pub(crate) async fn describe(&self, model: &HubModel) -> Result<Description> {
        let mut url = self.url(&["api", "models"], &model.repository, &["revision", &model.revision]);
        url.query_pairs_mut().append_pair("blobs", "true");
        let mut tries = 1;
        loop {
            match self.description(url.clone(), model).await {
                Err(HubError::Passing(_)) if tries < self.patience.tries => tries += 1,
                described => return Ok(described?),
            }
            tokio::time::sleep(self.patience.pause).await;
        }
    }

    async fn description(&self, url: Url, model: &HubModel) -> Attempted<Description> {
        let response = self.get(url, 0, model).await?.response;
        let mut text = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.next().await {
            text.extend_from_slice(&bytes.map_err(|e| self.unreachable(e))?);
            if text.len() > DESCRIPTION_BYTES {
                return Err(self.wrong(&format!("a description of more than {DESCRIPTION_BYTES} bytes")));
            }
        }
        serde_json::from_slice(&text).map_err(|e| self.wrong(&format!("an unexpected description: {e}")))
    }

    /// Requests a file of a commit, from its byte `from` on.
    ///
    /// # Errors
    /// [`HubError`].
    pub(crate) async fn file(&self, model: &HubModel, commit: &str, name: &str, from: u64) -> Attempted<Answer> {
        self.get(self.url(&[], &model.repository, &["resolve", commit, name]), from, model).await
    }

    fn url(&self, before: &[&str], repository: &str, after: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(before).extend(repository.split('/')).extend(after);
        }
        url
    }

    /// Sends a request and follows its redirects.
    async fn get(&self, mut url: Url, from: u64, model: &HubModel) -> Attempted<Answer> {
        let mut facts = FileFacts::default();
        for _ in 0..=MOST_REDIRECTS {
            let is_own = url.origin() == self.endpoint.origin();
            let mut request = self.http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_own) {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|e| self.unreachable(e))?;
            if is_own {
                facts.add(response.headers(), response.status());
            }
            match response.headers().get(LOCATION).and_then(|to| to.to_str().ok()) {
                Some(to) if response.status().is_redirection() => url = self.redirected(&url, to)?,
                _ => return self.checked(response, model).map(|response| Answer { response, facts }),
            }
        }
        Err(self.wrong(&format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// Returns the address of a redirect. None leads from HTTPS to HTTP.
    fn redirected(&self, from: &Url, to: &str) -> Attempted<Url> {
        let url = from.join(to).map_err(|_| self.wrong("a redirect to an invalid address"))?;
        let is_allowed = url.scheme() == "https" || (url.scheme() == "http" && self.endpoint.scheme() == "http");
        if is_allowed { Ok(url) } else { Err(self.wrong("a redirect to an address without TLS")) }
    }

    fn checked(&self, response: Response, model: &HubModel) -> Attempted<Response> {
        let (status, host) = (response.status(), self.host());
        let HubModel { repository, revision } = model;
        let refused = match status {
            status if status.is_success() => return Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
                "{host} has no repository {repository}, or refuses access to it ({status}). If the model is gated, \
                 accept its conditions on its page, and set HF_TOKEN to a token that may read it."
            ),
            StatusCode::NOT_FOUND => format!("{host} has no repository {repository} with this revision: {revision}."),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(HubError::Passing(format!("{host} responded with {status}. Retry later.")));
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(HubError::Passing("the download was out of range".into())),
            status => format!("{host} responded with {status}."),
        };
        Err(HubError::Final(CliError::Failed(refused)))
    }

    /// Returns the error for a connection that failed. Addresses of redirects contain signatures, so none is shown.
    pub(crate) fn unreachable(&self, error: reqwest::Error) -> HubError {
        let reason = innermost(&error.without_url());
        HubError::Passing(format!("cannot download from {}: {reason}. Repeat the import to resume it.", self.host()))
    }

    /// Returns the error for a response that violates the hub's protocol.
    pub(crate) fn wrong(&self, what: &str) -> HubError {
        HubError::Final(CliError::Failed(format!("{} sent {what}", self.host())))
    }
}
