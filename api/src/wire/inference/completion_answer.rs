//! Completions of plain text as OpenAI shapes them: whole, or in chunks of the same shape.

use attune_domain::serve::{FinishReason, Scored};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat_answer::{Usage, token_text};
use crate::inference::answer::Answer;

/// A completion, or a piece of one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Completion {
    /// Its id; the same in all chunks.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created: i64,
    /// As the request named it.
    pub model: String,
    /// `n` for each prompt, in the order of the prompts; one in a chunk, none in the chunk with the usage.
    pub choices: Vec<CompletionChoice>,
    /// What was counted. In a stream only there when it was asked for, and `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// Names the base's content.
    pub system_fingerprint: String,
}

/// An answer, or a piece of one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Its place, from 0.
    pub index: u32,
    /// What was said.
    pub text: String,
    /// If they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream `null` until the end.
    #[schema(value_type = Option<String>)]
    pub finish_reason: Option<FinishReason>,
}

/// How likely each token was: lists of one length.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// The natural logarithms of their probabilities; `null` for a prompt's first token, which follows nothing.
    pub token_logprobs: Vec<Option<f64>>,
    /// The most likely tokens in each place and the one that stands there, with theirs.
    #[schema(value_type = Vec<Option<std::collections::HashMap<String, f64>>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<u64>,
}

impl CompletionLogprobs {
    /// Of tokens that begin at `offset`, which is moved behind them.
    pub fn new(tokens: &[Scored], offset: &mut u64) -> Self {
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
            // A character counts where its first byte is.
            *offset += scored.bytes.iter().filter(|byte| (**byte as i8) >= -0x40).count() as u64;
        }
        all
    }
}

/// What all parts of one answer share.
#[derive(Debug, Clone)]
pub struct CompletionHeading {
    /// The answer's id.
    pub id: String,
    /// Unix time, in seconds.
    pub created: i64,
    /// As the request named it.
    pub model: String,
    /// Names the base's content.
    pub system_fingerprint: String,
    /// Whether tokens are told.
    pub with_logprobs: bool,
    /// Whether the stream tells its usage.
    pub with_usage: bool,
}

impl CompletionHeading {
    /// The whole answer.
    pub fn whole(self, answers: Vec<Answer>, usage: Usage) -> Completion {
        let choices = (0..).zip(answers).map(|(index, answer)| CompletionChoice {
            index,
            logprobs: self.with_logprobs.then(|| CompletionLogprobs::new(&answer.tokens, &mut 0)),
            text: answer.text,
            finish_reason: answer.finish_reason,
        });
        Completion { choices: choices.collect(), usage: Some(Some(usage)), ..self.part(Vec::new()) }
    }

    /// A chunk with more text, whose tokens begin at `offset`.
    pub fn piece(&self, index: u32, text: String, tokens: &[Scored], offset: &mut u64) -> Completion {
        let logprobs = self.with_logprobs.then(|| CompletionLogprobs::new(tokens, offset));
        self.part(vec![CompletionChoice { index, text, logprobs, finish_reason: None }])
    }

    /// The last chunk of an answer: why it ended.
    pub fn last(&self, index: u32, finish_reason: FinishReason) -> Completion {
        let finish_reason = Some(finish_reason);
        self.part(vec![CompletionChoice { index, text: String::new(), logprobs: None, finish_reason }])
    }

    /// The chunk with the usage, if it was asked for.
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
    use attune_domain::serve::Likely;

    use super::*;

    #[test]
    fn offsets_count_characters_across_pieces_and_the_drawn_token_is_among_the_likely() {
        let scored = |text: &str, logprob| Scored {
            bytes: text.into(),
            logprob,
            top: vec![Likely { bytes: "é".into(), logprob: -0.1 }],
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
