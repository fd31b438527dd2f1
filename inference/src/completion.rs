//! Text completions: one request to a replica for each prompt, one response for all.

use attune_domain::{
    id::{AdapterVersionId, ProjectId},
    serve::GenerateRequest,
};
use attune_store::db::Tx;
use chrono::Utc;
use futures::future::try_join_all;
use serde_json::{Map, Value};

use crate::{
    answer::Answer,
    context::Inference,
    error::InferenceError,
    generation::{self, Generation},
    requester::Requester,
    resolve::AskedModel,
    shadow,
    wire::{
        chat_answer::Usage,
        completion::{CompletionRequest, NewCompletion},
        completion_answer::{Completion, CompletionHeading},
        sampling::refuse_stream,
    },
};

/// A text completion whose prompts are processed.
pub struct BegunCompletion {
    /// The fields that all parts of the completion share.
    pub heading: CompletionHeading,
    /// The answers to each prompt.
    pub generations: Vec<Generation>,
    /// The number of choices to return for each prompt.
    pub choices: u32,
    /// The number of choices that are generated for each prompt.
    generated: u32,
    /// The adapter version that answers; `None` for a base model or a checkpoint.
    pub adapter_version: Option<AdapterVersionId>,
}

/// Finds the model of a completion, sends each prompt to a replica of it, which is started if necessary, and waits
/// until all are processed. `tx` is a transaction of the requester's project.
///
/// # Errors
/// [`InferenceError::ModelNotFound`]; [`InferenceError::ReplicaUnavailable`]; [`InferenceError::Invalid`] if a prompt
/// is at fault.
pub async fn begin(
    inference: &Inference,
    tx: Tx,
    requester: &Requester<'_>,
    new: CompletionRequest,
) -> Result<BegunCompletion, InferenceError> {
    let model = requester.model(inference, tx, &new.model, new.split_key.as_deref()).await?;
    begin_with(inference, model, requester, new).await
}

/// As [`begin`], with this model.
pub(crate) async fn begin_with(
    inference: &Inference,
    model: AskedModel,
    requester: &Requester<'_>,
    new: CompletionRequest,
) -> Result<BegunCompletion, InferenceError> {
    let requests: Vec<GenerateRequest> = new
        .prompts
        .into_iter()
        .map(|prompt| GenerateRequest {
            request_id: requester.request_id.to_owned(),
            project: model.project_id.to_string(),
            priority: requester.priority,
            adapter: model.adapter.clone(),
            keep: model.keep,
            prompt,
            truncate: new.truncate,
            echo: new.echo,
            form: new.form.clone(),
            tools: None,
            choices: new.generated,
            sampling: new.sampling.clone(),
        })
        .collect();
    let begun = requests.iter().map(|request| generation::begin(inference, &model, request));
    let mut generations = try_join_all(begun).await.map_err(|error| new.names.apply(error))?;
    for (request, generation) in requests.iter().zip(&mut generations) {
        shadow::follow(inference, &model, request, generation);
        requester.charge(inference, &model, generation);
    }
    let adapter_version = model.adapter_version();
    // One for all prompts; while a deployment's replicas are replaced, those of another kind may answer some.
    let system_fingerprint = generations.first().map(|first| first.fingerprint(&model.system_fingerprint));
    let heading = CompletionHeading {
        id: format!("cmpl-{}", uuid::Uuid::new_v4().simple()),
        created: Utc::now().timestamp(),
        model: model.name,
        system_fingerprint: system_fingerprint.unwrap_or(model.system_fingerprint),
        with_logprobs: new.with_logprobs,
        with_usage: new.with_usage,
    };
    Ok(BegunCompletion { heading, generations, choices: new.choices, generated: new.generated, adapter_version })
}

impl BegunCompletion {
    /// Returns the whole completion.
    ///
    /// # Errors
    /// As [`Generation::whole`].
    pub async fn whole(mut self) -> Result<Completion, InferenceError> {
        let (prompts, generated) = (self.generations.len(), self.generated);
        let wholes = self.generations.iter_mut().map(|generation| generation.whole(generated, prompts));
        let answers = try_join_all(wholes).await?;
        let (mut all, mut completion_tokens) = (Vec::new(), 0);
        for (generation, (answers, tokens)) in self.generations.iter_mut().zip(answers) {
            completion_tokens += tokens;
            let echo = generation.echo.take();
            all.extend(best(answers, self.choices).into_iter().map(|answer| match &echo {
                Some(echo) => Answer {
                    text: format!("{}{}", echo.text, answer.text),
                    tokens: echo.tokens.iter().cloned().chain(answer.tokens).collect(),
                    ..answer
                },
                None => answer,
            }));
        }
        let usage = usage(&self.generations, completion_tokens);
        Ok(self.heading.whole(all, usage))
    }
}

/// Returns the usage of all prompts and of the generated tokens.
#[must_use]
pub fn usage(generations: &[Generation], completion_tokens: u64) -> Usage {
    let sum = |of: fn(&Generation) -> u64| generations.iter().map(of).sum();
    let cached_tokens = sum(|generation| generation.cached_tokens);
    Usage::new(sum(|generation| generation.prompt_tokens), cached_tokens, completion_tokens)
}

/// Returns the `count` answers with the highest log probability per token, the highest first; all answers in their
/// order if there are no more than `count`.
fn best(mut answers: Vec<Answer>, count: u32) -> Vec<Answer> {
    let count = count as usize;
    if answers.len() > count {
        let mean = |answer: &Answer| {
            let sum: f64 = answer.tokens.iter().filter_map(|token| token.logprob).sum();
            sum / answer.tokens.len().max(1) as f64
        };
        answers.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        answers.truncate(count);
    }
    answers
}

/// Creates a text completion for a row of a batch.
///
/// # Errors
/// The request is invalid, its model does not exist, or the model is unavailable.
pub async fn complete(
    inference: &Inference,
    project: ProjectId,
    request_id: &str,
    fields: Map<String, Value>,
) -> Result<Completion, InferenceError> {
    let new = NewCompletion::read(fields)?;
    refuse_stream(new.streams)?;
    let tx = inference.tenant(project).await?;
    begin(inference, tx, &Requester::batch(project, request_id), new).await?.whole().await
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::TokenLogprob;

    use super::*;

    #[test]
    fn the_best_answers_have_the_highest_log_probability_per_token() {
        let answer = |text: &str, logprobs: &[f64]| Answer {
            text: text.into(),
            tokens: logprobs
                .iter()
                .map(|p| TokenLogprob { id: 0, special: false, bytes: vec![], logprob: Some(*p), top: vec![] })
                .collect(),
            calls: vec![],
            finish_reason: None,
        };
        let all = vec![answer("long", &[-1.0, -1.0, -1.0]), answer("short", &[-2.0]), answer("good", &[-0.5, -0.5])];
        let texts: Vec<_> = best(all.clone(), 2).into_iter().map(|answer| answer.text).collect();
        assert_eq!(texts, ["good", "long"]);
        assert_eq!(best(all.clone(), 3), all);
    }
}
