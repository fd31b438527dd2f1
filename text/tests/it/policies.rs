//! The effect of a job's policy on a file: rows that are too long, packed documents, and the messages about both.

use attune_domain::dataset::{Row, RowFormat, file_facts::FileFacts};
use attune_domain::spec::{Method, OverLength, WrongFormat};
use attune_text::encode::{Example, Learnt};
use attune_text::model::TextModel;
use attune_text::row_stats::{RowStats, RowsError};
use attune_text::rows::{RowOutcome, RowPolicy, RowReader, ShapedRow, TrainRow};
use proptest::prelude::*;
use serde_json::json;

use crate::tiny::{DAY, END, chatml};

fn policy(over_length: OverLength, max_length: u32) -> RowPolicy {
    RowPolicy { method: Method::Supervised, train_on_prompt: false, over_length, max_length, now: DAY }
}

fn pretraining(over_length: OverLength, max_length: u32) -> RowPolicy {
    RowPolicy { method: Method::ContinuedPretraining, ..policy(over_length, max_length) }
}

/// Reads the file in chunks of `chunk` bytes.
fn read_in(
    model: &TextModel,
    policy: RowPolicy,
    file: &str,
    chunk: usize,
) -> Result<(Vec<TrainRow>, RowStats), RowsError> {
    let mut rows = Vec::new();
    let mut reader = RowReader::new(model, policy);
    for piece in file.as_bytes().chunks(chunk) {
        reader.push(piece, &mut |row| rows.push(row));
    }
    let stats = reader.finish(&mut |row| rows.push(row))?;
    Ok((rows, stats))
}

fn read(policy: RowPolicy, file: &str) -> Result<(Vec<TrainRow>, RowStats), RowsError> {
    read_in(&chatml(), policy, file, 7)
}

/// Returns a row of `prompt + completion + 1` tokens, the last `completion + 1` of them trained.
fn completion(prompt: usize, completion: usize) -> String {
    json!({"prompt": "p".repeat(prompt), "completion": "c".repeat(completion)}).to_string() + "\n"
}

/// Returns a row of `tokens` tokens, all but the first of them trained.
fn text(tokens: usize) -> String {
    json!({"text": "t".repeat(tokens - 1)}).to_string() + "\n"
}

fn shaped(policy: RowPolicy, prompt: &str, completion: &str) -> ShapedRow {
    let row = Row::Completion { prompt: prompt.into(), completion: completion.into() };
    policy.shape(&chatml(), &row).unwrap()
}

fn lengths(rows: &[TrainRow]) -> Vec<(u64, Vec<usize>)> {
    rows.iter().map(|row| (row.line, row.examples.iter().map(|example| example.ids.len()).collect())).collect()
}

#[test]
fn what_fits_is_taken_as_it_is_and_counted() {
    let file = completion(2, 1) + &completion(20, 1) + &completion(2, 1);
    let (rows, stats) = read(policy(OverLength::Error, 22), &file).unwrap();
    assert_eq!(lengths(&rows), [(1, vec![4]), (2, vec![22]), (3, vec![4])]);
    assert_eq!(stats.facts, FileFacts { rows: 3, tokens: 30, trained_tokens: 6, longest_row: 22 });
    assert!(stats.changes(22).is_empty() && stats.packing(22).is_none());
}

#[test]
fn a_row_that_is_too_long_is_refused_with_its_line_and_tokens() {
    let file = completion(2, 1) + &completion(20, 1) + &completion(2, 1) + &completion(9, 2);
    let refused = read(policy(OverLength::Error, 10), &file).unwrap_err();
    assert!(refused.is_length());
    let said =
        "2 rows are longer than trainer.max_length = 10 tokens: lines 2 (22 tokens), 4 (12 tokens). Shorten them";
    assert!(refused.to_string().starts_with(said), "{refused}");
}

#[test]
fn a_truncated_row_keeps_its_first_tokens_and_is_named() {
    let file = completion(2, 1) + &completion(2, 10);
    let (rows, stats) = read(policy(OverLength::Truncate, 5), &file).unwrap();
    assert_eq!(rows[1].examples[0].trained, [false, false, true, true, true]);
    assert_eq!(stats.facts, FileFacts { rows: 2, tokens: 9, trained_tokens: 5, longest_row: 5 });
    assert_eq!(stats.changes(5), ["1 row was truncated to 5 tokens: line 2"]);
}

#[test]
fn a_row_of_which_nothing_trained_would_be_left_is_a_defect() {
    let file = completion(2, 1) + &completion(8, 1);
    let refused = read(policy(OverLength::Truncate, 5), &file).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "1 row cannot be trained on:\nline 2: the row has 10 tokens, and no token in the first 5 (trainer.max_length) \
         is trained"
    );
    assert!(!refused.is_length());
    let refused = read(policy(OverLength::Split, 1), &completion(1, 1)).unwrap_err();
    assert!(refused.to_string().contains("no token in any 1 (trainer.max_length) is trained"), "{refused}");
}

#[test]
fn a_dropped_row_is_left_out_and_named() {
    let file: String = (0..40).map(|_| completion(8, 1)).collect::<String>() + &completion(2, 1);
    let (rows, stats) = read(policy(OverLength::Drop, 5), &file).unwrap();
    assert_eq!(lengths(&rows), [(41, vec![4])]);
    assert_eq!((stats.facts.rows, stats.facts.longest_row), (1, 4));
    let said = stats.changes(5).join("\n");
    assert!(said.starts_with("40 rows were dropped for more than 5 tokens: lines 1, 2, 3,"), "{said}");
    assert!(said.ends_with(" 31, 32 and 8 more"), "{said}");
}

#[test]
fn a_file_of_which_every_row_is_dropped_is_refused() {
    let refused = read(policy(OverLength::Drop, 5), &completion(8, 1)).unwrap_err();
    assert_eq!(refused, RowsError::NoneLeft { count: 1, max_length: 5 });
    assert!(refused.is_length());
}

#[test]
fn a_split_row_becomes_rows_and_untrained_parts_are_left_out_and_named() {
    let file = completion(2, 1) + &completion(9, 3);
    let (rows, stats) = read(policy(OverLength::Split, 5), &file).unwrap();
    // Tokens 0..5, 4..9, 8..13: the first two parts have no trained token.
    assert_eq!(lengths(&rows), [(1, vec![4]), (2, vec![5])]);
    assert_eq!(rows[1].examples[0].trained, [false, true, true, true, true]);
    assert_eq!(stats.facts, FileFacts { rows: 2, tokens: 9, trained_tokens: 6, longest_row: 5 });
    assert_eq!(
        stats.changes(5),
        [
            "1 row was split into 1 part of at most 5 tokens: line 2 (1 part)",
            "2 parts without a trained token left out: line 2"
        ]
    );
}

#[test]
fn a_chat_is_split_with_its_mask() {
    let policy = policy(OverLength::Split, 12);
    let line = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]});
    let (rows, _) = read(policy, &line.to_string()).unwrap();
    let row = attune_domain::dataset::parse_row(1, line.to_string().as_bytes()).unwrap();
    let whole = chatml().encode_row(&row, Learnt::Answers, DAY).unwrap();
    let trained: usize = rows.iter().map(|row| row.examples[0].trained_tokens()).sum();
    assert_eq!((whole.ids.len(), trained), (32, whole.trained_tokens()));
}

#[test]
fn documents_are_packed_in_order_and_each_stays_apart() {
    let file = text(4) + &text(4) + &text(3) + &text(9) + &text(1 + 1);
    let (rows, stats) = read(pretraining(OverLength::Error, 10), &file).unwrap();
    assert_eq!(lengths(&rows), [(1, vec![4, 4]), (3, vec![3]), (4, vec![9]), (5, vec![2])]);
    for example in rows.iter().flat_map(|row| &row.examples) {
        assert_eq!(example.ids.last(), Some(&END));
        assert_eq!(example.trained_tokens(), example.ids.len() - 1);
        assert!(!example.trained[0]);
    }
    assert_eq!(stats.facts, FileFacts { rows: 4, tokens: 22, trained_tokens: 17, longest_row: 9 });
    assert_eq!(stats.packing(10).unwrap(), "5 documents were packed into 4 sequences of at most 10 tokens");
}

#[test]
fn a_long_document_continues_in_the_next_sequence() {
    let file = json!({"text": "abcdefghijk"}).to_string() + "\n" + &text(3);
    assert!(read(pretraining(OverLength::Error, 5), &file).unwrap_err().is_length());
    let model = chatml();
    let (rows, stats) = read(pretraining(OverLength::Split, 5), &file).unwrap();
    let texts: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.examples.iter().map(|e| model.tokenizer().decode_with_special(&e.ids).unwrap()).collect())
        .collect();
    assert_eq!(texts, [vec!["abcde"], vec!["efghi"], vec!["ijk<|end|>"], vec!["tt<|end|>"]]);
    assert_eq!(stats.facts.trained_tokens, 11 + 2, "every token but the first of each document");
    assert_eq!((stats.split.first.as_slice(), stats.documents), ([(1, 3)].as_slice(), 2));
}

#[test]
fn a_method_takes_its_own_rows_alone() {
    let refused = read(policy(OverLength::Error, 50), &text(4)).unwrap_err();
    let (method, format) = (Method::Supervised, RowFormat::Text);
    assert_eq!(refused, RowsError::Format(WrongFormat { method, format }));
    assert_eq!(
        refused.to_string(),
        "method.type 'supervised' requires chat or prompt/completion rows, but the file has text rows"
    );
    let refused = read(pretraining(OverLength::Error, 50), &completion(1, 1)).unwrap_err().to_string();
    assert_eq!(
        refused,
        "method.type 'continued_pretraining' requires text rows, but the file has prompt/completion rows"
    );
}

#[test]
fn lines_that_are_no_rows_and_rows_that_teach_nothing_are_reported_together() {
    let file = completion(1, 1) + "x\n" + "{\"prompt\": \"<|end|>\", \"completion\": \"c\"}\n" + "[]\n";
    let RowsError::Defects(defects) = read(policy(OverLength::Error, 50), &file).unwrap_err() else { panic!() };
    assert_eq!(defects.first.iter().map(|defect| defect.line).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(defects.total, 3);
    assert!(matches!(read(policy(OverLength::Drop, 5), "").unwrap_err(), RowsError::Defects(_)));
}

fn joined(parts: &[Example]) -> Vec<u32> {
    parts.iter().enumerate().flat_map(|(i, part)| &part.ids[usize::from(i > 0)..]).copied().collect()
}

proptest! {
    /// Split parts have the same tokens in total, each trained token is trained exactly once, and no part is too long.
    #[test]
    fn splitting_neither_loses_nor_repeats(prompt in "[a-z]{0,30}", completion in "[a-z]{1,30}", max in 2u32..40) {
        let whole = shaped(policy(OverLength::Error, 1000), &prompt, &completion).examples.remove(0);
        let all = RowPolicy { train_on_prompt: true, ..policy(OverLength::Split, max) };
        let everything = shaped(all, &prompt, &completion);
        prop_assert_eq!(joined(&everything.examples), whole.ids.clone());
        let answers = shaped(policy(OverLength::Split, max), &prompt, &completion);
        prop_assert!(answers.examples.iter().all(|part| part.ids.len() <= max as usize && part.trained_tokens() > 0));
        let trained: usize = answers.examples.iter().map(Example::trained_tokens).sum();
        prop_assert_eq!(trained, whole.trained_tokens());
        if let RowOutcome::Split { parts, left_out } = answers.outcome {
            prop_assert_eq!(parts, answers.examples.len() as u64);
            prop_assert_eq!(parts + left_out, everything.examples.len() as u64);
        }
    }

    /// Packed documents are complete and in order, and a new sequence only starts if the last has no space.
    #[test]
    fn packing_is_greedy_and_whole(documents in prop::collection::vec(2usize..12, 1..20), chunk in 1usize..50) {
        let file: String = documents.iter().map(|tokens| text(*tokens)).collect();
        let (rows, stats) = read_in(&chatml(), pretraining(OverLength::Error, 12), &file, chunk).unwrap();
        let found: Vec<usize> = lengths(&rows).into_iter().flat_map(|(_, lengths)| lengths).collect();
        prop_assert_eq!(found, documents);
        prop_assert!(rows.iter().all(|row| row.tokens() <= 12));
        prop_assert!(rows.windows(2).all(|two| two[0].tokens() + two[1].examples[0].ids.len() > 12));
        prop_assert_eq!(stats.facts.rows, rows.len() as u64);
    }
}
