//! The tokens of an answer, each with its text, and the end of the answer.

use attune_domain::serve::{FinishReason, TokenLogprob};

use super::response::{LoraxFinish, LoraxToken};

/// The tokens of an answer. The last one is held back, since its chunk also contains the end of the answer.
#[derive(Debug, Default)]
pub struct LoraxAnswer {
    /// The text of all tokens but special ones.
    text: String,
    /// The bytes of a character that is not complete.
    partial: Vec<u8>,
    held: Option<LoraxToken>,
}

impl LoraxAnswer {
    /// Adds tokens. Returns the tokens that are now followed by another one.
    pub fn add(&mut self, tokens: Vec<TokenLogprob>) -> Vec<LoraxToken> {
        tokens.into_iter().filter_map(|token| self.push(token)).collect()
    }

    fn push(&mut self, token: TokenLogprob) -> Option<LoraxToken> {
        let TokenLogprob { id, special, bytes, logprob, .. } = token;
        let text = if special { lossy(&bytes) } else { self.complete(&bytes) };
        if !special {
            self.text.push_str(&text);
        }
        self.held.replace(LoraxToken { id, text, logprob: logprob.unwrap_or_default(), special })
    }

    /// Returns the characters that `bytes` completes. As in LoRAX, a token that ends within a character has no text; it
    /// is that of the token that completes the character.
    fn complete(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let (mut complete, mut from) = (self.partial.len(), 0);
        while let Err(error) = std::str::from_utf8(&self.partial[from..]) {
            from += error.valid_up_to();
            let Some(invalid) = error.error_len() else {
                complete = from;
                break;
            };
            from += invalid;
        }
        let rest = self.partial.split_off(complete);
        lossy(&std::mem::replace(&mut self.partial, rest))
    }

    /// Ends the answer. Returns the last token, which has the rest of the text, and the whole text.
    #[must_use]
    pub fn end(self) -> (Option<LoraxToken>, String) {
        let Self { mut text, partial, mut held } = self;
        let rest = lossy(&partial);
        text.push_str(&rest);
        if let Some(last) = held.as_mut().filter(|last| !last.special) {
            last.text.push_str(&rest);
        }
        (held, text)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns LoRAX's reason for the end of an answer.
#[must_use]
pub const fn finish(reason: FinishReason, stop_string: bool) -> LoraxFinish {
    match reason {
        FinishReason::Length => LoraxFinish::Length,
        FinishReason::Stop | FinishReason::ToolCalls if stop_string => LoraxFinish::StopSequence,
        FinishReason::Stop | FinishReason::ToolCalls => LoraxFinish::EosToken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, bytes: &[u8], special: bool) -> TokenLogprob {
        TokenLogprob { id, special, bytes: bytes.into(), logprob: Some(-0.5), top: vec![] }
    }

    #[test]
    fn the_text_of_tokens_is_the_generated_text() {
        let mut answer = LoraxAnswer::default();
        let emoji = "🦀".as_bytes();
        let mut all = answer.add(vec![token(1, b"a", false), token(2, &emoji[..2], false)]);
        assert_eq!(all.iter().map(|token| token.id).collect::<Vec<_>>(), [1], "the last one is held back");
        all.extend(answer.add(vec![token(3, &emoji[2..], false), token(9, b"</s>", true)]));
        let (last, text) = answer.end();
        all.extend(last);
        let texts: Vec<_> = all.iter().map(|token| (token.id, token.text.as_str(), token.special)).collect();
        assert_eq!(texts, [(1, "a", false), (2, "", false), (3, "🦀", false), (9, "</s>", true)]);
        assert_eq!(text, "a🦀");
    }

    #[test]
    fn a_character_that_stays_incomplete_is_replaced() {
        let mut answer = LoraxAnswer::default();
        assert!(answer.add(vec![token(1, &[0xf0, 0x9f], false)]).is_empty());
        let (last, text) = answer.end();
        assert_eq!((last.unwrap().text.as_str(), text.as_str()), ("\u{fffd}", "\u{fffd}"));
    }

    #[test]
    fn a_character_after_an_invalid_byte_is_kept_until_it_is_complete() {
        let mut answer = LoraxAnswer::default();
        answer.add(vec![token(1, &[0x80, 0xc3], false), token(2, &[0xa9], false)]);
        let (last, text) = answer.end();
        assert_eq!((last.unwrap().text.as_str(), text.as_str()), ("é", "\u{fffd}é"));
    }

    #[test]
    fn the_reasons_are_lorax_s() {
        assert_eq!(finish(FinishReason::Length, false), LoraxFinish::Length);
        assert_eq!(finish(FinishReason::Stop, true), LoraxFinish::StopSequence);
        assert_eq!(finish(FinishReason::Stop, false), LoraxFinish::EosToken);
    }
}
