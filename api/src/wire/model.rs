//! Models as OpenAI lists them: base models, and the project's tuned ones.

use attune_store::{
    adapters::{adapter::AdapterVersion, base_model::BaseModel},
    jobs::checkpoint::NamedCheckpoint,
};
use serde::Serialize;
use utoipa::ToSchema;

/// A model that answers chats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelView {
    /// Its name: what `model` is in a request.
    #[schema(example = "smollm2-135m-instruct")]
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created: i64,
    /// `attune` for a base model, the project's name for a tuned one.
    pub owned_by: String,
    /// Other names that it answers to now, of a tuned model: `records@prod`. Attune's own.
    pub aliases: Vec<String>,
}

impl ModelView {
    /// A base model.
    pub fn base(base: BaseModel) -> Self {
        let created = base.created_at.timestamp();
        Self { id: base.name, object: "model", created, owned_by: "attune".into(), aliases: Vec::new() }
    }

    /// A tuned model of `project`.
    pub fn tuned(adapter: AdapterVersion, project: &str) -> Self {
        let created = adapter.created_at.timestamp();
        let aliases = adapter.aliases.iter().map(|alias| format!("{}@{alias}", adapter.adapter)).collect();
        Self { id: adapter.model_name, object: "model", created, owned_by: project.to_owned(), aliases }
    }

    /// A checkpoint of `project`.
    pub fn checkpoint(named: NamedCheckpoint, project: &str) -> Self {
        let created = named.checkpoint.created_at.timestamp();
        Self { id: named.model_name, object: "model", created, owned_by: project.to_owned(), aliases: Vec::new() }
    }
}
