//! A file that lies in the store, whole, becomes a row: a dataset's rows are checked first, and kept as trainers read them
//! where the file itself is not that.

use attune_domain::{
    id::{ProjectId, UploadId},
    run::Blob,
};
use attune_store::{
    blob,
    db::Tx,
    file::{self, Canonical, Dataset, File, NewFile, Source},
    upload,
};

use crate::{
    app::App,
    error::ApiError,
    file_terms::Purpose,
    incoming::{Arrived, Staged},
    parser::{self, Read},
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
    /// How long it is there; `None`: until it is deleted.
    pub expires_after_seconds: Option<u32>,
    /// The upload that it comes from; it is completed together with the file.
    pub upload: Option<UploadId>,
}

/// Checks it, puts it under its digest, and its row beside it. The row is the last step: without it there is no file, and
/// content that no row names is swept.
///
/// # Errors
/// A row of a dataset is bad, or the store refuses it. Nothing of the file is left then.
pub async fn keep(app: &App, project: ProjectId, received: Received) -> Result<File, ApiError> {
    let Received { staged, filename, purpose, arrived, expires_after_seconds, upload } = received;
    let read = match purpose {
        Purpose::FineTune =>
        // Boxed: a parser's future is large, and so would be those of all its callers.
        {
            Some(Box::pin(parser::read(app, staged.key(), &filename)).await?)
        }
        Purpose::Batch | Purpose::UserData | Purpose::Evals => None,
    };
    let mut tx = app.tenant(project).await?;
    let dataset = match read {
        Some(read) => Some(keep_rows(app, &mut tx, read).await?),
        None => None,
    };
    let Arrived { sha256, bytes } = place(app, &mut tx, staged, arrived).await?;
    let purpose = purpose.name().to_owned();
    let new = NewFile { filename, purpose, bytes, sha256, dataset, expires_after_seconds };
    let file = file::insert(&mut tx, project, new).await?;
    if let Some(upload) = upload {
        upload::complete(&mut tx, upload, file.file_id).await?;
    }
    tx.commit().await?;
    Ok(file)
}

async fn keep_rows(app: &App, tx: &mut Tx, Read { found, rows }: Read) -> Result<Dataset, ApiError> {
    let canonical = match rows {
        Some((staged, arrived)) => {
            let Arrived { sha256, bytes } = place(app, tx, staged, arrived).await?;
            Some(Canonical { sha256, bytes })
        }
        None => None,
    };
    let source = Source {
        container: found.container.name().to_owned(),
        compression: found.compression.map(|packed| packed.name().to_owned()),
        shape: found.shape.name().to_owned(),
    };
    Ok(Dataset { format: found.format, rows: found.rows, source, canonical })
}

/// Puts content under its digest, unless it is there already.
async fn place(app: &App, tx: &mut Tx, staged: Staged, arrived: Arrived) -> Result<Arrived, ApiError> {
    let wanted = Blob { name: String::new(), sha256: arrived.sha256.clone(), bytes: arrived.bytes };
    let grants = blob::grant(tx, &app.objects, &[wanted]).await?;
    if grants.iter().all(|grant| grant.url.is_none()) {
        staged.discard().await;
    } else {
        let kept = staged.keep(&arrived.sha256).await;
        kept.map_err(|cause| ApiError::StorageRefused { what: "file", cause })?;
    }
    Ok(arrived)
}
