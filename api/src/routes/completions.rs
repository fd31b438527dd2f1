//! Text completions: one request to a replica for each prompt, one response for all.

use std::convert::Infallible;

use attune_domain::{
    access::{Role, Scope},
    serve::{Form, GenerateRequest},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use chrono::Utc;
use futures::{
    Stream, StreamExt,
    future::try_join_all,
    stream::{self, BoxStream, SelectAll},
};
use serde_json::{Map, Value};

use super::chat::{Last, data};
use crate::{
    app::App,
    auth::caller::Caller,
    error::{ApiError, ErrorBody},
    http::{json_body::Body, trace::RequestId},
    inference::{
        answer::Answer,
        generation::{self, Generation, Next},
        metering::Account,
        resolve::{self, AskedModel},
    },
    policy::Policy,
    wire::inference::{
        chat_answer::Usage,
        completion::NewCompletion,
        completion_answer::{Completion, CompletionHeading},
    },
};

/// The policies of the operations in this file.
pub(crate) const POLICIES: &[Policy] = &[Policy::project("create_completion", Scope::Inference, Role::Member)];

/// Create a text completion.
///
/// No chat template is applied. With `stream`, the answers are sent as server-sent events, followed by `[DONE]`; if an
/// answer cannot be completed, the last event has an error instead.
#[utoipa::path(post, path = "/v1/completions", tag = "Chat", operation_id = "create_completion",
    request_body = NewCompletion,
    responses(
        (status = 200, content((Completion = "application/json"), (Completion = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody, description = "No serving process is ready yet. Retry after `Retry-After`."),
    ))]
pub async fn create(
    State(app): State<App>,
    Caller(holder): Caller,
    Extension(request_id): Extension<RequestId>,
    Body(fields): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let new = NewCompletion::read(fields)?;
    let model = resolve::find(&app, holder.project_id, &new.model).await?;
    let mut generations = begin(&app, &new, &model, &request_id.0).await?;
    charge(&app, &mut generations, &model.account(holder.project_id, holder.api_key_id));
    let heading = heading(&new, model);
    if new.streams() {
        let events = events(Streaming::new(&new, heading, generations));
        Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
    } else {
        Ok(Json(whole(&new, heading, generations).await?).into_response())
    }
}

/// Creates a text completion without streaming, for callers inside the API, such as batches.
///
/// # Errors
/// As for [`create`].
pub async fn complete(
    app: &App,
    project: attune_domain::id::ProjectId,
    request_id: &str,
    fields: Map<String, Value>,
) -> Result<Completion, ApiError> {
    let new = NewCompletion::read(fields)?;
    if new.streams() {
        return Err(ApiError::unsupported("stream", "A batch's requests cannot be streamed. Omit 'stream'."));
    }
    let model = resolve::find(app, project, &new.model).await?;
    let mut generations = begin(app, &new, &model, request_id).await?;
    charge(app, &mut generations, &model.account(project, None));
    whole(&new, heading(&new, model), generations).await
}

/// Charges each prompt as a request.
fn charge(app: &App, generations: &mut [Generation], account: &Account) {
    generations.iter_mut().for_each(|generation| generation.charge(&app.meter, account.clone()));
}

async fn begin(
    app: &App,
    new: &NewCompletion,
    model: &AskedModel,
    request_id: &str,
) -> Result<Vec<Generation>, ApiError> {
    let sampling = new.sampling(rand::random())?;
    let requests: Vec<GenerateRequest> = new
        .prompt
        .0
        .iter()
        .map(|prompt| GenerateRequest {
            request_id: request_id.to_owned(),
            project: model.project_id.to_string(),
            adapter: model.adapter.clone(),
            prompt: prompt.clone().into(),
            echo: new.echoes(),
            form: Form::Free,
            tools: None,
            choices: new.drawn(),
            sampling: sampling.clone(),
        })
        .collect();
    try_join_all(requests.iter().map(|request| generation::begin(app, model, request))).await
}

fn heading(new: &NewCompletion, model: AskedModel) -> CompletionHeading {
    CompletionHeading {
        id: format!("cmpl-{}", uuid::Uuid::new_v4().simple()),
        created: Utc::now().timestamp(),
        model: model.name,
        system_fingerprint: model.system_fingerprint,
        with_logprobs: new.logprobs.is_some(),
        with_usage: new.streams_usage(),
    }
}

async fn whole(
    new: &NewCompletion,
    heading: CompletionHeading,
    mut generations: Vec<Generation>,
) -> Result<Completion, ApiError> {
    let prompts = generations.len();
    let answers = try_join_all(generations.iter_mut().map(|generation| generation.whole(new.drawn(), prompts))).await?;
    let (mut all, mut drawn) = (Vec::new(), 0);
    for (generation, (answers, tokens)) in generations.iter_mut().zip(answers) {
        drawn += tokens;
        let echo = generation.echo.take();
        all.extend(best(answers, new.choices()).into_iter().map(|answer| match &echo {
            Some(echo) => Answer {
                text: format!("{}{}", echo.text, answer.text),
                tokens: echo.tokens.iter().cloned().chain(answer.tokens).collect(),
                ..answer
            },
            None => answer,
        }));
    }
    Ok(heading.whole(all, usage(&generations, drawn)))
}

/// Returns the usage of all prompts and of the sampled tokens.
fn usage(generations: &[Generation], drawn: u64) -> Usage {
    let sum = |of: fn(&Generation) -> u64| generations.iter().map(of).sum();
    Usage::new(sum(|generation| generation.prompt_tokens), sum(|generation| generation.cached_tokens), drawn)
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

/// The state of a streamed completion.
struct Streaming {
    heading: CompletionHeading,
    parts: SelectAll<BoxStream<'static, (u32, Result<Next, ApiError>)>>,
    /// The number of choices for each prompt.
    choices: u32,
    /// The character offset of the next token of each choice.
    offsets: Vec<u64>,
    usage: Usage,
    /// The number of prompts whose choices have not ended.
    open: usize,
    /// The echoed prompts, which are sent first.
    ahead: Vec<Event>,
}

impl Streaming {
    fn new(new: &NewCompletion, heading: CompletionHeading, generations: Vec<Generation>) -> Self {
        let choices = new.choices();
        let mut offsets = vec![0; generations.len() * choices as usize];
        let mut ahead = Vec::new();
        for (prompt, generation) in (0..).zip(&generations) {
            let Some(echo) = &generation.echo else { continue };
            for choice in 0..choices {
                let index = prompt * choices + choice;
                let offset = &mut offsets[index as usize];
                ahead.push(data(&heading.piece(index, echo.text.clone(), &echo.tokens, offset)));
            }
        }
        let usage = usage(&generations, 0);
        let open = generations.len();
        let parts = (0..).zip(generations).map(|(prompt, generation)| parts(prompt, generation).boxed());
        Self { heading, parts: stream::select_all(parts), choices, offsets, usage, open, ahead }
    }

    /// Returns the events for a message of a replica, and whether it was the last one.
    fn take(&mut self, prompt: u32, next: Result<Next, ApiError>) -> (Vec<Event>, Last) {
        match next {
            Ok(Next::Piece { choice, text, tokens }) => {
                let index = prompt * self.choices + choice;
                let Some(offset) = self.offsets.get_mut(index as usize) else { return (Vec::new(), Last(false)) };
                (vec![data(&self.heading.piece(index, text, &tokens, offset))], Last(false))
            }
            Ok(Next::Finished { choice, finish_reason }) => {
                let index = prompt * self.choices + choice;
                (vec![data(&self.heading.last(index, finish_reason))], Last(false))
            }
            // Only chat completions have tools.
            Ok(Next::ToolCallStart { .. } | Next::Arguments { .. }) => (Vec::new(), Last(false)),
            Ok(Next::Done { completion_tokens }) => {
                self.usage = self.usage.plus(completion_tokens);
                self.open -= 1;
                if self.open > 0 {
                    return (Vec::new(), Last(false));
                }
                let mut last: Vec<Event> = self.heading.usage(self.usage).iter().map(data).collect();
                last.push(Event::default().data("[DONE]"));
                (last, Last(true))
            }
            Err(error) => {
                error.log();
                (vec![data(&error.body())], Last(true))
            }
        }
    }
}

/// Returns the replica's messages about one prompt as a stream.
fn parts(prompt: u32, generation: Generation) -> impl Stream<Item = (u32, Result<Next, ApiError>)> {
    stream::unfold(Some(generation), move |generation| async move {
        let mut generation = generation?;
        let next = generation.next().await;
        let goes_on = next.as_ref().is_ok_and(|next| !matches!(next, Next::Done { .. }));
        Some(((prompt, next), goes_on.then_some(generation)))
    })
}

/// Returns the events of the stream. It owns the generations: a client that disconnects drops them, and with them the
/// requests to the replicas.
fn events(mut streaming: Streaming) -> impl Stream<Item = Result<Event, Infallible>> {
    let ahead = std::mem::take(&mut streaming.ahead);
    let rest = stream::unfold(Some(streaming), |streaming| async move {
        let mut streaming = streaming?;
        let (prompt, next) = streaming.parts.next().await?;
        let (events, Last(last)) = streaming.take(prompt, next);
        Some((events, (!last).then_some(streaming)))
    });
    stream::iter(ahead).chain(rest.flat_map(stream::iter)).map(Ok)
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::TokenLogprob;

    use super::*;

    #[test]
    fn the_best_answers_have_the_highest_log_probability_per_token() {
        let answer = |text: &str, logprobs: &[f64]| Answer {
            text: text.into(),
            tokens: logprobs.iter().map(|p| TokenLogprob { bytes: vec![], logprob: Some(*p), top: vec![] }).collect(),
            calls: vec![],
            finish_reason: None,
        };
        let all = vec![answer("long", &[-1.0, -1.0, -1.0]), answer("short", &[-2.0]), answer("good", &[-0.5, -0.5])];
        let texts: Vec<_> = best(all.clone(), 2).into_iter().map(|answer| answer.text).collect();
        assert_eq!(texts, ["good", "long"]);
        assert_eq!(best(all.clone(), 3), all);
    }
}
