//! Base models: Hugging Face folders that were brought to this installation. Every project may use every one.

use std::collections::BTreeMap;

use attune_domain::{
    architecture::Architecture,
    bytes::Bytes,
    id::{BaseModel as BaseModelKind, BaseModelId},
    run::Blob,
};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::{
    error::{StoreError, json, to_json},
    mint,
    objects::{Objects, blob_key},
};

/// The largest file of a base model that holds no weights; the largest `tokenizer.json` that is known has nearly as much.
pub const SMALL_BYTES: Bytes = Bytes::mib(32);

/// The constraint that keeps names unique.
pub const NAME_KEY: &str = "base_model_name_key";

/// A base model.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseModel {
    /// Its id.
    pub base_model_id: BaseModelId,
    /// As users name it.
    pub name: String,
    /// Names its content.
    pub digest: String,
    /// Its shape.
    pub architecture: Architecture,
    /// When it was brought.
    pub created_at: DateTime<Utc>,
}

/// A row as SQL has it.
struct Row {
    base_model_id: uuid::Uuid,
    name: String,
    digest: String,
    architecture: serde_json::Value,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for BaseModel {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            base_model_id: BaseModelId::new(row.base_model_id),
            name: row.name,
            digest: row.digest,
            architecture: json("base_model.architecture", row.architecture)?,
            created_at: row.created_at,
        })
    }
}

/// What nodes cache a folder by: SHA-256 over a line `<sha256>  <name>` per file, sorted by name, as `sha256sum` prints.
#[must_use]
pub fn digest(files: &[Blob]) -> String {
    let mut lines: Vec<_> = files.iter().map(|file| (&file.name, &file.sha256)).collect();
    lines.sort_unstable();
    let mut hasher = Sha256::new();
    for (name, sha256) in lines {
        hasher.update(format!("{sha256}  {name}\n"));
    }
    hex(&hasher.finalize())
}

/// A digest as it is written: lower-case hex.
#[must_use]
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps a new base model. Its objects must be in the store already, and checked.
///
/// # Errors
/// [`StoreError::Conflict`] on [`NAME_KEY`]: there is one of this name.
pub async fn insert(
    tx: &mut PgConnection,
    name: &str,
    architecture: &Architecture,
    files: &[Blob],
) -> Result<BaseModel, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "insert into base_model (base_model_id, name, digest, architecture) values ($1, $2, $3, $4)
         returning base_model_id, name, digest, architecture, created_at",
        mint::id::<BaseModelKind>().uuid(),
        name,
        digest(files),
        to_json("base_model.architecture", architecture)?,
    )
    .fetch_one(&mut *tx)
    .await?;
    for file in files {
        sqlx::query!(
            "insert into base_model_file (base_model_id, name, sha256, bytes) values ($1, $2, $3, $4)",
            row.base_model_id,
            file.name,
            file.sha256,
            file.bytes.to_i64(),
        )
        .execute(&mut *tx)
        .await?;
    }
    row.try_into()
}

/// The base model of this id.
///
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &mut PgConnection, id: BaseModelId) -> Result<BaseModel, StoreError> {
    sqlx::query_as!(
        Row,
        "select base_model_id, name, digest, architecture, created_at from base_model where base_model_id = $1",
        id.uuid(),
    )
    .fetch_optional(db)
    .await?
    .ok_or(StoreError::NotFound("base model"))?
    .try_into()
}

/// The base model of this name, if there is one.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn by_name(db: &mut PgConnection, name: &str) -> Result<Option<BaseModel>, StoreError> {
    sqlx::query_as!(
        Row,
        "select base_model_id, name, digest, architecture, created_at from base_model where name = $1",
        name,
    )
    .fetch_optional(db)
    .await?
    .map(BaseModel::try_from)
    .transpose()
}

/// All base models, by name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(db: &mut PgConnection) -> Result<Vec<BaseModel>, StoreError> {
    sqlx::query_as!(Row, "select base_model_id, name, digest, architecture, created_at from base_model order by name",)
        .fetch_all(db)
        .await?
        .into_iter()
        .map(BaseModel::try_from)
        .collect()
}

/// The files of a base model, by name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn files(db: &mut PgConnection, id: BaseModelId) -> Result<Vec<Blob>, StoreError> {
    let rows = sqlx::query!(
        "select name, sha256, bytes from base_model_file where base_model_id = $1 order by name",
        id.uuid(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Blob { name: row.name, sha256: row.sha256, bytes: Bytes::from_i64(row.bytes) })
        .collect())
}

/// The content of those of a base model's files that have one of these names, checked against their digests. For small
/// files: what is not [`SMALL_BYTES`] at most is passed over.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::Object`], [`StoreError::Digest`].
pub async fn small_files(
    objects: &Objects,
    files: &[Blob],
    names: &[&str],
) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let mut found = BTreeMap::new();
    for file in files.iter().filter(|file| names.contains(&file.name.as_str()) && file.bytes <= SMALL_BYTES) {
        let content = objects.get_whole(&blob_key(&file.sha256)).await?;
        let digest = hex(&Sha256::digest(&content));
        if digest != file.sha256 {
            return Err(StoreError::Digest { name: file.name.clone(), wanted: file.sha256.clone(), found: digest });
        }
        found.insert(file.name.clone(), content.into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_the_files() {
        let file = |name: &str, sha256: &str| Blob { name: name.into(), sha256: sha256.into(), bytes: Bytes(1) };
        let (a, b) = (file("config.json", "aa"), file("tokenizer.json", "bb"));
        assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
        assert_ne!(digest(&[a.clone(), b.clone()]), digest(&[a, file("tokenizer.json", "cc")]));
    }
}
