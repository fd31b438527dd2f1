//! A tenant of a running platform: a project of its own, and requests with its API key.

use anyhow::{Context, Result, ensure};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::platform::{Platform, answer, call, client};

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
        let project = create(platform, "/v1/organization/projects", name).await?;
        Self::with_new_key(platform, project["id"].as_str().context("a project has an ID")?, name).await
    }

    /// Creates another API key of a project with the platform's first key.
    ///
    /// # Errors
    /// The API refuses the request.
    pub async fn with_new_key(platform: &Platform, project_id: &str, name: &str) -> Result<Self> {
        let key = create(platform, &format!("/v1/organization/projects/{project_id}/api_keys"), name).await?;
        let api_key = key["value"].as_str().context("a new key has a value")?.to_owned();
        Ok(Self { url: platform.url.clone(), project_id: project_id.to_owned(), api_key })
    }

    /// Sends a request with the tenant's key; returns the status and the body (null if it is empty).
    ///
    /// # Errors
    /// The connection fails, or the body is not JSON.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        call(method, format!("{}{path}", self.url), &self.api_key, body).await
    }

    /// Uploads a file and returns its ID.
    ///
    /// # Errors
    /// The upload fails.
    pub async fn upload(&self, purpose: &str, filename: &str, content: impl Into<Vec<u8>>) -> Result<String> {
        let (status, file) = self.try_upload(purpose, filename, content).await?;
        ensure!(status == 200, "{status}: {file}");
        Ok(file["id"].as_str().context("a file has an ID")?.to_owned())
    }

    /// Uploads a file; returns the status and the body.
    ///
    /// # Errors
    /// The connection fails, or the body is not JSON.
    pub async fn try_upload(&self, purpose: &str, filename: &str, content: impl Into<Vec<u8>>) -> Result<(u16, Value)> {
        let part = Part::bytes(content.into()).file_name(filename.to_owned());
        let form = Form::new().text("purpose", purpose.to_owned()).part("file", part);
        let request = client().post(format!("{}/v1/files", self.url)).bearer_auth(&self.api_key).multipart(form);
        answer(request.send().await?).await
    }

    /// Uploads `content` as a base model's file, under `digest`; returns the status and the body.
    ///
    /// # Errors
    /// The connection fails, or the body is not JSON.
    pub async fn put_blob(&self, digest: &str, content: &[u8]) -> Result<(u16, Value)> {
        let url = format!("{}/v1/base_models/blobs/{digest}", self.url);
        answer(client().put(url).bearer_auth(&self.api_key).body(content.to_vec()).send().await?).await
    }
}

/// Creates the object of this name with the platform's first key.
async fn create(platform: &Platform, path: &str, name: &str) -> Result<Value> {
    let (status, view) = platform.call(Method::POST, path, Some(json!({ "name": name }))).await?;
    ensure!(status == 200, "{status}: {view}");
    Ok(view)
}
