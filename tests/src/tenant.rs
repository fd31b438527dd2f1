//! A tenant of a running platform: a project of its own, and requests with its API key.

use anyhow::{Context, Result, ensure};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::platform::{Platform, client};

/// A project and an API key of it.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// The platform's address.
    url: String,
    /// The project's ID.
    pub project_id: String,
    /// An API key with all scopes of the project, without those of administration.
    pub api_key: String,
}

impl Tenant {
    /// Creates a project and an API key with the platform's first key.
    ///
    /// # Errors
    /// The API refuses a request.
    pub async fn new(platform: &Platform, name: &str) -> Result<Self> {
        let made = |(status, view): (u16, Value)| {
            ensure!(status == 200, "{status}: {view}");
            Ok(view)
        };
        let path = "/v1/organization/projects";
        let project = made(platform.call(Method::POST, path, Some(json!({ "name": name }))).await?)?;
        let project_id = project["id"].as_str().context("a project has an ID")?.to_owned();
        let path = format!("{path}/{project_id}/api_keys");
        let key = made(platform.call(Method::POST, &path, Some(json!({ "name": name }))).await?)?;
        let api_key = key["value"].as_str().context("a new key has a value")?.to_owned();
        Ok(Self { url: platform.url.clone(), project_id, api_key })
    }

    /// Sends a request with the tenant's key; returns the status and the body (null if it is empty).
    ///
    /// # Errors
    /// The connection fails, or the body is not JSON.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let mut request = client().request(method, format!("{}{path}", self.url)).bearer_auth(&self.api_key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request.send().await?).await
    }

    /// Uploads a file and returns its ID.
    ///
    /// # Errors
    /// The upload fails.
    pub async fn upload(&self, purpose: &str, filename: &str, content: impl Into<Vec<u8>>) -> Result<String> {
        let part = Part::bytes(content.into()).file_name(filename.to_owned());
        let form = Form::new().text("purpose", purpose.to_owned()).part("file", part);
        let request = client().post(format!("{}/v1/files", self.url)).bearer_auth(&self.api_key).multipart(form);
        let (status, file) = answer(request.send().await?).await?;
        ensure!(status == 200, "{status}: {file}");
        Ok(file["id"].as_str().context("a file has an ID")?.to_owned())
    }
}

async fn answer(answer: reqwest::Response) -> Result<(u16, Value)> {
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await?;
    Ok((status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? }))
}
