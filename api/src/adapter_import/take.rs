//! An adapter import from its form to its row: read, check, store. The row is written last; without it nothing was
//! imported.

use attune_domain::{
    id::{AdapterVersionId, ProjectId},
    manifest::{self, Origin},
    run::Blob,
};
use attune_process::failpoint::FailPoint;
use attune_store::adapters::{
    adapter::AdapterVersion,
    adapter_version::{self, NewVersion},
    base_model::{self, BaseModel},
};

use crate::{
    adapter_import::{
        check::{self, Checked},
        form::{self as adapter_form, Brought, BroughtFile},
        tokens,
    },
    app::App,
    error::ApiError,
    files::{
        file_form::{missing, read_on},
        multipart::Form,
        storage,
    },
    http::path_id::truncated,
};

/// The maximum number of concurrent imports.
pub const AT_ONCE: usize = 4;

/// The maximum number of concurrent imports of one project.
pub const AT_ONCE_OF_PROJECT: usize = 2;

/// Imports an adapter from a form, as the next version of the adapter with the form's name.
///
/// # Errors
/// The form is incomplete or has an invalid field, the adapter is rejected, the same content already exists, or the
/// store fails. Nothing of it is kept then.
pub async fn take(app: &App, project: ProjectId, mut form: Form) -> Result<AdapterVersion, ApiError> {
    let _place = app.adapter_imports.take(project, "imports of adapters").await?;
    storage::expect(app, project, 0).await?;
    let mut brought = Brought::default();
    if let Err(error) = adapter_form::read(&app.objects, app.limits.file_bytes, &mut form, &mut brought).await {
        read_on(&mut form).await;
        return Err(error);
    }
    let name = brought.name.take().ok_or_else(|| missing("name"))?;
    check_name(&name)?;
    let base_name = brought.base_model.take().ok_or_else(|| missing("base_model"))?;
    let mut db = app.tenant(project).await?;
    let base = base_model::by_name(&mut db, project, &base_name).await?.ok_or(ApiError::ModelNotFound(base_name))?;
    let base_files = base_model::files(&mut db, base.base_model_id).await?;
    drop(db);
    brought.reasons.extend(tokens::judge(&app.objects, &brought, &base_files).await?);
    let checked = check::check(&brought, &base)?;
    keep(app, project, (name, base), checked, brought.files).await
}

/// Moves the files to the keys of their digests and writes the version's row.
async fn keep(
    app: &App,
    project: ProjectId,
    (name, base): (String, BaseModel),
    checked: Checked,
    brought: Vec<BroughtFile>,
) -> Result<AdapterVersion, ApiError> {
    // The version gets a manifest of its own, which includes the uploaded one.
    let brought = brought.into_iter().filter(|file| file.name != manifest::FILE);
    let (mut blobs, mut staged) = (Vec::new(), Vec::new());
    for BroughtFile { name, staged: object, arrived } in brought {
        blobs.push(Blob { name, sha256: arrived.sha256, bytes: arrived.bytes });
        staged.push((object, arrived));
    }
    for (object, arrived) in staged {
        object.place(&app.db, &arrived, "adapter").await?;
    }
    let mut tx = app.tenant(project).await?;
    let digest = base_model::digest(&blobs);
    if let Some(version) = adapter_version::by_digest(&mut tx, project, &name, digest, checked.quantization).await? {
        return Err(ApiError::Conflict(format!("'{name}' already has this content, as version {version}.")));
    }
    let added = storage::of_files(&blobs);
    let new = NewVersion {
        project_id: project,
        suffix: Some(name.clone()),
        adapter: name,
        base,
        job_id: None,
        quantization: checked.quantization,
        spec: checked.spec,
        files: blobs,
        chat_template_sha256: checked.template_sha256,
        origin: Origin::Import { brought: checked.manifest },
    };
    let version = adapter_version::insert(&mut tx, new).await?;
    storage::check(app, &mut tx, project, added).await?;
    tx.commit_at(FailPoint::AdapterImport).await?;
    Ok(version)
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) && name.parse::<AdapterVersionId>().is_err() {
        return Ok(());
    }
    let shown = truncated(name);
    let message = format!("Invalid 'name': '{shown}'. Use 1 to 64 letters, digits, '.', '_' or '-', but not an ID.");
    Err(ApiError::invalid("name", message))
}
