//! The preview of selected rows of a file as a job would train on them: with the base model's own tokenizer and
//! template, and through the same code as validation and training (`attune_text::rows`).
//!
//! The file is read up to the last selected row. Tokenizing runs on a thread of its own.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use attune_dataprep::{
    base_text,
    blob::read_blob,
    refusal::Refused,
    rows::{Stop, each_row},
};
use attune_domain::{dataset::Row, id::ProjectId, spec::TrainSpec};
use attune_store::{
    adapters::{
        adapter::{self, Model},
        base_model,
    },
    files::file::File,
};
use attune_text::{
    encode::Example,
    model::TextModel,
    rows::{RowOutcome, RowPolicy},
};
use bytes::Bytes;

use crate::{
    app::App,
    error::ApiError,
    files::row_errors::{unopened, unread},
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
        let place = Arc::new(place);
        let model = base_text::open(&app.objects, &blobs, place.clone()).await.map_err(unopened)?;
        let model = model.with_kwargs(spec.chat_template_kwargs);
        let shown = read_blob(&app.objects, file.rows_sha256(), move |chunks| {
            read(&model, (policy, wanted), chunks, place.stop())
        });
        shown.await.map_err(unread)?
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

/// Reads rows until all of `wanted` were seen. Blocking.
fn read(
    model: &TextModel,
    (policy, wanted): (RowPolicy, BTreeSet<u64>),
    chunks: impl IntoIterator<Item = Bytes>,
    stop: &Stop,
) -> Result<Vec<PreviewRow>, ApiError> {
    let mut shown = Shown { model, policy, wanted, rows: Vec::new(), tokens: 0, refused: Vec::new() };
    each_row(chunks, stop, |line, row| shown.take(line, row));
    shown.finish()
}

struct Shown<'a> {
    model: &'a TextModel,
    policy: RowPolicy,
    /// The selected lines that have not been seen yet.
    wanted: BTreeSet<u64>,
    rows: Vec<PreviewRow>,
    tokens: usize,
    /// The refusal of each row that could not be trained on, with its line in the reason.
    refused: Vec<Refused>,
}

impl Shown<'_> {
    /// Adds the row if it was selected; breaks after the last one.
    fn take(&mut self, line: u64, row: &Row) -> ControlFlow<()> {
        if self.wanted.remove(&line)
            && let Err(refused) = self.add(line, row)
        {
            self.refused.push(Refused { reason: format!("line {line}: {}", refused.reason), ..refused });
        }
        if self.wanted.is_empty() || self.tokens > MOST_TOKENS {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn add(&mut self, line: u64, row: &Row) -> Result<(), Refused> {
        let most = self.policy.max_length;
        let shaped = self.policy.shape(self.model, row).map_err(|refusal| Refused::row(refusal, most))?;
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
    ) -> Result<(), Refused> {
        self.tokens += example.ids.len();
        if self.tokens > MOST_TOKENS {
            let reason = format!("more than {MOST_TOKENS} tokens up to here. Request fewer rows");
            return Err(Refused::selected("too_many_tokens", reason));
        }
        let texts = self.model.tokenizer().token_texts(&example.ids);
        let pieces = texts.map_err(|error| Refused::invalid_row(error.to_string()))?;
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
        let Some(&Refused { code, param, .. }) = self.refused.first() else { return Ok(self.rows) };
        let lines: Vec<&str> = self.refused.iter().map(|refused| refused.reason.as_str()).collect();
        let message = format!("A job would refuse these rows:\n{}", lines.join("\n"));
        Err(ApiError::Invalid { param: Some(param.into()), code, message })
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::spec::OverLength;
    use attune_text::testing::{word_model, word_policy};

    use super::*;

    fn preview(over_length: OverLength, wanted: &[u64], file: &str) -> Result<Vec<PreviewRow>, ApiError> {
        let chunks = file.as_bytes().chunks(20).map(Bytes::copy_from_slice);
        let selected = (word_policy(over_length), wanted.iter().copied().collect());
        read(&word_model().unwrap(), selected, chunks, &Stop::default())
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
        let chunks = std::iter::once(Bytes::from_static(FILE.as_bytes()));
        let chunks = chunks.chain(std::iter::from_fn(|| panic!("another chunk was taken")));
        let selected = (word_policy(OverLength::Error), BTreeSet::from([1]));
        assert_eq!(read(&word_model().unwrap(), selected, chunks, &Stop::default()).unwrap().len(), 1);
    }

    #[test]
    fn rows_that_do_not_exist_are_named() {
        assert_eq!(chosen(None, 3).unwrap(), BTreeSet::from([1, 2, 3]));
        assert_eq!(chosen(Some(vec![7, 2, 7]), 9).unwrap(), BTreeSet::from([2, 7]));
        let refused = chosen(Some(vec![1, 10]), 9).unwrap_err();
        assert_eq!(refused.to_string(), "Invalid 'rows[1]': 10; the file has the lines 1 to 9.");
        for asked in [vec![], vec![0], vec![1; 101]] {
            assert!(chosen(Some(asked), 9).is_err());
        }
    }
}
