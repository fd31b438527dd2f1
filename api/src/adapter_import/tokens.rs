//! The check that an adapter's folder names only tokens of its base model, with the same IDs. Serving encodes and
//! decodes with the base's tokenizer, and a token that the base lacks has no row in its embedding table: such an
//! adapter was trained with weights that are missing here. The splitting rules of the folder's tokenizer do not matter:
//! that tokenizer is not used.

use attune_domain::run::Blob;
use attune_store::files::objects::{Objects, blob_key};
use attune_text::token_ids::{BESIDE, TokenIds, named_tokens};

use crate::{adapter_import::form::Brought, error::ApiError};

const TOKENIZER: &str = "tokenizer.json";

/// Checks every file of the folder that names tokens, and returns a reason for each that names tokens other than the
/// base's.
///
/// # Errors
/// [`ApiError::Internal`]: the store fails.
pub async fn judge(objects: &Objects, brought: &Brought, base_files: &[Blob]) -> Result<Vec<String>, ApiError> {
    let Some(ours) = base_files.iter().find(|file| file.name == TOKENIZER) else { return Ok(Vec::new()) };
    let theirs = brought.files.iter().find(|file| file.name == TOKENIZER);
    let theirs = theirs.filter(|theirs| theirs.arrived.sha256 != ours.sha256);
    let beside: Vec<(&str, Vec<u8>)> =
        BESIDE.iter().filter_map(|name| Some((*name, brought.text(name)?.to_vec()))).collect();
    if theirs.is_none() && beside.is_empty() {
        return Ok(Vec::new());
    }
    let base = objects.get_whole(&blob_key(ours.sha256)).await?;
    let theirs = match theirs {
        Some(file) => Some(objects.get_whole(file.staged.key()).await?),
        None => None,
    };
    tokio::task::spawn_blocking(move || reasons(&base, theirs.as_deref(), &beside)).await.map_err(ApiError::internal)?
}

/// Returns the reasons against a tokenizer that differs from the base's, and against the other files that name tokens.
fn reasons(base: &[u8], theirs: Option<&[u8]>, beside: &[(&str, Vec<u8>)]) -> Result<Vec<String>, ApiError> {
    let base = TokenIds::read(base).map_err(|why| ApiError::internal(std::io::Error::other(why)))?;
    let mut reasons = Vec::new();
    match theirs.map(TokenIds::read) {
        None => {}
        Some(Err(why)) => reasons.push(format!("{TOKENIZER} is not that of the base: it is no tokenizer: {why}")),
        Some(Ok(theirs)) => reasons.extend(unknown_tokens(&base, TOKENIZER, &theirs.tokens())),
    }
    for (name, text) in beside {
        match named_tokens(name, text) {
            Ok(named) => reasons.extend(unknown_tokens(&base, name, &named)),
            Err(why) => reasons.push(format!("{name} is not a JSON object of tokens: {why}")),
        }
    }
    Ok(reasons)
}

fn unknown_tokens(base: &TokenIds, file: &str, named: &[attune_text::token_ids::NamedToken]) -> Option<String> {
    let unknown = base.unknown_tokens(named)?;
    Some(format!(
        "{file} is not that of the base: it has tokens that the base does not have, for which there are no weights \
         here: {unknown}; leave the file out if they do not matter"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokenizer(added: Value) -> Vec<u8> {
        let file = json!({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
            "added_tokens": added, "padding": null});
        file.to_string().into_bytes()
    }

    fn judged(theirs: Option<Vec<u8>>, beside: &[(&'static str, Value)]) -> Vec<String> {
        let base = tokenizer(json!([{"id": 2, "content": "<end>", "special": true}]));
        let beside: Vec<_> = beside.iter().map(|(name, json)| (*name, json.to_string().into_bytes())).collect();
        reasons(&base, theirs.as_deref(), &beside).unwrap()
    }

    #[test]
    fn the_bases_tokens_are_taken_in_whatever_file_and_form() {
        let again = tokenizer(json!([{"content": "<end>", "id": 2, "special": false, "lstrip": true}]));
        let beside =
            [("added_tokens.json", json!({"<end>": 2})), ("special_tokens_map.json", json!({"eos_token": "<end>"}))];
        assert_eq!(judged(Some(again), &beside), Vec::<String>::new());
        assert_eq!(judged(None, &beside), Vec::<String>::new());
    }

    #[test]
    fn tokens_that_the_base_lacks_are_named_by_file() {
        let more = tokenizer(json!([{"id": 2, "content": "<end>"}, {"id": 3, "content": "<tool>"}]));
        let beside = [
            ("added_tokens.json", json!({"<tool>": 3})),
            (
                "tokenizer_config.json",
                json!({"pad_token": "[PAD]", "added_tokens_decoder": {"5": {"content": "<end>"}}}),
            ),
        ];
        let reasons = judged(Some(more), &beside);
        let said = |at: usize, file: &str, token: &str| {
            assert!(reasons[at].starts_with(file) && reasons[at].contains(token), "{reasons:?}");
        };
        assert_eq!(reasons.len(), 3);
        said(0, "tokenizer.json", "'<tool>' (3)");
        said(1, "added_tokens.json", "'<tool>' (3)");
        said(2, "tokenizer_config.json", "'[PAD]'");
        said(2, "tokenizer_config.json", "'<end>' (5, in the base 2)");
        assert!(judged(Some(b"{}".to_vec()), &[])[0].starts_with("tokenizer.json is not that of the base: it is no"));
    }
}
