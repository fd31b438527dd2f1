//! The starting point of a new job: a base model, and the adapter that the job continues, if any.
//!
//! `continue_from` names the adapter; so does `model`, if it is a tuned model's name, as OpenAI's clients send it.

use attune_domain::id::ProjectId;
use attune_store::{
    adapters::{
        adapter::{self, AdapterVersion, Model},
        base_model::{self, BaseModel},
    },
    error::StoreError,
};
use sqlx::PgConnection;

use crate::{error::ApiError, http::path_id::truncated, wire::job::NewJob};

/// A base model, and an adapter of it.
#[derive(Debug)]
pub struct Beginning {
    /// The base model.
    pub base: BaseModel,
    /// The adapter whose weights training starts from, locked until the transaction ends.
    pub adapter: Option<AdapterVersion>,
}

/// Finds both in this project.
///
/// # Errors
/// [`ApiError::ModelNotFound`]: the model does not exist. [`ApiError::Invalid`]: the adapter does not exist, differs
/// from the one that `model` names, or belongs to another base model.
pub async fn find(tx: &mut PgConnection, project: ProjectId, new: &NewJob) -> Result<Beginning, ApiError> {
    let model = adapter::resolve(tx, project, &new.model).await.map_err(ApiError::on_read(&new.model))?;
    let named = match (&new.continue_from, &model) {
        (None, Model::Tuned(tuned)) => Some(tuned.model_name.clone()),
        (_, Model::Checkpoint(_)) => {
            let message = "A job cannot continue from a checkpoint. Use the job's tuned model.";
            return Err(ApiError::unsupported("model", message));
        }
        (None, Model::Base(_)) => None,
        (Some(named), _) => Some(named.clone()),
    };
    let Some(named) = named else {
        let base = base_model::get(tx, model.base_model_id()).await?;
        return Ok(Beginning { base, adapter: None });
    };
    let adapter = match adapter::lock(tx, project, &named).await {
        Err(StoreError::NotFound(_)) => return Err(missing(&named)),
        found => found?,
    };
    check(&new.model, &model, &adapter)?;
    let base = base_model::get(tx, adapter.base_model_id).await?;
    Ok(Beginning { base, adapter: Some(adapter) })
}

fn missing(named: &str) -> ApiError {
    let shown = truncated(named);
    ApiError::Invalid {
        param: Some("continue_from".into()),
        code: "adapter_not_found",
        message: format!("Invalid 'continue_from': there is no adapter '{shown}'."),
    }
}

/// Checks that `model` and `continue_from` do not contradict each other.
fn check(name: &str, model: &Model, adapter: &AdapterVersion) -> Result<(), ApiError> {
    let id = adapter.adapter_version_id;
    let message = match model {
        Model::Tuned(tuned) if tuned.adapter_version_id != id => format!(
            "Invalid 'continue_from': {id} is not the adapter of 'model', '{name}', which is {}; leave one of the two \
             out.",
            tuned.adapter_version_id
        ),
        Model::Base(base) if base.base_model_id != adapter.base_model_id => format!(
            "Invalid 'continue_from': {id} is an adapter of '{}', and 'model' is '{name}'. An adapter can only be \
             continued on its own base.",
            adapter.base_model
        ),
        _ => return Ok(()),
    };
    Err(ApiError::invalid("continue_from", message))
}

#[cfg(test)]
mod tests {
    use attune_domain::{
        architecture::Architecture,
        digest::Sha256,
        id::{AdapterId, AdapterVersionId, BaseModelId},
        spec::{AdapterSpec, Quantization},
    };
    use chrono::DateTime;

    use super::*;

    const ONE: &str = "0190c2e17d2f7b3c9d1e5f6a7b8c9d01";
    const TWO: &str = "0190c2e17d2f7b3c9d1e5f6a7b8c9d02";

    fn adapter(id: &str, base: &str) -> AdapterVersion {
        AdapterVersion {
            adapter_version_id: AdapterVersionId::new(id.parse().unwrap()),
            base_model_id: BaseModelId::new(base.parse().unwrap()),
            base_model: "tiny".into(),
            quantization: Quantization::None,
            adapter_id: AdapterId::new(ONE.parse().unwrap()),
            adapter: "house".into(),
            version: 1,
            digest: Sha256::from_digest([0; 32]),
            job_id: None,
            spec: AdapterSpec::lora(4, 8.0, &["q_proj"]),
            manifest: None,
            aliases: Vec::new(),
            model_name: format!("ft:tiny:default::{id}"),
            files: Vec::new(),
            chat_template_sha256: None,
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    fn base(id: &str) -> Model {
        let config = include_str!("../../../domain/testdata/tiny.json");
        Model::Base(BaseModel {
            base_model_id: BaseModelId::new(id.parse().unwrap()),
            project_id: None,
            name: "tiny".into(),
            digest: Sha256::from_digest([0; 32]),
            architecture: Architecture::from_config_json(config.as_bytes()).unwrap(),
            origin: None,
            license: None,
            created_at: DateTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn an_adapter_is_continued_only_on_its_own_base() {
        assert!(check("tiny", &base(ONE), &adapter(ONE, ONE)).is_ok());
        let error = check("other", &base(TWO), &adapter(ONE, ONE)).unwrap_err().body().error;
        assert_eq!((error.param.as_deref(), error.code), (Some("continue_from"), Some("invalid_value")));
        assert!(error.message.contains("an adapter of 'tiny', and 'model' is 'other'"), "{}", error.message);
    }

    #[test]
    fn a_tuned_model_and_another_adapter_contradict_each_other() {
        assert!(check("ft:tiny", &Model::Tuned(adapter(ONE, ONE)), &adapter(ONE, ONE)).is_ok());
        let error = check("ft:tiny", &Model::Tuned(adapter(TWO, ONE)), &adapter(ONE, ONE)).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some("continue_from"));
        assert!(error.message.contains("leave one of the two out"), "{}", error.message);
    }
}
