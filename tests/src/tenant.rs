//! A project of its own on a running platform, and requests with its key: what one tenant can do to another.

use anyhow::{Context, Result, ensure};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::platform::{Platform, client};

/// A project and a key of it.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// The platform's address.
    url: String,
    /// The project's ID.
    pub project_id: String,
    /// A key with all scopes of the project, and none of the administration.
    pub api_key: String,
}

impl Tenant {
    /// Makes a project and a key with the platform's first key.
    ///
    /// # Errors
    /// The platform refuses.
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

    /// Sends one request with the tenant's key; returns status and body (null if it is empty).
    ///
    /// # Errors
    /// The network's, or the body is not JSON.
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
    /// The upload's.
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
