//! The text of each token: together they are the whole text, and no byte is lost.

use attune_text::token_text::TokenText;
use attune_text::tokenizer::Tokenizer;
use proptest::prelude::*;

use crate::tiny::{byte_level, sentencepiece};

fn tokenizers() -> [Tokenizer; 2] {
    [byte_level(), sentencepiece()].map(|json| Tokenizer::from_json(json.to_string().as_bytes()).unwrap())
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<TokenText> {
    tokenizer.token_texts(&tokenizer.encode(text).unwrap()).unwrap()
}

fn texts(pieces: &[TokenText]) -> Vec<&str> {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// Returns the bytes that pieces represent, with escapes decoded in pieces that are marked partial.
fn bytes(pieces: &[TokenText]) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        let mut rest = piece.text.as_str();
        while let Some((before, escape)) = rest.split_once("\\x").filter(|_| piece.partial) {
            all.extend_from_slice(before.as_bytes());
            all.push(u8::from_str_radix(&escape[..2], 16).unwrap());
            rest = &escape[2..];
        }
        all.extend_from_slice(rest.as_bytes());
    }
    all
}

#[test]
fn special_tokens_have_a_text() {
    let [byte_level, _] = tokenizers();
    assert_eq!(
        texts(&pieces(&byte_level, "<|im_start|>ab\n\n<|im_end|>")),
        ["<|im_start|>", "a", "b", "\n\n", "<|im_end|>"]
    );
}

#[test]
fn a_part_of_a_character_is_shown_as_its_bytes() {
    for tokenizer in tokenizers() {
        let found = pieces(&tokenizer, "aé🙂");
        let shown = ["a", "\\xC3", "\\xA9", "\\xF0", "\\x9F", "\\x99", "\\x82"];
        assert!(texts(&found).ends_with(&shown), "{found:?}");
        assert!(found.iter().rev().take(6).all(|piece| piece.partial) && !found[0].partial);
    }
}

#[test]
fn a_row_that_is_cut_in_a_character_loses_none_of_it() {
    for tokenizer in tokenizers() {
        let ids = tokenizer.encode("a🙂").unwrap();
        let found = tokenizer.token_texts(&ids[..ids.len() - 1]).unwrap();
        assert!(texts(&found).ends_with(&["a", "\\xF0", "\\x9F", "\\x99"]), "{found:?}");
    }
}

proptest! {
    #[test]
    fn joined_pieces_are_the_text(text in "[ab \\\\x\n🙂éx\u{fffd}]{0,20}") {
        for tokenizer in tokenizers() {
            let ids = tokenizer.encode(&text).unwrap();
            let pieces = tokenizer.token_texts(&ids).unwrap();
            prop_assert_eq!(pieces.len(), ids.len());
            let whole = tokenizer.decode_with_special(&ids).unwrap();
            prop_assert_eq!(String::from_utf8(bytes(&pieces)), Ok(whole), "{:?}", pieces);
        }
    }
}
