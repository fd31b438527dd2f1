//! What an engine cannot do, refused with the field at fault.

use attune_domain::serve::{Engine, Form, GenerateRequest, ToolChoice};

use crate::error::Failure;

/// Refuses a request that the engine cannot answer as `attune` would.
///
/// # Errors
/// [`Failure::Request`] with the field.
pub(crate) fn check(engine: Engine, request: &GenerateRequest) -> Result<(), Failure> {
    let sampling = &request.sampling;
    let wants_scores = sampling.logprobs.is_some();
    let is_lorax = engine == Engine::Lorax;
    let is_merge = request.adapter.as_ref().is_some_and(|adapter| adapter.merge.is_some());
    let forces_calls = request.tools.as_ref().is_some_and(|tools| {
        let is_free = matches!(tools.choice, ToolChoice::None | ToolChoice::Auto);
        !is_free || !tools.parallel || tools.definitions.iter().any(|tool| tool.strict)
    });
    let refused = [
        (request.form != Form::Free, "response_format", "a required format of the answer"),
        (forces_calls, "tools", "strict tools, required calls, and a limit of one call"),
        (is_merge, "adapter", "a merge of adapters"),
        (request.echo && wants_scores, "logprobs", "log-probabilities of the prompt"),
        (sampling.max_tokens == Some(0), "max_tokens", "an answer without tokens"),
        (is_lorax && wants_scores, "logprobs", "log-probabilities before temperature and penalties"),
        (is_lorax && sampling.min_p > 0.0, "min_p", "min_p"),
        (is_lorax && sampling.presence_penalty.abs() > 0.0, "presence_penalty", "presence_penalty"),
        (is_lorax && sampling.frequency_penalty.abs() > 0.0, "frequency_penalty", "frequency_penalty"),
        (is_lorax && !sampling.logit_bias.is_empty(), "logit_bias", "logit_bias"),
    ];
    match refused.into_iter().find(|(applies, ..)| *applies) {
        None => Ok(()),
        Some((_, param, what)) => {
            let why =
                format!("Invalid '{param}': the engine of this model, {}, does not support {what}", engine.name());
            Err(Failure::Request { param, why })
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::{Priority, Prompt, Sampling};

    use super::*;

    fn request(form: Form, echo: bool, sampling: Sampling) -> GenerateRequest {
        GenerateRequest {
            request_id: "r".into(),
            project: "p".into(),
            priority: Priority::Live,
            adapter: None,
            keep: None,
            prompt: Prompt::Text { text: "hi".into() },
            truncate: None,
            echo,
            form,
            tools: None,
            choices: 1,
            sampling,
        }
    }

    #[test]
    fn the_field_that_an_engine_does_not_support_is_named() {
        let sampling = Sampling::default;
        let scored = || Sampling { logprobs: Some(2), ..sampling() };
        let cases = [
            (request(Form::Free, true, sampling()), None, None),
            (request(Form::Json, false, sampling()), Some("response_format"), Some("response_format")),
            (request(Form::Free, false, scored()), None, Some("logprobs")),
            (request(Form::Free, true, scored()), Some("logprobs"), Some("logprobs")),
            (
                request(Form::Free, true, Sampling { max_tokens: Some(0), ..sampling() }),
                Some("max_tokens"),
                Some("max_tokens"),
            ),
            (request(Form::Free, false, Sampling { min_p: 0.1, ..sampling() }), None, Some("min_p")),
            (
                request(Form::Free, false, Sampling { presence_penalty: -0.5, ..sampling() }),
                None,
                Some("presence_penalty"),
            ),
        ];
        for (request, vllm, lorax) in cases {
            for (engine, expected) in [(Engine::Vllm, vllm), (Engine::Lorax, lorax)] {
                let refused = check(engine, &request).err().map(|failure| match failure {
                    Failure::Request { param, why } => {
                        assert!(why.contains(engine.name()), "{why}");
                        param
                    }
                    other => panic!("{other}"),
                });
                assert_eq!(refused, expected, "{request:?}");
            }
        }
    }
}
