//! One pass over a file's rows with the base model's own tokenizer: token counts, the effect of the job's policy on
//! rows that are too long, and the rows that cannot be trained on. Blocking, in constant memory; it only reads the
//! bytes passed to it.

use attune_store::jobs::{
    job::{FileFacts, JobError},
    job_event::Level,
};
use attune_text::{
    model::TextModel,
    row_stats::{RowStats, RowsError},
    rows::{RowPolicy, RowReader},
};

/// A scan that is fed a file's bytes in chunks.
pub(super) struct Scan<'a> {
    /// The request's field: `training_file`.
    param: &'static str,
    max_length: u32,
    rows: RowReader<'a>,
}

/// The result for a valid file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) facts: FileFacts,
    /// Changes that the policy made to rows, for the job's events.
    pub(super) notes: Vec<(Level, String)>,
}

impl<'a> Scan<'a> {
    /// Creates an empty scan.
    pub(super) fn new(model: &'a TextModel, param: &'static str, policy: RowPolicy) -> Self {
        Self { param, max_length: policy.max_length, rows: RowReader::new(model, policy) }
    }

    /// Processes the next chunk.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.rows.push(piece, &mut drop);
    }

    /// Ends the scan at the end of the file.
    ///
    /// # Errors
    /// The user's error: the invalid rows, by line number.
    pub(super) fn finish(self) -> Result<Scanned, JobError> {
        let Self { param, max_length, rows } = self;
        let stats = rows.finish(&mut drop).map_err(|error| refused(param, &error))?;
        let changes = stats.changes(max_length).into_iter().map(|note| (Level::Warn, note));
        let packing = stats.packing(max_length).map(|note| (Level::Info, note));
        let notes = changes.chain(packing).map(|(level, note)| (level, format!("{param}: {note}"))).collect();
        Ok(Scanned { facts: facts(&stats), notes })
    }
}

fn facts(stats: &RowStats) -> FileFacts {
    let facts = stats.facts;
    FileFacts {
        rows: facts.rows,
        tokens: facts.tokens,
        trained_tokens: facts.trained_tokens,
        longest_row: facts.longest_row,
    }
}

fn refused(param: &str, error: &RowsError) -> JobError {
    let code = if error.is_length() { "row_too_long".into() } else { format!("invalid_{param}") };
    JobError { code, message: format!("{param}: {error}"), param: Some(param.to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attune_domain::spec::{Method, OverLength};

    use super::*;

    /// Returns a model with one token per word.
    fn model() -> TextModel {
        let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "post_processor": null, "decoder": null, "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<eos>": 1, "a": 2}, "unk_token": "<unk>"}}"#;
        TextModel::from_files(&BTreeMap::from([
            ("tokenizer.json".to_owned(), tokenizer.as_bytes().to_vec()),
            ("tokenizer_config.json".to_owned(), br#"{"eos_token": "<eos>"}"#.to_vec()),
        ]))
        .unwrap()
    }

    fn scan(method: Method, over_length: OverLength, file: &str) -> Result<Scanned, JobError> {
        let policy = RowPolicy { method, train_on_prompt: false, over_length, max_length: 4, now: 0 };
        let model = model();
        let mut scan = Scan::new(&model, "validation_file", policy);
        file.as_bytes().chunks(9).for_each(|piece| scan.push(piece));
        scan.finish()
    }

    const ROWS: &str =
        "{\"prompt\": \"a\", \"completion\": \" a\"}\n{\"prompt\": \"a\", \"completion\": \" a a a a a\"}";

    #[test]
    fn the_facts_are_those_after_the_policy_and_what_it_did_is_said() {
        let scanned = scan(Method::Supervised, OverLength::Split, ROWS).unwrap();
        // 3 tokens; and 7, split into 4, and the last of those with 3 more.
        assert_eq!(scanned.facts, FileFacts { rows: 3, tokens: 11, trained_tokens: 8, longest_row: 4 });
        let said = "validation_file: 1 row was split into 2 parts of at most 4 tokens: line 2 (2 parts)";
        assert_eq!(scanned.notes, [(Level::Warn, said.to_owned())]);
        let scanned = scan(Method::Supervised, OverLength::Drop, ROWS).unwrap();
        assert_eq!((scanned.facts.rows, scanned.facts.longest_row), (1, 3));
    }

    #[test]
    fn packed_documents_are_counted_as_sequences() {
        let texts = "{\"text\": \"a\"}\n{\"text\": \"a\"}\n{\"text\": \"a a\"}\n";
        let scanned = scan(Method::ContinuedPretraining, OverLength::Error, texts).unwrap();
        assert_eq!(scanned.facts, FileFacts { rows: 2, tokens: 7, trained_tokens: 4, longest_row: 4 });
        let said = "validation_file: 3 documents were packed into 2 sequences of at most 4 tokens";
        assert_eq!(scanned.notes, [(Level::Info, said.to_owned())]);
    }

    #[test]
    fn a_refusal_has_a_code_for_programs_and_names_lines_and_method() {
        let refused = scan(Method::Supervised, OverLength::Error, ROWS).unwrap_err();
        assert_eq!((refused.code.as_str(), refused.param.as_deref()), ("row_too_long", Some("validation_file")));
        assert!(refused.message.contains("line 2 (7 tokens)"), "{}", refused.message);
        let refused = scan(Method::ContinuedPretraining, OverLength::Error, ROWS).unwrap_err();
        assert_eq!(refused.code, "invalid_validation_file");
        assert!(refused.message.contains("method.type 'continued_pretraining'"), "{}", refused.message);
    }
}
