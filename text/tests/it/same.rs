//! One encoding for all uses: preview, validation, training, training after a pause, and serving give the same tokens.

use attune_domain::dataset::{Message, Row};
use attune_domain::spec::{Method, OverLength};
use attune_text::rows::{RowPolicy, RowReader};
use attune_text::template::{RenderSettings, Turn};
use proptest::prelude::*;
use serde_json::json;

use crate::tiny::{A, CHATML, U, model_with};

/// A system message with the time, which also tests arithmetic and Python's output format.
const DATED: &str =
    "{{ '<|im_start|>system\nToday: ' ~ strftime_now('%d %b %Y %H:%M:%S') ~ ' ' ~ 1e16 ~ true ~ '<|im_end|>\n' }}";

proptest! {
    #[test]
    fn a_row_is_the_same_at_every_entry_point(
        contents in prop::collection::vec("[a-zé🙂 {}%\"'\\\\]{1,12}", 1..5),
        dated in any::<bool>(),
        now in 0i64..2_000_000_000,
        piece in 1usize..40,
    ) {
        let template = if dated { format!("{DATED}{CHATML}") } else { CHATML.to_owned() };
        let model = model_with(&json!({"eos_token": "<|end|>", "chat_template": template}));
        let mut messages: Vec<Message> = contents
            .iter()
            .enumerate()
            .map(|(i, text)| Message::new(if i % 2 == 0 { U } else { A }, text.as_str()))
            .collect();
        messages.push(Message::new(A, "x"));
        let policy = RowPolicy {
            method: Method::Supervised,
            train_on_prompt: false,
            over_length: OverLength::Error,
            max_length: 1 << 16,
            now,
        };
        let spoken = |message: &Message| json!({"role": message.role.as_str(), "content": message.content});
        let file = json!({"messages": messages.iter().map(spoken).collect::<Vec<_>>()}).to_string();

        // Preview.
        let row = Row::Chat { messages: messages.clone(), tools: None, parallel_tool_calls: None };
        let Ok(shown) = policy.shape(&model, &row) else { return Ok(()) };
        // Validation, training, and training after a pause: each reads the file again.
        for _ in 0..2 {
            let (mut reader, mut read) = (RowReader::new(&model, policy), Vec::new());
            file.as_bytes().chunks(piece).for_each(|bytes| reader.push(bytes, &mut |row| read.push(row)));
            reader.finish(&mut |row| read.push(row)).unwrap();
            prop_assert_eq!(&read[0].examples, &shown.examples);
        }
        // Serving, at the same time: the prompt is the tokens before the answer.
        let turns: Vec<Turn<'_>> = messages.iter().map(Turn::from).collect();
        let asked = model.encode_chat(&turns[..turns.len() - 1], RenderSettings::at(now)).unwrap();
        let example = &shown.examples[0];
        let after = example.trained.iter().rposition(|trained| !*trained).unwrap() + 1;
        prop_assert_eq!(&example.ids[..after], asked.as_slice());
    }
}
