//! Generation in LoRAX's format: text completions with one prompt and one answer.

use attune_domain::{
    digest::Sha256,
    id::{AdapterVersionId, ProjectId},
    serve::{AdapterKey, AdapterMerge, AdapterPart, AdapterRef, GenerateEvent},
};
use attune_store::db::Tx;
use sha2::Digest;

use crate::{
    completion,
    context::Inference,
    error::InferenceError,
    generation::Generation,
    requester::Requester,
    resolve::{self, AskedModel, ModelName},
    wire::{
        lorax::{
            answer::{LoraxAnswer, finish},
            merge::{AT, MergeRequest},
            request::LoraxRequest,
            response::{LoraxChunk, LoraxDetails, LoraxEnd, LoraxFinish, LoraxPrefillToken, LoraxResponse, LoraxToken},
        },
        param_names::ParamNames,
    },
};

/// A generation whose prompt is processed.
pub struct BegunGeneration {
    /// The adapter version that answers; `None` for a base model or a checkpoint.
    pub adapter_version: Option<AdapterVersionId>,
    generation: Generation,
    answer: LoraxAnswer,
    finish_reason: LoraxFinish,
    names: ParamNames,
    full_text: Option<String>,
    seed: Option<u64>,
    details: bool,
}

/// The next tokens of an answer, or its end.
enum Next {
    Tokens(Vec<LoraxToken>),
    End { last: Option<LoraxToken>, generated_text: String, end: LoraxEnd },
}

/// The next chunks of a stream.
pub struct NextChunks {
    /// The chunks.
    pub chunks: Vec<LoraxChunk>,
    /// `true` if no chunk follows.
    pub is_last: bool,
}

/// Finds the model of a request: the adapter that it names, or the merge of several, whose base must be that of
/// `server_model`, the model in the path; or else that model.
async fn find(
    inference: &Inference,
    tx: Tx,
    project: ProjectId,
    server_model: ModelName<'_>,
    request: &LoraxRequest,
) -> Result<AskedModel, InferenceError> {
    let server = resolve::find(inference, tx, project, server_model).await?;
    if let Some(merge) = &request.merge {
        return find_merge(inference, server_model, &server, merge).await;
    }
    let Some(name) = &request.adapter else { return Ok(server) };
    find_adapter(inference, ModelName { name, ..server_model }, &server, "parameters.adapter_id").await
}

/// Finds the model that the parameter `at` names. It must have the base of `server`.
async fn find_adapter(
    inference: &Inference,
    asked: ModelName<'_>,
    server: &AskedModel,
    at: &str,
) -> Result<AskedModel, InferenceError> {
    let project = server.project_id;
    let found = resolve::find(inference, inference.tenant(project).await?, project, asked).await?;
    if found.base.base_model_id == server.base.base_model_id {
        return Ok(found);
    }
    let (name, own) = (asked.name, &server.name);
    let message = format!("Invalid '{at}': '{name}' has another base than '{own}', the model in the path.");
    Err(InferenceError::invalid(at, message))
}

/// Finds the adapters of a merge, which must have been trained over one quantization of the base.
async fn find_merge(
    inference: &Inference,
    server_model: ModelName<'_>,
    server: &AskedModel,
    merge: &MergeRequest,
) -> Result<AskedModel, InferenceError> {
    let (mut parts, mut first) = (Vec::with_capacity(merge.adapters.len()), None);
    for (i, (name, weight)) in merge.adapters.iter().enumerate() {
        let at = format!("{AT}.ids[{i}]");
        let found = find_adapter(inference, ModelName { name, ..server_model }, server, &at).await?;
        let base = first.as_ref().map_or(found.base, |first: &AskedModel| first.base);
        if found.base != base {
            let (own, others) = (found.base.quantization, base.quantization);
            let message =
                format!("Invalid '{at}': '{name}' was trained over the quantization {own}, others over {others}.");
            return Err(InferenceError::invalid(at, message));
        }
        let Some(adapter) = found.adapter.clone() else {
            return Err(InferenceError::invalid(&at, format!("Invalid '{at}': '{name}' is not an adapter.")));
        };
        parts.push(AdapterPart { id: adapter.id, files: adapter.files, weight: *weight });
        first.get_or_insert(found);
    }
    let first = first.ok_or_else(|| InferenceError::internal("a merge has no adapter"))?;
    let merge = AdapterMerge { rule: merge.rule, parts };
    let digest = digest(&merge)?;
    let adapter = AdapterRef { id: AdapterKey::Merged(digest), files: Vec::new(), merge: Some(merge) };
    Ok(first.with_merge(format!("{}:merge-{digest:.12}", server.name), adapter))
}

/// Returns the digest of a merge: of the rule, and the IDs and weights of the adapters, in order.
fn digest(merge: &AdapterMerge) -> Result<Sha256, InferenceError> {
    let parts: Vec<(AdapterKey, f64)> = merge.parts.iter().map(|part| (part.id, part.weight)).collect();
    let text = serde_json::to_vec(&(merge.rule, parts)).map_err(InferenceError::internal)?;
    Ok(Sha256::from_digest(sha2::Sha256::digest(&text).into()))
}

/// Finds the model of a request, sends the prompt to a replica of it, which is started if necessary, and waits until
/// the prompt is processed. `server_model` is the model in the path, and `tx` a transaction of the requester's project.
///
/// # Errors
/// [`InferenceError::ModelNotFound`]; [`InferenceError::ReplicaUnavailable`]; [`InferenceError::Invalid`]: an adapter
/// has another base, or the prompt is at fault.
pub async fn begin(
    inference: &Inference,
    tx: Tx,
    requester: &Requester<'_>,
    server_model: &str,
    request: LoraxRequest,
) -> Result<BegunGeneration, InferenceError> {
    let name = ModelName { name: server_model, split_key: requester.request_id };
    let model = find(inference, tx, requester.project, name, &request).await?;
    let LoraxRequest { completion, names, full_text, seed, details, .. } = request;
    let begun = completion::begin_with(inference, model, requester, completion).await;
    let begun = begun.map_err(|error| names.apply(error))?;
    let adapter_version = begun.adapter_version;
    let generation = begun.generations.into_iter().next();
    let generation = generation.ok_or_else(|| InferenceError::internal("a completion has no prompt"))?;
    let (answer, finish_reason) = (LoraxAnswer::default(), LoraxFinish::Length);
    Ok(BegunGeneration { adapter_version, generation, answer, finish_reason, names, full_text, seed, details })
}

impl BegunGeneration {
    /// Returns the next chunks of the stream.
    ///
    /// # Errors
    /// As [`Generation::next`].
    pub async fn next(&mut self) -> Result<NextChunks, InferenceError> {
        let inner = |token| LoraxChunk { token, generated_text: None, details: None };
        Ok(match self.advance().await? {
            Next::Tokens(tokens) => NextChunks { chunks: tokens.into_iter().map(inner).collect(), is_last: false },
            Next::End { last, generated_text, end } => {
                let details = self.details.then_some(end);
                let last = last.map(|token| LoraxChunk { token, generated_text: Some(generated_text), details });
                NextChunks { chunks: last.into_iter().collect(), is_last: true }
            }
        })
    }

    /// Returns the whole answer.
    ///
    /// # Errors
    /// As [`Generation::next`].
    pub async fn whole(mut self) -> Result<LoraxResponse, InferenceError> {
        let mut tokens = Vec::new();
        loop {
            match self.advance().await? {
                Next::Tokens(more) => tokens.extend(more),
                Next::End { last, generated_text, end } => {
                    tokens.extend(last);
                    let echoed = self.generation.echo.take().map(|echo| echo.tokens).unwrap_or_default();
                    let prefill = echoed.into_iter().map(LoraxPrefillToken::from).collect();
                    let details = self.details.then_some(LoraxDetails { end, prefill, tokens });
                    return Ok(LoraxResponse { generated_text, details });
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<Next, InferenceError> {
        let next = self.generation.next().await.map_err(|error| self.names.apply(error))?;
        Ok(Next::Tokens(match next {
            GenerateEvent::Piece { tokens, .. } => self.answer.add(tokens),
            GenerateEvent::Finished { finish_reason, stop_string, end_tokens, .. } => {
                self.finish_reason = finish(finish_reason, stop_string);
                self.answer.add(end_tokens)
            }
            GenerateEvent::Done { completion_tokens } => return Ok(self.end(completion_tokens)),
            // Only chats have tools, and a generation returns neither of the others.
            GenerateEvent::ToolCallStart { .. }
            | GenerateEvent::Arguments { .. }
            | GenerateEvent::Started { .. }
            | GenerateEvent::Failed { .. } => Vec::new(),
        }))
    }

    fn end(&mut self, generated_tokens: u64) -> Next {
        let (last, text) = std::mem::take(&mut self.answer).end();
        let end = LoraxEnd {
            finish_reason: self.finish_reason,
            prompt_tokens: self.generation.prompt_tokens,
            generated_tokens,
            seed: self.seed,
        };
        Next::End { last, generated_text: self.full_text.take().unwrap_or_default() + &text, end }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::{MajoritySign, MergeRule, MergeStrategy};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_merge_is_known_by_its_rule_its_adapters_and_their_weights() {
        let merge = |strategy, parts: &[(u128, f64)]| {
            let rule = MergeRule { strategy, density: 0.5, majority_sign: MajoritySign::Total, seed: 0 };
            let part = |(number, weight): &(u128, f64)| AdapterPart {
                id: AdapterKey::Version(AdapterVersionId::new(Uuid::from_u128(*number))),
                files: Vec::new(),
                weight: *weight,
            };
            digest(&AdapterMerge { rule, parts: parts.iter().map(part).collect() }).unwrap()
        };
        let one = merge(MergeStrategy::Ties, &[(1, 0.5), (2, 0.5)]);
        assert_eq!(merge(MergeStrategy::Ties, &[(1, 0.5), (2, 0.5)]), one);
        for other in [
            merge(MergeStrategy::Linear, &[(1, 0.5), (2, 0.5)]),
            merge(MergeStrategy::Ties, &[(1, 0.5), (2, 0.25)]),
            merge(MergeStrategy::Ties, &[(1, 0.5), (3, 0.5)]),
            merge(MergeStrategy::Ties, &[(1, 0.5)]),
        ] {
            assert_ne!(other, one);
        }
        let key = AdapterKey::Merged(one);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<AdapterKey>(&text).unwrap(), key);
    }
}
