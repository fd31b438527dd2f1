//! Copies of requests to the shadow of an alias. A copy is sent after the answer was sent completely, with the priority
//! of a batch, and is not charged. Only counts of the comparison are kept.

use attune_domain::{
    id::ProjectId,
    serve::{GenerateRequest, Priority},
};
use attune_store::adapters::adapter_shadow::Comparisons;

use crate::{
    answer_copy::{AnswerCopy, Texts},
    context::Inference,
    error::InferenceError,
    generation::{self, Generation},
    resolve::{self, AskedModel, ShadowVersion},
};

pub(crate) mod places;

/// Has a copy of a request answered once its answer is complete, if the request's alias has a shadow for it.
pub(crate) fn follow(
    inference: &Inference,
    model: &AskedModel,
    request: &GenerateRequest,
    generation: &mut Generation,
) {
    let Some(shadow) = model.shadow else { return };
    let Some(place) = inference.shadows.take(model.project_id) else {
        inference.traffic.compare(shadow.id, &Comparisons { skipped: 1, ..Comparisons::default() });
        return;
    };
    let (copy, complete) = AnswerCopy::new(request.choices);
    generation.collect(copy);
    let (inference, request, project) = (inference.clone(), request.clone(), model.project_id);
    tokio::spawn(async move {
        let _place = place;
        let counts = match complete.await {
            Ok(Some(texts)) => compare(&inference, (project, shadow), request, &texts).await,
            Ok(None) => Comparisons { skipped: 1, ..Comparisons::default() },
            Err(_) => return, // the answer was not completed
        };
        inference.traffic.compare(shadow.id, &counts);
    });
}

async fn compare(
    inference: &Inference,
    (project, shadow): (ProjectId, ShadowVersion),
    request: GenerateRequest,
    answered: &Texts,
) -> Comparisons {
    match answer(inference, project, shadow, request).await {
        Ok((texts, input_tokens)) => Comparisons {
            compared: 1,
            equal: u64::from(texts.answers == answered.answers),
            answered_tokens: answered.tokens,
            shadow_tokens: texts.tokens,
            input_tokens,
            ..Comparisons::default()
        },
        Err(error) => {
            error.log();
            Comparisons { errors: 1, ..Comparisons::default() }
        }
    }
}

/// Returns the shadow's texts, and the number of prompt tokens.
async fn answer(
    inference: &Inference,
    project: ProjectId,
    shadow: ShadowVersion,
    request: GenerateRequest,
) -> Result<(Texts, u64), InferenceError> {
    let model = resolve::shadow(inference, project, shadow.version).await?;
    let request = GenerateRequest { adapter: model.adapter.clone(), priority: Priority::Batch, keep: None, ..request };
    let mut generation = generation::begin(inference, &model, &request).await?;
    let (copy, mut complete) = AnswerCopy::new(request.choices);
    generation.collect(copy);
    loop {
        // The last event completes the copy, as does a text that is too long.
        if let Ok(texts) = complete.try_recv() {
            let texts =
                texts.ok_or_else(|| InferenceError::internal("a shadow's answer is too long to be compared"))?;
            return Ok((texts, generation.prompt_tokens));
        }
        generation.next().await?;
    }
}
