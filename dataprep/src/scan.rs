//! One pass over a file's rows with the base model's own tokenizer: token counts, the effect of the job's policy on
//! rows that are too long, and the rows that cannot be trained on. Blocking, in constant memory; it only reads the
//! bytes passed to it.

use attune_domain::dataset::file_facts::FileFacts;
use attune_store::jobs::job_event::Level;
use attune_text::{
    model::TextModel,
    rows::{RowPolicy, RowReader},
};
use bytes::Bytes;

use crate::refusal::{JobFile, Refused};

/// The result for a valid file.
#[derive(Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Token counts after the policy was applied.
    pub facts: FileFacts,
    /// Changes that the policy made to rows, for the user.
    pub notes: Vec<(Level, String)>,
}

/// Reads a job's file to its end.
///
/// # Errors
/// The user's error: the invalid rows, by line number.
pub fn scan(
    model: &TextModel,
    policy: RowPolicy,
    file: JobFile,
    chunks: impl IntoIterator<Item = Bytes>,
) -> Result<Scanned, Refused> {
    let mut rows = RowReader::new(model, policy);
    for chunk in chunks {
        rows.push(&chunk, &mut drop);
    }
    let stats = rows.finish(&mut drop).map_err(|error| Refused::file(file, &error))?;
    let changes = stats.changes(policy.max_length).into_iter().map(|note| (Level::Warn, note));
    let packing = stats.packing(policy.max_length).map(|note| (Level::Info, note));
    let named = |(level, note): (Level, String)| (level, format!("{}: {note}", file.param()));
    Ok(Scanned { facts: stats.facts, notes: changes.chain(packing).map(named).collect() })
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::{Method, OverLength};
    use attune_text::testing::{word_model, word_policy};

    use super::*;

    fn scan_as(method: Method, over_length: OverLength, file: &str) -> Result<Scanned, Refused> {
        let policy = RowPolicy { method, ..word_policy(over_length) };
        let chunks = file.as_bytes().chunks(9).map(Bytes::copy_from_slice);
        scan(&word_model().unwrap(), policy, JobFile::Validation, chunks)
    }

    const ROWS: &str =
        "{\"prompt\": \"a\", \"completion\": \" a\"}\n{\"prompt\": \"a\", \"completion\": \" a a a a a\"}";

    #[test]
    fn the_facts_are_those_after_the_policy_and_what_it_did_is_reported() {
        let scanned = scan_as(Method::Supervised, OverLength::Split, ROWS).unwrap();
        // 3 tokens; and 7, split into 4, and the last of those with 3 more.
        assert_eq!(scanned.facts, FileFacts { rows: 3, tokens: 11, trained_tokens: 8, longest_row: 4 });
        let said = "validation_file: 1 row was split into 2 parts of at most 4 tokens: line 2 (2 parts)";
        assert_eq!(scanned.notes, [(Level::Warn, said.to_owned())]);
        let scanned = scan_as(Method::Supervised, OverLength::Drop, ROWS).unwrap();
        assert_eq!((scanned.facts.rows, scanned.facts.longest_row), (1, 3));
    }

    #[test]
    fn packed_documents_are_counted_as_sequences() {
        let texts = "{\"text\": \"a\"}\n{\"text\": \"a\"}\n{\"text\": \"a a\"}\n";
        let scanned = scan_as(Method::ContinuedPretraining, OverLength::Error, texts).unwrap();
        assert_eq!(scanned.facts, FileFacts { rows: 2, tokens: 7, trained_tokens: 4, longest_row: 4 });
        let said = "validation_file: 3 documents were packed into 2 sequences of at most 4 tokens";
        assert_eq!(scanned.notes, [(Level::Info, said.to_owned())]);
    }

    #[test]
    fn a_refusal_has_a_code_for_programs_and_names_lines_and_method() {
        let refused = scan_as(Method::Supervised, OverLength::Error, ROWS).unwrap_err();
        assert_eq!((refused.code, refused.param), ("row_too_long", "validation_file"));
        assert!(refused.reason.contains("line 2 (7 tokens)"), "{}", refused.reason);
        let refused = scan_as(Method::ContinuedPretraining, OverLength::Error, ROWS).unwrap_err();
        assert_eq!(refused.code, "invalid_validation_file");
        assert!(refused.reason.contains("method.type 'continued_pretraining'"), "{}", refused.reason);
    }
}
