//! The text of an answer, collected while it is sent, for the comparison with a shadow's.

use attune_domain::serve::GenerateEvent;
use tokio::sync::oneshot;

/// The maximum size of the texts of one request that are compared, in bytes.
pub(crate) const COMPARED_BYTES: usize = 256 << 10;

/// The complete texts of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Texts {
    /// The text of each answer, with its tool calls.
    pub(crate) answers: Vec<String>,
    /// The number of generated tokens.
    pub(crate) tokens: u64,
}

/// The texts of a request so far.
#[derive(Debug)]
pub(crate) struct AnswerCopy {
    answers: Vec<String>,
    bytes: usize,
    /// The receiver gets `None` if the texts are too long, and nothing if the answer is not completed.
    ended: Option<oneshot::Sender<Option<Texts>>>,
}

impl AnswerCopy {
    pub(crate) fn new(choices: u32) -> (Self, oneshot::Receiver<Option<Texts>>) {
        let (ended, complete) = oneshot::channel();
        (Self { answers: vec![String::new(); choices as usize], bytes: 0, ended: Some(ended) }, complete)
    }

    /// Notes an event of the answer.
    pub(crate) fn see(&mut self, event: &GenerateEvent) {
        match event {
            GenerateEvent::Piece { choice, text, .. } | GenerateEvent::Arguments { choice, text, .. } => {
                self.push(*choice, text);
            }
            GenerateEvent::ToolCallStart { choice, name, .. } => self.push(*choice, &format!("\0{name}\0")),
            GenerateEvent::Done { completion_tokens } => {
                let answers = std::mem::take(&mut self.answers);
                self.end(Some(Texts { answers, tokens: *completion_tokens }));
            }
            GenerateEvent::Started { .. } | GenerateEvent::Finished { .. } | GenerateEvent::Failed { .. } => {}
        }
    }

    fn push(&mut self, choice: u32, text: &str) {
        self.bytes += text.len();
        if self.bytes > COMPARED_BYTES {
            self.answers.clear();
            self.end(None);
        } else if let Some(answer) = self.answers.get_mut(choice as usize) {
            answer.push_str(text);
        }
    }

    fn end(&mut self, texts: Option<Texts>) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(texts); // the process may be shutting down
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(choice: u32, text: String) -> GenerateEvent {
        GenerateEvent::Piece { choice, text, tokens: vec![] }
    }

    #[tokio::test]
    async fn texts_are_complete_at_the_end() {
        let (mut copy, complete) = AnswerCopy::new(2);
        copy.see(&piece(1, "b".into()));
        copy.see(&piece(0, "a".into()));
        copy.see(&GenerateEvent::ToolCallStart { choice: 0, call: 0, id: "random".into(), name: "f".into() });
        copy.see(&GenerateEvent::Arguments { choice: 0, call: 0, text: "{}".into() });
        copy.see(&GenerateEvent::Done { completion_tokens: 5 });
        let texts = complete.await.unwrap().unwrap();
        assert_eq!(texts, Texts { answers: vec!["a\0f\0{}".into(), "b".into()], tokens: 5 });
    }

    #[tokio::test]
    async fn limit_of_compared_texts() {
        let (mut copy, complete) = AnswerCopy::new(1);
        copy.see(&piece(0, "x".repeat(COMPARED_BYTES)));
        copy.see(&piece(0, "y".into()));
        copy.see(&GenerateEvent::Done { completion_tokens: 2 });
        assert_eq!(complete.await, Ok(None));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_has_no_copy() {
        let (copy, complete) = AnswerCopy::new(1);
        drop(copy);
        assert!(complete.await.is_err());
    }
}
