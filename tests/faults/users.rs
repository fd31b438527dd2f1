//! The requests of users that reach fail points, besides those for jobs: batches, uploads, imports, aliases and
//! exports. Any of them may fail, since the API or the scheduler is killed.

use std::fs;

use anyhow::{Context, Result};
use attune_tests::{sha256, tiny};
use rand::RngExt;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    actions::chat_body,
    rig::{Rig, answered},
};

/// The condition that all batches and exports have ended.
pub(crate) const REQUESTS_ENDED: &str = "not exists (select from batch
        where state not in ('completed', 'failed', 'expired', 'cancelled'))
    and not exists (select from export where state in ('queued', 'running'))";

/// The files of an adapter version that a job published.
const FILES: &str = "select file ->> 'name' as name, file ->> 'sha256' as sha256
    from adapter_version, jsonb_array_elements(files) as file
    where adapter_version_id = (select adapter_version_id from adapter_version
        where job_id is not null and deleted_at is null order by adapter_version_id limit 1)";

/// The model names of the versions that jobs published, in any order.
const MODELS: &str = "select model_name from adapter_version where job_id is not null and deleted_at is null
    order by random()";

/// A file of an adapter version.
#[derive(Debug, Deserialize)]
struct Published {
    name: String,
    sha256: String,
}

/// Performs each of the requests once; the API is started before each.
pub(crate) async fn act(rig: &mut Rig) -> Result<()> {
    let mark: u64 = rand::rng().random();
    rig.ready().await?;
    note("the batch", batch(rig).await);
    rig.ready().await?;
    note("the upload", upload_in_parts(rig, mark).await);
    rig.ready().await?;
    note("the blob", put_blob(rig, mark).await);
    rig.ready().await?;
    note("the import", import(rig, mark).await);
    rig.ready().await?;
    note("the alias", move_alias(rig).await);
    rig.ready().await?;
    note("the export", export(rig).await);
    Ok(())
}

fn note(what: &str, done: Result<()>) {
    if let Err(why) = done {
        println!("{what} failed: {why:#}");
    }
}

fn id(view: &Value) -> Result<&str> {
    view["id"].as_str().with_context(|| format!("there is no ID: {view}"))
}

/// Creates a batch of two requests to the base model.
async fn batch(rig: &Rig) -> Result<()> {
    let row = |id: u32| {
        let url = "/v1/chat/completions";
        json!({"custom_id": id.to_string(), "method": "POST", "url": url, "body": chat_body()})
    };
    let file = rig.upload_file("batch", format!("{}\n{}\n", row(1), row(2))).await?;
    let new = json!({
        "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h",
    });
    answered(rig.request(Method::POST, "/v1/batches").json(&new)).await.map(drop)
}

/// Uploads a training file in two parts. Its creation is idempotent.
async fn upload_in_parts(rig: &Rig, mark: u64) -> Result<()> {
    let rows = tiny::rows(8).into_bytes();
    let new = json!({
        "filename": "parts.jsonl", "purpose": "fine-tune", "bytes": rows.len(), "mime_type": "text/jsonl",
    });
    let create = rig.request(Method::POST, "/v1/uploads").header("idempotency-key", format!("upload-{mark}"));
    let upload = answered(create.json(&new)).await?;
    let path = format!("/v1/uploads/{}", id(&upload)?);
    let mut parts = Vec::new();
    for half in rows.chunks(rows.len().div_ceil(2)) {
        let form = Form::new().part("data", Part::bytes(half.to_vec()).file_name("part"));
        let part = answered(rig.request(Method::POST, &format!("{path}/parts")).multipart(form)).await?;
        parts.push(id(&part)?.to_owned());
    }
    let complete = rig.request(Method::POST, &format!("{path}/complete"));
    answered(complete.json(&json!({"part_ids": parts}))).await.map(drop)
}

/// Uploads content for a base model that is never created.
async fn put_blob(rig: &Rig, mark: u64) -> Result<()> {
    let content = mark.to_le_bytes().to_vec();
    let path = format!("/v1/base_models/blobs/{}", sha256(&content));
    answered(rig.request(Method::PUT, &path).body(content)).await.map(drop)
}

/// Imports a published adapter under another name.
async fn import(rig: &Rig, mark: u64) -> Result<()> {
    let mut form = Form::new().text("name", format!("import-{mark}")).text("base_model", "tiny");
    for Published { name, sha256 } in rig.cluster.rows(FILES)? {
        let content = fs::read(rig.objects().join("attune").join("blob").join(sha256))?;
        form = form.part("files", Part::bytes(content).file_name(name));
    }
    answered(rig.request(Method::POST, "/v1/adapters").multipart(form)).await.map(drop)
}

/// Moves an alias to any version.
async fn move_alias(rig: &Rig) -> Result<()> {
    let model = any_model(rig)?;
    let path = format!("/v1/adapters/{model}/aliases/prod");
    answered(rig.request(Method::PUT, &path).json(&json!({"version": model}))).await.map(drop)
}

/// Exports any version as a PEFT folder.
pub(crate) async fn export(rig: &Rig) -> Result<()> {
    let path = format!("/v1/adapters/{}/exports", any_model(rig)?);
    answered(rig.request(Method::POST, &path).json(&json!({"format": "peft"}))).await.map(drop)
}

/// Returns the model name of any version that a job published.
fn any_model(rig: &Rig) -> Result<String> {
    let models = rig.cluster.sql(MODELS)?;
    Ok(models.lines().next().context("no job has published a version")?.to_owned())
}
