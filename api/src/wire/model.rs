//! Models as OpenAI lists them: base models, and the project's fine-tuned models.

use attune_store::{
    adapters::{adapter::AdapterVersion, base_model::BaseModel},
    jobs::checkpoint::NamedCheckpoint,
};
use serde::Serialize;
use utoipa::ToSchema;

/// A model that can be used for completions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelView {
    /// The model's name, for `model` in a request.
    #[schema(example = "smollm2-135m-instruct")]
    pub id: String,
    /// The object type, always `model`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created: i64,
    /// The owner: `attune` for a base model, the project's name for a fine-tuned model.
    pub owned_by: String,
    /// The aliases that currently point to a fine-tuned model, such as `records@prod`. Attune extension.
    pub aliases: Vec<String>,
}

impl ModelView {
    /// Creates the view of a base model.
    pub fn base(base: BaseModel) -> Self {
        let created = base.created_at.timestamp();
        Self { id: base.name, object: "model", created, owned_by: "attune".into(), aliases: Vec::new() }
    }

    /// Creates the view of a fine-tuned model of `project`.
    pub fn tuned(adapter: AdapterVersion, project: &str) -> Self {
        let created = adapter.created_at.timestamp();
        let aliases = adapter.aliases.iter().map(|alias| format!("{}@{alias}", adapter.adapter)).collect();
        Self { id: adapter.model_name, object: "model", created, owned_by: project.to_owned(), aliases }
    }

    /// Creates the view of a checkpoint of `project`.
    pub fn checkpoint(named: NamedCheckpoint, project: &str) -> Self {
        let created = named.checkpoint.created_at.timestamp();
        Self { id: named.model_name, object: "model", created, owned_by: project.to_owned(), aliases: Vec::new() }
    }
}
