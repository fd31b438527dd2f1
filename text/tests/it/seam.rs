//! The boundary between prompt and completion, and between a prompt and its answer: both are one text, whatever prefix
//! the tokenizer adds to a text.

use std::collections::BTreeMap;

use attune_domain::dataset::Row;
use attune_text::detokenizer::Detokenizer;
use attune_text::encode::Learnt;
use attune_text::model::TextModel;
use proptest::prelude::*;

use crate::tiny::{DAY, byte_level, sentencepiece};

const FIRST: &[u8] = include_bytes!("../../testdata/cases/13-seam/tokenizer.json");
const LLAMA2: &[u8] = include_bytes!("../../testdata/cases/13-seam/tokenizer.llama2.json");

fn model(tokenizer: &[u8]) -> TextModel {
    let config = include_bytes!("../../testdata/cases/13-seam/tokenizer_config.json");
    let generation = include_bytes!("../../testdata/cases/13-seam/generation_config.json");
    TextModel::from_files(&BTreeMap::from([
        ("tokenizer.json".to_owned(), tokenizer.to_vec()),
        ("tokenizer_config.json".to_owned(), config.to_vec()),
        ("generation_config.json".to_owned(), generation.to_vec()),
    ]))
    .unwrap()
}

fn row(prompt: &str, completion: &str) -> Row {
    Row::Completion { prompt: prompt.into(), completion: completion.into() }
}

#[test]
fn case_13_a_row_is_trained_as_its_one_text() {
    for tokenizer in [FIRST, LLAMA2] {
        let model = model(tokenizer);
        let ids = |prompt, completion| model.encode_row(&row(prompt, completion), Learnt::Answers, DAY).unwrap();
        let (plain, spaced) = (ids("a", "b"), ids("a", " b"));
        assert_eq!(plain.ids, [1, 262, 261, 2]);
        assert_eq!(spaced.ids, [1, 262, 263, 2]);
        assert_eq!(plain.trained, [false, false, true, true]);
        assert_eq!(spaced.trained, [false, false, true, true]);
        // Without a prompt the completion begins the text.
        assert_eq!(ids("", "b").ids, [1, 263, 2]);
    }
}

#[test]
fn case_13_an_answer_continues_its_prompt() {
    let model = model(FIRST);
    let tokenizer = model.tokenizer();
    let streamed = |mut letters: Detokenizer<'_>, ids: &[u32]| {
        let mut text: String = ids.iter().filter_map(|id| letters.push(*id).unwrap()).collect();
        text.extend(letters.finish());
        text
    };
    let prompt = model.encode_prompt("a").unwrap();
    assert_eq!(prompt, [1, 262]);
    assert_eq!(streamed(Detokenizer::after(tokenizer, &prompt), &[263, 2]), " b");
    assert_eq!(streamed(Detokenizer::after(tokenizer, &prompt), &[261]), "b");
    // After special tokens only, the text is still at its beginning.
    assert_eq!(streamed(Detokenizer::after(tokenizer, &[1]), &[263]), "b");
    assert_eq!(streamed(Detokenizer::new(tokenizer), &[263]), "b");
    assert_eq!(tokenizer.token_bytes(263).unwrap(), b" b");
    assert_eq!(
        (tokenizer.first_bytes(262).unwrap(), tokenizer.first_bytes(261).unwrap()),
        (b"a".to_vec(), b"b".to_vec())
    );
}

proptest! {
    /// A row's tokens are those of its concatenated text, and exactly the completion is trained, for any split point.
    #[test]
    fn a_row_cut_anywhere_has_the_tokens_of_its_text(text in "[ab \n🙂éx]{1,16}", at in any::<prop::sample::Index>()) {
        for tokenizer in [FIRST.to_vec(), LLAMA2.to_vec(), byte_level().to_string().into_bytes()] {
            let model = model(&tokenizer);
            let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            let at = cuts[at.index(cuts.len())];
            let (prompt, completion) = text.split_at(at);
            let Ok(example) = model.encode_row(&row(prompt, completion), Learnt::Answers, DAY) else { continue };
            let mut whole = model.encode_prompt(&text).unwrap();
            whole.extend(model.eos());
            prop_assert_eq!(&example.ids, &whole);
            // The untrained tokens are the prompt's, except for a token across the boundary.
            let asked = example.trained.iter().take_while(|trained| !**trained).count();
            let learnt = model.tokenizer().decode(&example.ids[asked..]).unwrap();
            prop_assert!(learnt.trim().ends_with(completion.trim()), "{learnt:?} {completion:?}");
        }
    }

    /// An answer that is streamed after a prompt is the rest of the whole text after the prompt.
    #[test]
    fn an_answer_streamed_behind_its_prompt_is_the_rest_of_the_text(
        prompt in "[ab x]{1,12}",
        answer in "[ab \n🙂éx]{1,12}",
    ) {
        for json in [byte_level(), sentencepiece()] {
            let model = model(json.to_string().as_bytes());
            let tokenizer = model.tokenizer();
            let before = tokenizer.encode(&prompt).unwrap();
            let whole = tokenizer.encode(&format!("{prompt}{answer}")).unwrap();
            let Some(ids) = whole.strip_prefix(before.as_slice()) else { continue };
            let mut letters = Detokenizer::after(tokenizer, &before);
            let mut text: String = ids.iter().filter_map(|id| letters.push(*id).unwrap()).collect();
            text.extend(letters.finish());
            prop_assert_eq!(text, answer.clone());
        }
    }
}
