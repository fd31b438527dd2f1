//! The draft model of a replica: a smaller base that proposes the next tokens, which the replica's own base verifies.

use serde::{Deserialize, Serialize};

use crate::{architecture::Architecture, digest::Sha256, run::RemoteFile};

/// The draft model of a replica, in the quantization of its base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftSpec {
    /// The digest of the draft's content; nodes use it as a cache key.
    pub base_digest: Sha256,
    /// The draft's files, a Hugging Face folder.
    pub base: Vec<RemoteFile>,
}

/// Returns the reason why `draft` cannot propose tokens for `base`, by the sizes of the models; `None`: it can. A draft
/// that is not smaller takes as long for a token as the base itself. Their vocabularies must agree too.
#[must_use]
pub fn draft_refusal(base: &Architecture, draft: &Architecture) -> Option<String> {
    let weights = |model: &Architecture| model.projection_weights() + model.embedding_weights();
    let (ours, theirs) = (weights(base), weights(draft));
    (theirs >= ours).then(|| {
        format!("it has {theirs} weights, and the base has {ours}. A draft model must be smaller than its base")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = include_str!("../../testdata/smollm2.json");

    #[test]
    fn only_a_smaller_model_drafts() {
        let base = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        let smaller = Architecture { num_hidden_layers: base.num_hidden_layers - 1, ..base.clone() };
        assert_eq!(draft_refusal(&base, &smaller), None);
        assert!(draft_refusal(&base, &base).unwrap().contains("must be smaller than its base"));
        assert!(draft_refusal(&smaller, &base).is_some());
    }
}
