//! The draft model of a deployment: a smaller base of the project or of the installation, with the tokens of the
//! deployment's own base.

use attune_domain::{
    id::{BaseModelId, DeploymentId, ProjectId},
    run::Blob,
    serve::draft_refusal,
};
use attune_store::{
    adapters::base_model::{self, BaseModel, small_files},
    pools::deployment,
};
use attune_text::token_ids::TokenIds;
use sqlx::PgConnection;

use crate::{app::App, error::ApiError, http::path_id::truncated};

/// The file with a model's vocabulary.
const TOKENIZER: &str = "tokenizer.json";

/// The base model that a draft is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Drafted<'a> {
    /// That of a new deployment, by its name.
    Model(&'a str),
    /// That of a deployment.
    Deployment(DeploymentId),
}

/// Returns the ID of the base model of this name, if it can draft for `of`. Call it before the request's own
/// transaction: it reads files.
///
/// # Errors
/// [`ApiError::Invalid`] with the reason why it cannot. [`ApiError::ModelNotFound`], [`ApiError::NotFound`]: `of` does
/// not exist.
pub(crate) async fn resolve(
    app: &App,
    project: ProjectId,
    name: &str,
    of: Drafted<'_>,
) -> Result<BaseModelId, ApiError> {
    if !app.inference.serving.speculation {
        return Err(invalid("speculative decoding is off on this installation (serving.speculation)"));
    }
    let mut db = app.beside(project).await?;
    let base = match of {
        Drafted::Model(model) => {
            let found = base_model::by_name(&mut db, project, model).await?;
            found.ok_or_else(|| ApiError::ModelNotFound(model.to_owned()))?
        }
        Drafted::Deployment(id) => {
            let found = deployment::get(&mut db, project, id).await.map_err(ApiError::on_read(id.to_string()))?;
            base_model::get(&mut db, found.base.base_model_id).await?
        }
    };
    let Some(draft) = base_model::by_name(&mut db, project, name).await? else {
        return Err(invalid(&format!("the project has no base model '{}'", truncated(name))));
    };
    let files =
        [base_model::files(&mut db, base.base_model_id).await?, base_model::files(&mut db, draft.base_model_id).await?];
    drop(db);
    let refused = |reason: String| invalid(&format!("'{}' cannot draft for '{}': {reason}", draft.name, base.name));
    if let Some(reason) = draft_refusal(&base.architecture, &draft.architecture) {
        return Err(refused(reason));
    }
    match vocabulary_refusal(app, files).await? {
        Some(reason) => Err(refused(reason)),
        None => Ok(draft.base_model_id),
    }
}

/// Resolves the draft model of a change, see [`resolve`]. `None`: the change does not set it; `Some(None)`: it removes
/// it.
///
/// # Errors
/// As [`resolve`].
pub(crate) async fn changed(
    app: &App,
    project: ProjectId,
    id: DeploymentId,
    name: Option<&Option<String>>,
) -> Result<Option<Option<BaseModelId>>, ApiError> {
    Ok(match name {
        Some(Some(name)) => Some(Some(resolve(app, project, name, Drafted::Deployment(id)).await?)),
        Some(None) => Some(None),
        None => None,
    })
}

/// Returns the reason why the vocabularies of a base and of its draft are not the same; `None`: they are.
async fn vocabulary_refusal(app: &App, [base, draft]: [Vec<Blob>; 2]) -> Result<Option<String>, ApiError> {
    let digest = |files: &[Blob]| files.iter().find(|file| file.name == TOKENIZER).map(|file| file.sha256);
    if digest(&base).is_some() && digest(&base) == digest(&draft) {
        return Ok(None);
    }
    let mut tokenizers = Vec::with_capacity(2);
    for files in [base, draft] {
        let mut found = small_files(&app.objects, &files, &[TOKENIZER]).await?;
        tokenizers.push(found.remove(TOKENIZER).unwrap_or_default());
    }
    let compared = tokio::task::spawn_blocking(move || {
        let read = |json: &Vec<u8>| TokenIds::read(json).map_err(|why| ApiError::internal(std::io::Error::other(why)));
        let [base, draft] = [read(&tokenizers[0])?, read(&tokenizers[1])?];
        Ok::<_, ApiError>(draft.difference(&base))
    });
    let difference = compared.await.map_err(ApiError::internal)??;
    Ok(difference.map(|difference| format!("its vocabulary differs: {difference}")))
}

fn invalid(reason: &str) -> ApiError {
    ApiError::invalid("draft_model", format!("Invalid 'draft_model': {reason}."))
}

/// Returns the draft model of a deployment, by its ID.
///
/// # Errors
/// [`ApiError::Internal`].
pub(crate) async fn get(tx: &mut PgConnection, id: Option<BaseModelId>) -> Result<Option<BaseModel>, ApiError> {
    Ok(match id {
        Some(id) => Some(base_model::get(tx, id).await?),
        None => None,
    })
}
