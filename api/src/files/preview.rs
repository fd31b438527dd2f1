//! The preview of selected rows of a file as a job would train on them: with the base model's own tokenizer and
//! template, and through the same code as validation and training (`attune_text::rows`).
//!
//! The file is read up to the last selected row. Tokenizing runs on a thread of its own.

use std::collections::BTreeSet;

use attune_domain::{
    dataset::{Row, RowChecker},
    id::ProjectId,
    spec::TrainSpec,
};
use attune_store::{
    adapters::{
        adapter::{self, Model},
        base_model,
    },
    error::StoreError,
    files::{
        file::File,
        objects::{Objects, blob_key},
    },
};
use attune_text::{
    encode::Example,
    error::TextError,
    model::{FILES, TextModel},
    rows::{Refusal, RowOutcome, RowPolicy},
};
use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, channel};

use crate::{
    app::App,
    error::ApiError,
    files::text_places::Stop,
    wire::preview::{NewPreview, Preview, PreviewOverLength, PreviewRow},
};

/// The maximum number of rows in a preview.
const MOST_ROWS: usize = 100;

/// The number of rows if the request selects none.
const FIRST_ROWS: u64 = 5;

/// The maximum number of tokens in a preview.
const MOST_TOKENS: usize = 1 << 18;

/// Returns a preview of the project's file.
///
/// # Errors
/// The file or model does not exist, a field is invalid, or a row could not be trained on: the error names its line.
pub async fn show(app: &App, project: ProjectId, file: File, asked: NewPreview) -> Result<Preview, ApiError> {
    let mut db = app.tenant(project).await?;
    let base = match adapter::resolve(&mut db, project, &asked.model).await {
        Ok(Model::Base(base)) => base,
        Ok(Model::Tuned(_) | Model::Checkpoint(_)) => {
            return Err(ApiError::unsupported("model", "A tuned model is not supported here. Use its base model."));
        }
        Err(error) => return Err(ApiError::on_read(asked.model)(error)),
    };
    let blobs = base_model::files(&mut db, base.base_model_id).await?;
    drop(db);
    let Some(dataset) = &file.dataset else { return Err(no_dataset("file_id", &file)) };
    let spec = TrainSpec::check(&asked.requested(), dataset.rows, base.architecture.max_position_embeddings)?;
    spec.method.takes(dataset.format).map_err(|wrong| ApiError::invalid("method.type", format!("{wrong}.")))?;
    let wanted = chosen(asked.rows, dataset.rows)?;
    let policy = RowPolicy::new(&spec, chrono::Utc::now().timestamp());
    let data = app.text.work(project, async |place| {
        let files = base_model::small_files(&app.objects, &blobs, &FILES).await?;
        let (pieces, inbox) = channel(4);
        let shown = tokio::task::spawn_blocking(move || {
            let model = TextModel::from_files(&files).map_err(|error| unusable(&error))?;
            read(&model.with_kwargs(spec.chat_template_kwargs), (policy, wanted), inbox, place.stop())
        });
        let streamed = stream(&app.objects, file.rows_sha256(), pieces).await;
        let shown = shown.await.map_err(ApiError::internal)?;
        // A reader that has all selected rows closes the channel; a stream that failed before that is the actual error.
        streamed?;
        shown
    });
    Ok(Preview { object: "list", data: data.await? })
}

/// Returns the error for the file in `param`, which has no rows.
pub fn no_dataset(param: &str, file: &File) -> ApiError {
    let message = format!(
        "Invalid '{param}': {} was uploaded for '{}'; only a file for 'fine-tune' has rows to train on.",
        file.file_id, file.purpose
    );
    ApiError::invalid(param, message)
}

/// Returns the selected rows.
fn chosen(asked: Option<Vec<u64>>, rows: u64) -> Result<BTreeSet<u64>, ApiError> {
    let Some(asked) = asked else { return Ok((1..=rows.min(FIRST_ROWS)).collect()) };
    if asked.is_empty() || asked.len() > MOST_ROWS {
        let message = format!("Invalid 'rows': {} rows. Use 1 to {MOST_ROWS}.", asked.len());
        return Err(ApiError::invalid("rows", message));
    }
    if let Some((i, line)) = asked.iter().enumerate().find(|(_, line)| !(1..=rows).contains(*line)) {
        let param = format!("rows[{i}]");
        let message = format!("Invalid '{param}': {line}; the file has the lines 1 to {rows}.");
        return Err(ApiError::invalid(param, message));
    }
    Ok(asked.into_iter().collect())
}

/// Sends an object's bytes until they end or the receiver is dropped.
pub(crate) async fn stream(
    objects: &Objects,
    sha256: &str,
    pieces: tokio::sync::mpsc::Sender<Bytes>,
) -> Result<(), ApiError> {
    let key = blob_key(sha256);
    let mut body = objects.get(&key).await.map_err(ApiError::internal)?;
    loop {
        match body.try_next().await {
            Ok(Some(piece)) => {
                if pieces.send(piece).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(cause) => return Err(StoreError::object("get", &key, cause).into()),
        }
    }
}

/// Reads rows from `inbox` until all of `wanted` were seen. Blocking.
fn read(
    model: &TextModel,
    (policy, wanted): (RowPolicy, BTreeSet<u64>),
    mut inbox: Receiver<Bytes>,
    stop: &Stop,
) -> Result<Vec<PreviewRow>, ApiError> {
    let mut shown = Shown { model, policy, wanted, stop, rows: Vec::new(), tokens: 0, refused: Vec::new() };
    let mut checker = RowChecker::new();
    while let Some(piece) = inbox.blocking_recv() {
        checker.push_with(&piece, &mut |line, row| shown.take(line, &row));
        if shown.is_done() {
            return shown.finish();
        }
    }
    // The file was checked when it was uploaded, so it has no defects here.
    let _ = checker.finish_with(&mut |line, row| shown.take(line, &row));
    shown.finish()
}

/// Returns the error for a base model whose tokenizer or template cannot be used.
pub(crate) fn unusable(error: &TextError) -> ApiError {
    ApiError::invalid("model", format!("The base model's tokenizer or chat template cannot be used: {error}."))
}

struct Shown<'a> {
    model: &'a TextModel,
    policy: RowPolicy,
    /// The selected lines that have not been seen yet.
    wanted: BTreeSet<u64>,
    stop: &'a Stop,
    rows: Vec<PreviewRow>,
    tokens: usize,
    /// The code and message of each row that could not be trained on.
    refused: Vec<(&'static str, String)>,
}

impl Shown<'_> {
    fn is_done(&self) -> bool {
        self.wanted.is_empty() || self.tokens > MOST_TOKENS || self.stop.is_set()
    }

    fn take(&mut self, line: u64, row: &Row) {
        if self.is_done() || !self.wanted.remove(&line) {
            return;
        }
        if let Err((code, why)) = self.add(line, row) {
            self.refused.push((code, format!("line {line}: {why}")));
        }
    }

    fn add(&mut self, line: u64, row: &Row) -> Result<(), (&'static str, String)> {
        let most = self.policy.max_length;
        let shaped = self.policy.shape(self.model, row).map_err(|refusal| match refusal {
            Refusal::TooLong(tokens) => (
                "row_too_long",
                format!("the row has {tokens} tokens, trainer.max_length is {most}, and trainer.over_length is error"),
            ),
            Refusal::Unusable(why) => ("invalid_row", why),
            Refusal::Format(wrong) => ("invalid_row", wrong.to_string()),
        })?;
        let over = |left_out| PreviewOverLength {
            policy: self.policy.over_length.name(),
            row_tokens: shaped.tokens,
            max_length: most,
            left_out,
        };
        let over_length = match shaped.outcome {
            RowOutcome::Whole => None,
            RowOutcome::Truncated | RowOutcome::Dropped => Some(over(0)),
            RowOutcome::Split { left_out, .. } => Some(over(left_out)),
        };
        let parts = shaped.examples.len();
        if parts == 0 {
            let nothing = Example { ids: Vec::new(), trained: Vec::new() };
            self.show((line, 0, 0), nothing, over_length)?;
            return Ok(());
        }
        for (i, example) in shaped.examples.into_iter().enumerate() {
            self.show((line, i + 1, parts), example, over_length.clone())?;
        }
        Ok(())
    }

    fn show(
        &mut self,
        (line, part, parts): (u64, usize, usize),
        example: Example,
        over_length: Option<PreviewOverLength>,
    ) -> Result<(), (&'static str, String)> {
        self.tokens += example.ids.len();
        if self.tokens > MOST_TOKENS {
            return Err(("too_many_tokens", format!("more than {MOST_TOKENS} tokens up to here. Request fewer rows")));
        }
        let pieces = self.model.tokenizer().token_texts(&example.ids).map_err(|e| ("invalid_row", e.to_string()))?;
        self.rows.push(PreviewRow {
            object: "file.preview_row",
            line,
            part,
            parts,
            partial: pieces.iter().enumerate().filter(|(_, piece)| piece.partial).map(|(i, _)| i).collect(),
            pieces: pieces.into_iter().map(|piece| piece.text).collect(),
            mask: example.trained.iter().map(|trained| u8::from(*trained)).collect(),
            tokens: example.ids.len(),
            trained_tokens: example.trained_tokens(),
            ids: example.ids,
            over_length,
        });
        Ok(())
    }

    fn finish(self) -> Result<Vec<PreviewRow>, ApiError> {
        let Some((code, _)) = self.refused.first() else { return Ok(self.rows) };
        let lines: Vec<&str> = self.refused.iter().map(|(_, why)| why.as_str()).collect();
        let message = format!("A job would refuse these rows:\n{}", lines.join("\n"));
        Err(ApiError::Invalid { param: Some("rows".into()), code, message })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attune_domain::spec::{Method, OverLength};

    use super::*;

    /// Returns the files of a tokenizer with one token per word.
    fn files() -> BTreeMap<String, Vec<u8>> {
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "decoder": null, "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<eos>": 1, "a": 2, "b": 3}, "unk_token": "<unk>"},
        });
        BTreeMap::from([
            ("tokenizer.json".to_owned(), tokenizer.to_string().into_bytes()),
            ("tokenizer_config.json".to_owned(), br#"{"eos_token": "<eos>"}"#.to_vec()),
        ])
    }

    fn preview(over_length: OverLength, wanted: &[u64], file: &str) -> Result<Vec<PreviewRow>, ApiError> {
        let policy =
            RowPolicy { method: Method::Supervised, train_on_prompt: false, over_length, max_length: 4, now: 0 };
        let (pieces, inbox) = channel(100);
        for piece in file.as_bytes().chunks(20) {
            pieces.try_send(Bytes::copy_from_slice(piece)).unwrap();
        }
        drop(pieces);
        read(
            &TextModel::from_files(&files()).unwrap(),
            (policy, wanted.iter().copied().collect()),
            inbox,
            &Stop::default(),
        )
    }

    const FILE: &str = concat!(
        r#"{"prompt": "a b", "completion": " b"}"#,
        "\n",
        r#"{"prompt": "a", "completion": " b a b a"}"#,
        "\n",
        r#"{"prompt": "b", "completion": " b"}"#,
    );

    #[test]
    fn chosen_rows_are_shown_with_ids_pieces_and_mask() {
        let rows = preview(OverLength::Error, &[1, 3], FILE).unwrap();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(
            (rows[0].ids.as_slice(), rows[0].mask.as_slice()),
            ([2, 3, 3, 1].as_slice(), [0, 0, 1, 1].as_slice())
        );
        assert_eq!(rows[0].pieces.concat(), "a b b <eos>");
        assert_eq!((rows[0].tokens, rows[0].trained_tokens, &rows[0].over_length), (4, 2, &None));
    }

    #[test]
    fn what_the_policy_does_to_a_row_is_shown() {
        assert_eq!(preview(OverLength::Truncate, &[2], FILE).unwrap()[0].ids, [2, 3, 2, 3]);
        let parts = preview(OverLength::Split, &[2], FILE).unwrap();
        assert_eq!(
            parts.iter().map(|row| (row.part, row.parts, row.tokens)).collect::<Vec<_>>(),
            [(1, 2, 4), (2, 2, 3)]
        );
        let dropped = preview(OverLength::Drop, &[2], FILE).unwrap();
        assert_eq!((dropped[0].part, dropped[0].tokens), (0, 0));
        let said = dropped[0].over_length.clone().unwrap();
        assert_eq!((said.policy, said.row_tokens, said.max_length), ("drop", 6, 4));
    }

    #[test]
    fn a_row_that_a_job_would_refuse_is_named_by_its_line() {
        let refused = preview(OverLength::Error, &[1, 2], FILE).unwrap_err();
        let body = refused.body().error;
        assert_eq!((body.param.as_deref(), body.code), (Some("rows"), Some("row_too_long")));
        assert!(body.message.contains("line 2: the row has 6 tokens"), "{}", body.message);
        let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        assert!(preview(OverLength::Error, &[1], chat).unwrap_err().to_string().contains("no chat template"));
    }

    #[test]
    fn the_file_is_read_no_further_than_is_wanted() {
        let (pieces, inbox) = channel(100);
        let policy = RowPolicy {
            method: Method::Supervised,
            train_on_prompt: false,
            over_length: OverLength::Error,
            max_length: 4,
            now: 0,
        };
        pieces.try_send(Bytes::from_static(FILE.as_bytes())).unwrap();
        // The sender stays open: `read` returns only if it stops before the end of the stream.
        let model = TextModel::from_files(&files()).unwrap();
        assert_eq!(read(&model, (policy, BTreeSet::from([1])), inbox, &Stop::default()).unwrap().len(), 1);
        assert!(pieces.is_closed());
    }

    #[test]
    fn rows_that_are_not_there_are_named() {
        assert_eq!(chosen(None, 3).unwrap(), BTreeSet::from([1, 2, 3]));
        assert_eq!(chosen(Some(vec![7, 2, 7]), 9).unwrap(), BTreeSet::from([2, 7]));
        let refused = chosen(Some(vec![1, 10]), 9).unwrap_err();
        assert_eq!(refused.to_string(), "Invalid 'rows[1]': 10; the file has the lines 1 to 9.");
        for asked in [vec![], vec![0], vec![1; 101]] {
            assert!(chosen(Some(asked), 9).is_err());
        }
    }
}
