//! Which version of a row is there: what an `ETag` names and an `If-Match` asks for.
//!
//! The version is PostgreSQL's own `xmin`, the transaction that wrote the row last: it changes with every write, whoever
//! writes, and needs no column and no trigger. After a restore from a dump every version is another one, so what was read
//! before it no longer matches: an `If-Match` is then refused once more than it must be, never once less.

use attune_domain::id::{AdapterVersionId, BatchId, FileId, JobId, ProjectId, WebhookEndpointId};
use sqlx::PgConnection;

use crate::{adapter, error::StoreError};

/// A kind of thing that has versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// A fine-tuning job.
    Job,
    /// A file.
    File,
    /// A batch.
    Batch,
    /// An adapter, by its id or its model's name.
    Adapter,
    /// A webhook endpoint.
    WebhookEndpoint,
}

/// The version of the project's thing of this name; `None`: there is none, or none of this project.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn of(
    db: &mut PgConnection,
    project: ProjectId,
    thing: Thing,
    name: &str,
) -> Result<Option<String>, StoreError> {
    Ok(match thing {
        Thing::Job => {
            let Ok(id) = name.parse::<JobId>() else { return Ok(None) };
            sqlx::query_scalar!(
                r#"select xmin::text as "version!" from job where job_id = $1 and project_id = $2"#,
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(db)
            .await?
        }
        Thing::File => {
            let Ok(id) = name.parse::<FileId>() else { return Ok(None) };
            sqlx::query_scalar!(
                r#"select xmin::text as "version!" from file where file_id = $1 and project_id = $2"#,
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(db)
            .await?
        }
        Thing::Batch => {
            let Ok(id) = name.parse::<BatchId>() else { return Ok(None) };
            sqlx::query_scalar!(
                r#"select xmin::text as "version!" from batch where batch_id = $1 and project_id = $2"#,
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(db)
            .await?
        }
        Thing::WebhookEndpoint => {
            let Ok(id) = name.parse::<WebhookEndpointId>() else { return Ok(None) };
            sqlx::query_scalar!(
                r#"select xmin::text as "version!" from webhook_endpoint
                   where webhook_endpoint_id = $1 and project_id = $2"#,
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(db)
            .await?
        }
        Thing::Adapter => {
            let Some(id) = adapter_named(db, project, name).await? else { return Ok(None) };
            sqlx::query_scalar!(
                r#"select xmin::text as "version!" from adapter_version
                   where adapter_version_id = $1 and project_id = $2"#,
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(db)
            .await?
        }
    })
}

/// As [`of`], and nobody else can write the row until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock(
    tx: &mut PgConnection,
    project: ProjectId,
    thing: Thing,
    name: &str,
) -> Result<Option<String>, StoreError> {
    match thing {
        Thing::Job => {
            let Ok(id) = name.parse::<JobId>() else { return Ok(None) };
            sqlx::query!("select from job where job_id = $1 and project_id = $2 for update", id.uuid(), project.uuid())
                .fetch_optional(&mut *tx)
                .await?;
        }
        Thing::File => {
            let Ok(id) = name.parse::<FileId>() else { return Ok(None) };
            sqlx::query!(
                "select from file where file_id = $1 and project_id = $2 for update",
                id.uuid(),
                project.uuid()
            )
            .fetch_optional(&mut *tx)
            .await?;
        }
        Thing::Batch => {
            let Ok(id) = name.parse::<BatchId>() else { return Ok(None) };
            sqlx::query!(
                "select from batch where batch_id = $1 and project_id = $2 for update",
                id.uuid(),
                project.uuid()
            )
            .fetch_optional(&mut *tx)
            .await?;
        }
        Thing::WebhookEndpoint => {
            let Ok(id) = name.parse::<WebhookEndpointId>() else { return Ok(None) };
            sqlx::query!(
                "select from webhook_endpoint where webhook_endpoint_id = $1 and project_id = $2 for update",
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(&mut *tx)
            .await?;
        }
        Thing::Adapter => {
            let Some(id) = adapter_named(tx, project, name).await? else { return Ok(None) };
            sqlx::query!(
                "select from adapter_version where adapter_version_id = $1 and project_id = $2 for update",
                id.uuid(),
                project.uuid(),
            )
            .fetch_optional(&mut *tx)
            .await?;
        }
    }
    // A statement of its own, so that it sees what was written while the lock was waited for.
    of(tx, project, thing, name).await
}

async fn adapter_named(
    db: &mut PgConnection,
    project: ProjectId,
    name: &str,
) -> Result<Option<AdapterVersionId>, StoreError> {
    if let Ok(id) = name.parse() {
        return Ok(Some(id));
    }
    match adapter::find(db, project, name).await {
        Ok(version) => Ok(Some(version.adapter_version_id)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
