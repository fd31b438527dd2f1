//! The caller of a request. Its project, its API key and its allowance are charged for the answers.

use attune_domain::{
    id::{ApiKeyId, ProjectId},
    serve::Priority,
};
use attune_store::db::Tx;

use crate::{
    context::Inference,
    error::InferenceError,
    generation::Generation,
    metering::TokenAllowance,
    resolve::{self, AskedModel, ModelName},
};

/// The caller of a request.
pub struct Requester<'a> {
    /// The caller's project.
    pub project: ProjectId,
    /// The caller's API key, if it has one.
    pub api_key_id: Option<ApiKeyId>,
    /// The allowance that the tokens are charged to, if there is one.
    pub allowance: Option<TokenAllowance>,
    /// The request's ID.
    pub request_id: &'a str,
    /// The priority of the request at a replica.
    pub priority: Priority,
}

impl<'a> Requester<'a> {
    /// Returns the caller of a batch's row.
    #[must_use]
    pub const fn batch(project: ProjectId, request_id: &'a str) -> Self {
        Self { project, api_key_id: None, allowance: None, request_id, priority: Priority::Batch }
    }

    /// Finds the model with this name. `tx` is a transaction of the caller's project.
    ///
    /// # Errors
    /// As [`resolve::find`].
    pub(crate) async fn model(
        &self,
        inference: &Inference,
        tx: Tx,
        name: &str,
        split_key: Option<&str>,
    ) -> Result<AskedModel, InferenceError> {
        resolve::find(inference, tx, self.project, ModelName::new(name, split_key, self.request_id)).await
    }

    /// Charges the answers of a model.
    pub(crate) fn charge(&self, inference: &Inference, model: &AskedModel, generation: &mut Generation) {
        generation.charge(&inference.meter, model.account(self.api_key_id), self.allowance.clone());
    }
}
