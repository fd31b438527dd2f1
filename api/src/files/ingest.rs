//! The step from a complete file in the object store to its row: a dataset's rows are checked first, and also stored as
//! JSONL for trainers where the file itself has another form.

use attune_domain::id::ProjectId;
use attune_process::failpoint::FailPoint;
use attune_store::files::{
    file::{self, Canonical, Dataset, File, NewFile, Source},
    staging::{Arrived, Staged},
    upload::{self, Claim},
};

use crate::{
    app::App,
    error::ApiError,
    files::{
        parser::{self, Read},
        purpose::Purpose,
        storage,
    },
};

/// A complete file in the object store that has no row yet.
pub struct Received {
    /// The staged object.
    pub staged: Staged,
    /// The file's name, as the user gave it.
    pub filename: String,
    /// The file's purpose.
    pub purpose: Purpose,
    /// The file's digest and size.
    pub arrived: Arrived,
    /// The time after which the file expires, in seconds; `None` if it does not expire.
    pub expires_after_seconds: Option<u32>,
    /// The claim on the upload that the file comes from, which is completed together with the file.
    pub upload: Option<Claim>,
}

/// Checks the file, moves it to the key of its digest, and writes its row. The row is the last step: without it there
/// is no file, and content that no row names is swept.
///
/// # Errors
/// A row of a dataset is invalid, or the store fails. Nothing of the file is kept then.
pub async fn keep(app: &App, project: ProjectId, received: Received) -> Result<File, ApiError> {
    let Received { staged, filename, purpose, arrived, expires_after_seconds, upload } = received;
    let read = match purpose {
        // Boxed: the parser's future is large, and would enlarge those of all its callers.
        Purpose::FineTune => Some(Box::pin(parser::read(app, project, staged.key(), &filename)).await?),
        Purpose::Batch | Purpose::UserData | Purpose::Evals => None,
    };
    let dataset = match read {
        Some(read) => Some(keep_rows(app, read).await?),
        None => None,
    };
    staged.place(&app.db, &arrived, "file").await?;
    let mut tx = if upload.is_some() { app.completing(project).await? } else { app.tenant(project).await? };
    let Arrived { sha256, bytes } = arrived;
    let rows = dataset.as_ref().and_then(|dataset| dataset.canonical.as_ref()).map(|rows| rows.bytes);
    let added = storage::of([bytes].into_iter().chain(rows));
    let purpose = purpose.name().to_owned();
    let new = NewFile { filename, purpose, bytes, sha256, dataset, expires_after_seconds };
    let file = file::insert(&mut tx, project, new).await?;
    if let Some(upload) = upload {
        upload::complete(&mut tx, upload, file.file_id).await?;
    }
    storage::check(app, &mut tx, project, added).await?;
    tx.commit_at(FailPoint::FileCreate).await?;
    Ok(file)
}

async fn keep_rows(app: &App, Read { found, rows }: Read) -> Result<Dataset, ApiError> {
    let canonical = match rows {
        Some((staged, arrived)) => {
            staged.place(&app.db, &arrived, "file").await?;
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
