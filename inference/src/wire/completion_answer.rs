//! Text completion responses in OpenAI's format: a whole object, or chunks of the same type.

use attune_domain::serve::{FinishReason, TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat_answer::{Usage, token_text};
use crate::answer::Answer;

/// A text completion, or a chunk of one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Completion {
    /// The completion's ID, the same in all chunks.
    pub id: String,
    /// The object type, always `text_completion`.
    pub object: &'static str,
    /// The creation time, in Unix seconds.
    pub created: i64,
    /// The model name, as the request gave it.
    pub model: String,
    /// The generated choices: `n` for each prompt, in the order of the prompts. A chunk has one, the chunk with the
    /// usage none.
    pub choices: Vec<CompletionChoice>,
    /// The token usage. In a stream: present only if requested, and `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// A fingerprint of the base model's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
}

/// A generated choice, or a chunk of one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The index of the choice, from 0.
    pub index: u32,
    /// The generated text.
    pub text: String,
    /// The log probabilities, if requested.
    pub logprobs: Option<CompletionLogprobs>,
    /// The reason why generation stopped: `stop` or `length`; in a stream, `null` until the last chunk of the choice.
    #[schema(value_type = Option<String>)]
    pub finish_reason: Option<FinishReason>,
}

/// The log probabilities of a choice: lists of equal length, one entry per token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The texts of the tokens.
    pub tokens: Vec<String>,
    /// The natural logarithms of the tokens' probabilities; `null` for a prompt's first token, which has no context.
    pub token_logprobs: Vec<Option<f64>>,
    /// The most likely tokens at each position, and the actual token, with their log probabilities.
    #[schema(value_type = Vec<Option<std::collections::HashMap<String, f64>>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// The offset at which each token begins in the text, in characters.
    pub text_offset: Vec<u64>,
}

impl CompletionLogprobs {
    /// Converts tokens that begin at the character `offset`, and advances `offset` past them.
    pub fn new(tokens: &[TokenLogprob], offset: &mut u64) -> Self {
        let mut all = Self::default();
        for scored in tokens {
            let token = token_text(&scored.bytes);
            let top = scored.logprob.map(|logprob| {
                let likely = scored.top.iter().map(|likely| (token_text(&likely.bytes), likely.logprob.into()));
                let mut top: Map<String, Value> = likely.collect();
                top.entry(token.clone()).or_insert_with(|| logprob.into());
                top
            });
            all.tokens.push(token);
            all.token_logprobs.push(scored.logprob);
            all.top_logprobs.push(top);
            all.text_offset.push(*offset);
            // A character is counted at its first byte.
            *offset += scored.bytes.iter().filter(|byte| (**byte as i8) >= -0x40).count() as u64;
        }
        all
    }
}

/// The fields that all parts of one text completion share.
#[derive(Debug, Clone)]
pub struct CompletionHeading {
    /// The completion's ID.
    pub id: String,
    /// The creation time, in Unix seconds.
    pub created: i64,
    /// The model name, as the request gave it.
    pub model: String,
    /// A fingerprint of the base model's content, its quantization and the adapter's content.
    pub system_fingerprint: String,
    /// `true` if log probabilities were requested.
    pub with_logprobs: bool,
    /// `true` if the stream's usage was requested.
    pub with_usage: bool,
}

impl CompletionHeading {
    /// Returns the whole completion.
    pub fn whole(self, answers: Vec<Answer>, usage: Usage) -> Completion {
        let choices = (0..).zip(answers).map(|(index, answer)| CompletionChoice {
            index,
            logprobs: self.with_logprobs.then(|| CompletionLogprobs::new(&answer.tokens, &mut 0)),
            text: answer.text,
            finish_reason: answer.finish_reason,
        });
        Completion { choices: choices.collect(), usage: Some(Some(usage)), ..self.part(Vec::new()) }
    }

    /// Returns a chunk with more text, whose tokens begin at the character `offset`.
    pub fn piece(&self, index: u32, text: String, tokens: &[TokenLogprob], offset: &mut u64) -> Completion {
        let logprobs = self.with_logprobs.then(|| CompletionLogprobs::new(tokens, offset));
        self.part(vec![CompletionChoice { index, text, logprobs, finish_reason: None }])
    }

    /// Returns the last chunk of a choice, with its finish reason.
    pub fn last(&self, index: u32, finish_reason: FinishReason) -> Completion {
        let finish_reason = Some(finish_reason);
        self.part(vec![CompletionChoice { index, text: String::new(), logprobs: None, finish_reason }])
    }

    /// Returns the chunk with the usage, if it was requested.
    pub fn usage(&self, usage: Usage) -> Option<Completion> {
        self.with_usage.then(|| Completion { usage: Some(Some(usage)), ..self.part(Vec::new()) })
    }

    fn part(&self, choices: Vec<CompletionChoice>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: self.with_usage.then_some(None),
            system_fingerprint: self.system_fingerprint.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::serve::TopLogprob;

    use super::*;

    #[test]
    fn offsets_count_characters_across_pieces_and_the_sampled_token_is_among_the_likely() {
        let scored = |text: &str, logprob| TokenLogprob {
            id: 0,
            special: false,
            bytes: text.into(),
            logprob,
            top: vec![TopLogprob { bytes: "é".into(), logprob: -0.1 }],
        };
        let mut offset = 0;
        let first = CompletionLogprobs::new(&[scored("éa", None), scored("é", Some(-0.1))], &mut offset);
        assert_eq!((first.text_offset, first.token_logprobs), (vec![0, 2], vec![None, Some(-0.1)]));
        assert_eq!(first.top_logprobs[0], None);
        let second = CompletionLogprobs::new(&[scored("b", Some(-3.0))], &mut offset);
        assert_eq!(second.text_offset, [3]);
        let top = second.top_logprobs[0].clone().unwrap();
        assert_eq!(Value::Object(top), serde_json::json!({"é": -0.1, "b": -3.0}));
    }
}
