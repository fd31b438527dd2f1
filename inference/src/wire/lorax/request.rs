//! Requests for a generation in LoRAX's format. A request is translated to a text completion.

use attune_domain::{serve::Form, text::message_text::truncated};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::merge::{AT, MergeRequest, MergedAdapters};
use crate::{
    error::InferenceError,
    json,
    wire::{
        completion::{CompletionRequest, NewCompletion},
        form::ResponseFormat,
        param_names::ParamNames,
        sampling::{check_max_tokens, range},
    },
};

/// The request body for a generation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGeneration {
    /// The prompt. No chat template is applied.
    #[schema(min_length = 1)]
    pub inputs: String,
    /// The parameters of the generation.
    pub parameters: Option<LoraxParameters>,
    /// If `true`, streams the answer token by token.
    pub stream: Option<bool>,
}

/// The parameters of a generation.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraxParameters {
    /// The name of a fine-tuned model of the base model in the path. Defaults to the model in the path.
    #[schema(example = "ft:smollm2-135m-instruct:default:records:7b8c9d0e")]
    pub adapter_id: Option<String>,
    /// The source of the adapters, always `local`: the registry of the API key's project.
    #[schema(example = "local")]
    pub adapter_source: Option<String>,
    /// Fine-tuned models that are merged into one adapter. Not allowed with `adapter_id`.
    pub merged_adapters: Option<MergedAdapters>,
    /// If `true`, tokens are sampled. If neither this nor `temperature`, `top_k` or `top_p` requests it, each token is
    /// the most likely one.
    pub do_sample: Option<bool>,
    /// The maximum number of tokens. Defaults to as many as the context length allows.
    pub max_new_tokens: Option<u64>,
    /// If `true`, end tokens do not end the answer.
    pub ignore_eos_token: Option<bool>,
    /// The factor that makes tokens of the prompt and of the answer less likely. Defaults to 1: none.
    pub repetition_penalty: Option<f64>,
    /// If `true`, returns the prompt in front of the generated text.
    pub return_full_text: Option<bool>,
    /// Up to 4 sequences at which generation stops. The generated text ends with the tokens of the sequence.
    pub stop: Option<Vec<String>>,
    /// The random seed. Defaults to a new seed for each request.
    pub seed: Option<u64>,
    /// The sampling temperature, from 0 (always the most likely token) to 2. Defaults to 1.
    pub temperature: Option<f64>,
    /// Only this many of the most likely tokens are sampled.
    pub top_k: Option<u32>,
    /// Nucleus sampling: only the most likely tokens whose probabilities add up to this value are sampled.
    pub top_p: Option<f64>,
    /// The maximum number of the prompt's tokens: the last ones are used.
    pub truncate: Option<u64>,
    /// If `true`, returns the tokens with their log probabilities.
    pub details: Option<bool>,
    /// If `true`, `details` has the prompt's tokens with their log probabilities. Not allowed in a stream.
    pub decoder_input_details: Option<bool>,
    /// The format of the generated text, enforced while tokens are sampled.
    pub response_format: Option<LoraxFormat>,
}

/// The format of the generated text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraxFormat {
    /// The type of the format, always `json_object`.
    #[schema(example = "json_object")]
    pub r#type: String,
    /// The JSON schema. Defaults to any object.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

/// A checked request for a generation.
#[derive(Debug, Clone)]
pub struct LoraxRequest {
    /// The completion that the request is translated to. Its model is the adapter, or the model in the path.
    pub completion: CompletionRequest,
    /// The name of the adapter, if the request names one.
    pub adapter: Option<String>,
    /// The adapters to merge, if the request names any.
    pub merge: Option<MergeRequest>,
    /// The names of the completion's parameters in the request.
    pub names: ParamNames,
    /// The prompt, if the generated text begins with it.
    pub full_text: Option<String>,
    /// The seed, if tokens are sampled.
    pub seed: Option<u64>,
    /// `true` if the response has details.
    pub details: bool,
    /// `true` if the answer is streamed.
    pub streams: bool,
}

/// A function that returns whether a field's value requests only the default behavior.
type AsksNothing = fn(&Value) -> bool;

/// Unsupported parameters: the name, a test for values that request only the default behavior, and the reason to refuse
/// any other.
const UNSUPPORTED: [(&str, AsksNothing, &str); 6] = [
    ("api_token", |_| false, "the API key in the Authorization header gives access to its project's adapters"),
    ("best_of", |v| *v == 1, "only 1 is supported"),
    ("typical_p", |_| false, "use 'top_p' or 'top_k'"),
    ("watermark", |v| *v == false, "answers have no watermark"),
    ("return_k_alternatives", |_| false, "use 'logprobs' of '/v1/completions'"),
    ("apply_chat_template", |v| *v == false, "use '/v1/chat/completions'"),
];

impl NewGeneration {
    /// Parses and checks a request body. `model` is the name of the model in the path.
    ///
    /// # Errors
    /// [`InferenceError::Invalid`]: a field is unknown, invalid or unsupported.
    pub fn read(mut fields: Map<String, Value>, model: &str) -> Result<LoraxRequest, InferenceError> {
        if let Some(parameters) = fields.get_mut("parameters").and_then(Value::as_object_mut) {
            for (name, asks_nothing, why) in UNSUPPORTED {
                match parameters.remove(name) {
                    Some(value) if !value.is_null() && !asks_nothing(&value) => {
                        let at = format!("parameters.{name}");
                        let message = format!("Unsupported '{at}': {why}.");
                        return Err(InferenceError::unsupported(at, message));
                    }
                    _ => {}
                }
            }
        }
        let new: Self = json::from_value(Value::Object(fields))?;
        new.checked(model)
    }

    fn checked(self, model: &str) -> Result<LoraxRequest, InferenceError> {
        if self.inputs.is_empty() {
            return Err(InferenceError::invalid("inputs", "Invalid 'inputs': the prompt is empty."));
        }
        let given = self.parameters.unwrap_or_default();
        let streams = self.stream == Some(true);
        given.check(streams)?;
        let form = given.form()?;
        let adapter = given.adapter_id.clone().filter(|id| !id.is_empty());
        let merge = given.merged_adapters.as_ref().map(MergedAdapters::checked).transpose()?;
        if adapter.is_some() && merge.is_some() {
            let message = format!("Invalid '{AT}': it does not go with 'parameters.adapter_id'.");
            return Err(InferenceError::invalid(AT, message));
        }
        let sampled = given.samples();
        let asked = json!({
            "model": adapter.as_deref().unwrap_or(model),
            "prompt": self.inputs,
            "temperature": if sampled { given.temperature } else { Some(0.0) },
            "top_k": given.top_k,
            "top_p": given.top_p,
            "repetition_penalty": given.repetition_penalty,
            "seed": given.seed.map(u64::cast_signed),
            "stop": given.stop,
            "echo": given.decoder_input_details,
            "logprobs": 0,
            "stream": streams,
        });
        let names = names();
        let Value::Object(asked) = asked else { return Err(InferenceError::internal("an object is none")) };
        let mut completion = NewCompletion::read(asked).map_err(|error| names.apply(error))?;
        completion.form = form;
        completion.truncate = given.truncate;
        completion.sampling.max_tokens = given.max_new_tokens;
        completion.sampling.ignore_end_tokens = given.ignore_eos_token == Some(true);
        Ok(LoraxRequest {
            seed: sampled.then_some(completion.sampling.seed),
            full_text: (given.return_full_text == Some(true)).then_some(self.inputs),
            details: given.details == Some(true),
            completion,
            adapter,
            merge,
            names,
            streams,
        })
    }
}

impl LoraxParameters {
    /// Checks what the translation to a completion does not.
    fn check(&self, streams: bool) -> Result<(), InferenceError> {
        if let Some(source) = self.adapter_source.as_deref().filter(|source| *source != "local") {
            let at = "parameters.adapter_source";
            let message = format!(
                "Unsupported '{at}': '{}'; allowed: local. Import the adapter with POST /v1/adapters.",
                truncated(source)
            );
            return Err(InferenceError::unsupported(at, message));
        }
        range("parameters.top_k", self.top_k.map(f64::from), 1.0, f64::from(u32::MAX))?;
        check_max_tokens("parameters.max_new_tokens", self.max_new_tokens, 1)?;
        check_max_tokens("parameters.truncate", self.truncate, 1)?;
        if streams && self.decoder_input_details == Some(true) {
            let at = "parameters.decoder_input_details";
            return Err(InferenceError::unsupported(at, format!("Unsupported '{at}': not allowed in a stream.")));
        }
        if self.ignore_eos_token == Some(true) && self.response_format.is_some() {
            let at = "parameters.ignore_eos_token";
            let message = format!("Invalid '{at}': an answer with 'response_format' ends when its JSON is complete.");
            return Err(InferenceError::invalid(at, message));
        }
        Ok(())
    }

    /// Returns whether tokens are sampled.
    ///
    /// Source: `HeterogeneousNextTokenChooser` in `server/lorax_server/utils/tokens.py` of `predibase/lorax`.
    fn samples(&self) -> bool {
        self.do_sample == Some(true)
            || self.temperature.is_some_and(|temperature| (temperature - 1.0).abs() > f64::EPSILON)
            || self.top_k.is_some()
            || self.top_p.is_some_and(|top_p| top_p < 1.0)
    }

    /// Returns the required format of the text.
    fn form(&self) -> Result<Form, InferenceError> {
        let Some(format) = &self.response_format else { return Ok(Form::Free) };
        if format.r#type != "json_object" {
            let at = "parameters.response_format.type";
            let message = format!("Unsupported '{at}': '{}'; allowed: json_object.", truncated(&format.r#type));
            return Err(InferenceError::unsupported(at, message));
        }
        let Some(schema) = &format.schema else { return Ok(Form::Json) };
        let asked = json!({"type": "json_schema", "json_schema": {"name": "response", "schema": schema}});
        let form = json::from_value::<ResponseFormat>(asked).and_then(|asked| asked.form());
        form.map_err(|error| names().apply(error))
    }
}

/// Returns the names of a completion's parameters in the request.
fn names() -> ParamNames {
    let own = [
        ("prompt", "inputs"),
        ("model", "parameters.adapter_id"),
        ("max_tokens", "parameters.max_new_tokens"),
        ("response_format.json_schema.schema", "parameters.response_format.schema"),
    ];
    let same = ["temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop", "response_format"];
    let own = own.into_iter().map(|(of_completion, name)| (of_completion.to_owned(), name.to_owned()));
    ParamNames(own.chain(same.map(|name| (name.to_owned(), format!("parameters.{name}")))).collect())
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::Prompt;

    use super::*;

    fn read(more: &Value) -> Result<LoraxRequest, InferenceError> {
        let mut body = json!({"inputs": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewGeneration::read(body.as_object().unwrap().clone(), "base")
    }

    #[test]
    fn a_plain_request_continues_the_prompt_with_the_most_likely_tokens() {
        let request = read(&json!({})).unwrap();
        let completion = request.completion;
        assert_eq!((completion.model.as_str(), completion.prompts), ("base", vec![Prompt::Text { text: "hi".into() }]));
        assert_eq!((completion.sampling.temperature, completion.sampling.max_tokens), (0.0, None));
        assert_eq!((completion.sampling.logprobs, completion.form), (Some(0), Form::Free));
        assert_eq!((request.seed, request.full_text, request.details, request.streams), (None, None, false, false));
    }

    #[test]
    fn parameters_become_those_of_a_completion() {
        let request = read(&json!({"stream": true, "parameters": {
            "adapter_id": "ft:base:x", "adapter_source": "local", "do_sample": true, "top_k": 5, "top_p": 0.5,
            "repetition_penalty": 1.5, "seed": u64::MAX, "stop": ["."], "max_new_tokens": 7, "ignore_eos_token": true,
            "truncate": 3, "details": true, "return_full_text": true, "best_of": 1, "watermark": false,
            "merged_adapters": null, "api_token": null,
        }}))
        .unwrap();
        let sampling = &request.completion.sampling;
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (1.0, Some(5), 0.5));
        assert_eq!((sampling.repetition_penalty, sampling.max_tokens), (1.5, Some(7)));
        assert_eq!((sampling.seed, sampling.ignore_end_tokens), (u64::MAX, true));
        assert_eq!((request.completion.truncate, request.seed), (Some(3), Some(u64::MAX)));
        assert_eq!((request.adapter.as_deref(), request.full_text.as_deref()), (Some("ft:base:x"), Some("hi")));
        assert!(request.details && request.streams);
        let format = json!({"type": "json_object", "schema": {"type": "object"}});
        let request = read(&json!({"parameters": {"response_format": format}})).unwrap();
        assert_eq!(request.completion.form, Form::Schema { schema: json!({"type": "object"}), strict: false });
    }

    /// The client omits nothing: a request without arguments has all parameters, most of them `null`.
    #[test]
    fn tokens_are_sampled_only_if_a_parameter_requests_it() {
        for (parameters, sampled) in [
            (json!({"do_sample": false, "temperature": null}), false),
            (json!({"temperature": 1.0}), false),
            (json!({"temperature": 0.5}), true),
            (json!({"top_k": 3}), true),
            (json!({"top_p": 0.9}), true),
            (json!({"do_sample": true}), true),
        ] {
            let request = read(&json!({ "parameters": parameters })).unwrap();
            assert_eq!(request.seed.is_some(), sampled, "{parameters}");
            assert_eq!(request.completion.sampling.temperature > 0.0, sampled, "{parameters}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_the_request_s_field() {
        for (parameters, name) in [
            (json!({"adapter_source": "hub"}), "adapter_source"),
            (json!({"adapter_id": "a", "merged_adapters": {"ids": ["a"], "weights": [1.0]}}), "merged_adapters"),
            (json!({"merged_adapters": {"ids": []}}), "merged_adapters.ids"),
            (json!({"merged_adapters": {"ids": ["a"], "mode": 1}}), "merged_adapters.mode"),
            (json!({"api_token": "secret"}), "api_token"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"typical_p": 0.5}), "typical_p"),
            (json!({"watermark": true}), "watermark"),
            (json!({"return_k_alternatives": 2}), "return_k_alternatives"),
            (json!({"max_new_tokens": 0}), "max_new_tokens"),
            (json!({"truncate": 0}), "truncate"),
            (json!({"top_k": 0}), "top_k"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"temperature": 3}), "temperature"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
            (json!({"response_format": {"type": "regex"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_object", "schema": 3}}), "response_format.schema"),
            (json!({"ignore_eos_token": true, "response_format": {"type": "json_object"}}), "ignore_eos_token"),
            (json!({"nonsense": 1}), "nonsense"),
        ] {
            let error = read(&json!({ "parameters": parameters })).unwrap_err().body().error;
            let param = format!("parameters.{name}");
            assert_eq!(error.param.as_deref(), Some(param.as_str()), "{parameters}: {}", error.message);
            assert!(error.message.contains(&param), "{}", error.message);
        }
        let streamed = json!({"stream": true, "parameters": {"decoder_input_details": true}});
        let error = read(&streamed).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some("parameters.decoder_input_details"));
        assert_eq!(read(&json!({"inputs": ""})).unwrap_err().body().error.param.as_deref(), Some("inputs"));
    }
}
