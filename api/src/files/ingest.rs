//! A file that lies in the store, whole, becomes a row: a dataset's rows are checked first, and kept as trainers read them
//! where the file itself is not that.

use attune_domain::id::ProjectId;
use attune_store::files::{
    file::{self, Canonical, Dataset, File, NewFile, Source},
    upload::{self, Claim},
};

use crate::{
    app::App,
    error::ApiError,
    files::{
        parser::{self, Read},
        purpose::Purpose,
        staging::{Arrived, Staged},
        storage,
    },
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
    /// The claim on the upload that it comes from; that is completed together with the file.
    pub upload: Option<Claim>,
}

/// Checks it, puts it under its digest, and its row beside it. The row is the last step: without it there is no file, and
/// content that no row names is swept.
///
/// # Errors
/// A row of a dataset is bad, or the store refuses it. Nothing of the file is left then.
pub async fn keep(app: &App, project: ProjectId, received: Received) -> Result<File, ApiError> {
    let Received { staged, filename, purpose, arrived, expires_after_seconds, upload } = received;
    let read = match purpose {
        // Boxed: a parser's future is large, and so would be those of all its callers.
        Purpose::FineTune => Some(Box::pin(parser::read(app, staged.key(), &filename)).await?),
        Purpose::Batch | Purpose::UserData | Purpose::Evals => None,
    };
    let dataset = match read {
        Some(read) => Some(keep_rows(app, read).await?),
        None => None,
    };
    staged.place(app, &arrived, "file").await?;
    let mut tx = if upload.is_some() { app.completing(project).await? } else { app.tenant(project).await? };
    let Arrived { sha256, bytes } = arrived;
    let purpose = purpose.name().to_owned();
    let new = NewFile { filename, purpose, bytes, sha256, dataset, expires_after_seconds };
    let file = file::insert(&mut tx, project, new).await?;
    if let Some(upload) = upload {
        upload::complete(&mut tx, upload, file.file_id).await?;
    }
    storage::check(app, &mut tx, project).await?;
    tx.commit().await?;
    Ok(file)
}

async fn keep_rows(app: &App, Read { found, rows }: Read) -> Result<Dataset, ApiError> {
    let canonical = match rows {
        Some((staged, arrived)) => {
            staged.place(app, &arrived, "file").await?;
            let Arrived { sha256, bytes } = arrived;
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
