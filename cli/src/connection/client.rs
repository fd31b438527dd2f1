//! A thin HTTP client of the API: URLs, the API key, and error messages from error bodies.
//!
//! Responses stay JSON values: commands read the few fields that they show, and `--json` prints the whole value.

use std::{path::Path, time::Duration};

use indicatif::ProgressBar;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url, header::CONTENT_LENGTH};
use serde_json::Value;
use tokio_util::io::{InspectReader, ReaderStream};

use crate::{
    connection::credentials::Credentials,
    error::{CliError, Doing, Result},
};

/// The read timeout: a chat request may wait for minutes until its model is loaded.
const SILENCE: Duration = Duration::from_secs(600);

/// A client of one platform's API.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: String,
}

impl Client {
    /// Creates a client; sends nothing.
    ///
    /// # Errors
    /// [`CliError::Usage`] if the address is not an HTTP URL.
    pub(crate) fn new(credentials: Credentials) -> Result<Self> {
        let bad = |why: String| CliError::Usage(format!("--api-url: '{}' is not an address: {why}", credentials.url));
        let base = Url::parse(&credentials.url).map_err(|e| bad(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(bad("it must start with http:// or https://".into()));
        }
        let local = matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("attune/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE);
        if local {
            builder = builder.no_proxy(); // a proxy would connect to its own localhost
        }
        let http = builder.build().doing(|| "create an HTTP client".into())?;
        Ok(Self { http, base, key: credentials.api_key })
    }

    /// Builds a request to `/v1/<path…>`; each path segment is percent-encoded.
    pub(crate) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().push("v1").extend(path);
        }
        self.http.request(method, url).bearer_auth(&self.key)
    }

    /// Sends the request; a status that is not a success is an error.
    ///
    /// # Errors
    /// [`CliError::Unreachable`], [`CliError::NotFound`], [`CliError::Refused`].
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let answer = request.send().await.map_err(|e| self.unreachable(&e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let text = answer.bytes().await.map_err(|e| self.unreachable(&e))?;
        Err(refusal(status, &text))
    }

    /// Sends the request and parses the response as JSON.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value> {
        let text = self.send(request).await?.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&text)
            .map_err(|_| CliError::Failed(format!("the response of {} is not Attune's", self.base)))
    }

    /// Sends `GET /v1/<path…>` and parses the response as JSON.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn get(&self, path: &[&str]) -> Result<Value> {
        self.json(self.request(Method::GET, path)).await
    }

    /// Returns whether `HEAD /v1/<path…>` finds an object.
    ///
    /// # Errors
    /// As [`send`](Self::send), except [`CliError::NotFound`].
    pub(crate) async fn exists(&self, path: &[&str]) -> Result<bool> {
        match self.send(self.request(Method::HEAD, path)).await {
            Ok(_) => Ok(true),
            Err(CliError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Retrieves the pages of a list, up to `limit` objects, as one list object.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn list(&self, path: &[&str], limit: Option<usize>) -> Result<Value> {
        self.list_where(path, &[], limit).await
    }

    /// As [`list`](Self::list), with further query parameters.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn list_where(
        &self,
        path: &[&str],
        filters: &[(&str, &str)],
        limit: Option<usize>,
    ) -> Result<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let mut request = self.request(Method::GET, path).query(&[("limit", 100)]).query(filters);
            if let Some(after) = all.last().and_then(|item| item["id"].as_str()) {
                request = request.query(&[("after", after)]);
            }
            let mut page = self.json(request).await?;
            let more = page["has_more"] == true;
            let Value::Array(items) = page["data"].take() else {
                return Err(CliError::Failed(format!("the response of {} is not Attune's", self.base)));
            };
            let none = items.is_empty();
            all.extend(items);
            let full = limit.is_some_and(|limit| all.len() >= limit);
            if !more || none || full {
                all.truncate(limit.unwrap_or(usize::MAX));
                page["data"] = Value::Array(all);
                page["has_more"] = Value::Bool(full && more);
                return Ok(page);
            }
        }
    }

    /// Returns a file as a request body, which reports its progress to `bar`, and the file's length in bytes.
    ///
    /// # Errors
    /// [`CliError::Failed`] if the file cannot be opened.
    pub(crate) async fn body(path: &Path, bar: ProgressBar) -> Result<(Body, u64)> {
        let opened = tokio::fs::File::open(path).await;
        let file = opened.doing(|| format!("read {}", path.display()))?;
        let length = file.metadata().await.doing(|| format!("read {}", path.display()))?.len();
        let counted = InspectReader::new(file, move |bytes| bar.inc(bytes.len() as u64));
        Ok((Body::wrap_stream(ReaderStream::with_capacity(counted, 256 << 10)), length))
    }

    /// Sends `PUT /v1/<path…>` with a file as the body.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn put_file(&self, path: &[&str], file: &Path, bar: ProgressBar) -> Result<()> {
        let (body, length) = Self::body(file, bar).await?;
        let request = self.request(Method::PUT, path).header(CONTENT_LENGTH, length).body(body);
        self.send(request).await.map(drop)
    }

    /// Returns the error for a failed connection, as opposed to an error response of the API.
    pub(crate) fn unreachable(&self, e: &reqwest::Error) -> CliError {
        CliError::Unreachable { url: self.base.as_str().trim_end_matches('/').to_owned(), reason: innermost(e) }
    }
}

/// Returns the message of the innermost cause, such as "Connection refused" instead of "error sending request".
pub(crate) fn innermost(e: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = e;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Returns the error for a response: its message is that of OpenAI's error format, or the text of a proxy in between.
fn refusal(status: StatusCode, text: &[u8]) -> CliError {
    let body: Value = serde_json::from_slice(text).unwrap_or(Value::Null);
    let message = match body["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None if status == StatusCode::NOT_FOUND => "not found".into(),
        None => {
            let said: String = String::from_utf8_lossy(text).chars().take(200).collect();
            format!("the API responded with {status} {}", said.trim()).trim_end().to_owned()
        }
    };
    let hint = match status {
        StatusCode::UNAUTHORIZED => " (the key comes from --api-key, ATTUNE_API_KEY or credentials.json)",
        _ => "",
    };
    let message = format!("{message}{hint}");
    match status {
        StatusCode::NOT_FOUND => CliError::NotFound { message, body },
        _ => CliError::Refused { message, body },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Result<Client> {
        drop(rustls::crypto::ring::default_provider().install_default());
        Client::new(Credentials { url: url.into(), api_key: "k".into() })
    }

    #[test]
    fn names_are_escaped_on_their_way_into_an_address() {
        let client = client("https://host/attune/").unwrap();
        let request = client.request(Method::GET, &["models", "ft:a/b:x y"]).build().unwrap();
        assert_eq!(request.url().as_str(), "https://host/attune/v1/models/ft:a%2Fb:x%20y");
    }

    #[test]
    fn an_address_without_a_scheme_is_refused() {
        let Err(refused) = client("localhost:8080") else { panic!("taken") };
        assert!(refused.to_string().contains("http://"), "{refused}");
    }

    #[test]
    fn the_apis_own_sentence_is_kept() {
        let text = br#"{"error": {"message": "seed: -1 is not allowed", "type": "x", "param": "seed", "code": null}}"#;
        let refused = refusal(StatusCode::BAD_REQUEST, text);
        assert_eq!((refused.to_string().as_str(), refused.exit_code()), ("seed: -1 is not allowed", 4));
        assert_eq!(refusal(StatusCode::NOT_FOUND, text).exit_code(), 5);
        let stranger = refusal(StatusCode::BAD_GATEWAY, b"<html>nginx");
        assert_eq!(stranger.to_string(), "the API responded with 502 Bad Gateway <html>nginx");
    }

    #[tokio::test]
    async fn a_refused_connection_has_its_own_exit_code() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = client(&format!("http://127.0.0.1:{port}")).unwrap();
        let refused = client.get(&["models"]).await.unwrap_err();
        assert_eq!(refused.exit_code(), 3);
        assert!(refused.to_string().contains("Connection refused"), "{refused}");
    }
}
