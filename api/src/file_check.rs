//! A file that lies in the store, whole, becomes a row: a dataset's rows are checked first.

use attune_domain::{dataset::RowChecker, id::ProjectId, run::Blob};
use attune_store::{
    blob,
    error::StoreError,
    file::{self, Dataset, File, NewFile, Source},
};

use crate::{
    app::App,
    error::ApiError,
    file_terms::{ExpiresAfter, Purpose},
    incoming::{Arrived, Staged},
};

/// A file that lies in the store, but is not kept yet.
pub struct Received {
    /// Where it lies.
    pub staged: Staged,
    /// As its user calls it.
    pub filename: String,
    /// What it is for.
    pub purpose: Purpose,
    /// What came.
    pub arrived: Arrived,
    /// When it goes by itself.
    pub expires_after: Option<ExpiresAfter>,
}

/// Checks it, puts it under its digest, and its row beside it. The row is the last step: without it there is no file, and
/// content that no row names is swept.
///
/// # Errors
/// A row of a dataset is bad, or the store refuses it. Nothing of the file is left then.
pub async fn keep(app: &App, project: ProjectId, received: Received) -> Result<File, ApiError> {
    let Received { staged, filename, purpose, arrived: Arrived { sha256, bytes }, expires_after } = received;
    let dataset = match purpose {
        Purpose::FineTune => Some(check(app, &staged).await?),
        Purpose::Batch | Purpose::UserData | Purpose::Evals => None,
    };
    let mut tx = app.tenant(project).await?;
    let wanted = Blob { name: filename.clone(), sha256: sha256.clone(), bytes };
    let grants = blob::grant(&mut tx, &app.objects, &[wanted]).await?;
    if grants.iter().all(|grant| grant.url.is_none()) {
        staged.discard().await; // the same content is there already
    } else {
        staged.keep(&sha256).await.map_err(|cause| ApiError::StorageRefused { what: "file", cause })?;
    }
    let (purpose, expires_after_seconds) = (purpose.name().to_owned(), expires_after.map(|after| after.seconds));
    let new = NewFile { filename, purpose, bytes, sha256, dataset, expires_after_seconds };
    let file = file::insert(&mut tx, project, new).await?;
    tx.commit().await?;
    Ok(file)
}

async fn check(app: &App, staged: &Staged) -> Result<Dataset, ApiError> {
    let key = staged.key().to_owned();
    let mut body = app.objects.get(&key).await?;
    let mut checker = RowChecker::new();
    while let Some(piece) = body.try_next().await.map_err(|cause| StoreError::Object {
        action: "get",
        key: key.clone(),
        cause: Box::new(cause),
    })? {
        checker.push(&piece);
    }
    let facts = checker.finish()?;
    let source = Source { container: "jsonl".into(), compression: None, shape: facts.format.name().into() };
    Ok(Dataset { format: facts.format, rows: facts.rows, source, canonical: None })
}
