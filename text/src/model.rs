//! What a model's folder says about text: `tokenizer.json`, the chat template, and which tokens begin and end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::error::TextError;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// The special tokens that chat templates may name.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Everything about a base model that concerns text.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// `bos_token` and so on, for templates.
    special: BTreeMap<String, String>,
    bos: Option<u32>,
    eos: Option<u32>,
    stop: Vec<u32>,
    prefix: Vec<u32>,
}

/// The part of `tokenizer_config.json` that is needed.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
    chat_template: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// The part of `config.json` and `generation_config.json` that is needed.
#[derive(Default, Deserialize)]
struct IdConfig {
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

impl TextModel {
    /// Reads a Hugging Face folder. `tokenizer.json` must be there; a base model may have no chat template.
    ///
    /// # Errors
    /// [`TextError`]: a file is missing, is not what it should be, or the template does not compile.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let json = required(&folder.join("tokenizer.json"))?;
        let tokenizer = Tokenizer::from_json(&json)?;
        let names: TokenizerConfig = read(folder, "tokenizer_config.json")?;
        let config: IdConfig = read(folder, "config.json")?;
        let generation: IdConfig = read(folder, "generation_config.json")?;

        let special = named_tokens(&names.rest);
        let id_of = |name: &str| special.get(name).and_then(|token| tokenizer.id_of(token));
        let bos = id_of("bos_token").or_else(|| ids(config.bos_token_id.as_ref()).first().copied());
        let mut stop = ids(generation.eos_token_id.as_ref());
        stop.extend(ids(config.eos_token_id.as_ref()));
        let eos = id_of("eos_token").or_else(|| stop.first().copied());
        stop.extend(eos);
        stop.sort_unstable();
        stop.dedup();

        let source = template_source(folder, names.chat_template)?;
        let template = source.map(|source| ChatTemplate::new(&source, special.clone())).transpose()?;
        let prefix = match names.add_bos_token {
            Some(true) => bos.into_iter().collect(),
            Some(false) => Vec::new(),
            None => tokenizer.prefix()?,
        };
        Ok(Self { tokenizer: Arc::new(tokenizer), template, special, bos, eos, stop, prefix })
    }

    /// The same model with another chat template, as an adapter may bring one. The tokenizer is shared, not copied.
    ///
    /// # Errors
    /// [`TextError::Template`]: not valid Jinja.
    pub fn with_template(&self, source: &str) -> Result<Self, TextError> {
        Ok(Self {
            tokenizer: self.tokenizer.clone(),
            template: Some(ChatTemplate::new(source, self.special.clone())?),
            special: self.special.clone(),
            bos: self.bos,
            eos: self.eos,
            stop: self.stop.clone(),
            prefix: self.prefix.clone(),
        })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; `None` for a base model that was not made for chat.
    #[must_use]
    pub const fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The SHA-256 of the chat template's text, in hex.
    #[must_use]
    pub fn template_sha256(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::sha256)
    }

    /// The token of beginning.
    #[must_use]
    pub const fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text: what follows a completion in training.
    #[must_use]
    pub const fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Every token that ends an answer, sorted: those of `generation_config.json`, `config.json` and the tokenizer.
    #[must_use]
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// What the tokenizer puts before a plain text: the token of beginning, or nothing. Chat templates write their own.
    #[must_use]
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }
}

fn required(path: &Path) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|source| TextError::Unreadable { path: path.to_owned(), source })
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Unreadable { path: path.to_owned(), source }),
    }
}

fn read<T: Default + for<'de> Deserialize<'de>>(folder: &Path, file: &'static str) -> Result<T, TextError> {
    match optional(&folder.join(file))? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| TextError::Invalid { file, reason: e.to_string() }),
        None => Ok(T::default()),
    }
}

/// Special tokens by name; each is a string, or an object with `content`.
fn named_tokens(fields: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    NAMED.iter().filter_map(|name| Some(((*name).to_owned(), text(fields.get(*name)?)?))).collect()
}

/// An id, or a list of ids.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// `chat_template.jinja`, or the field of `tokenizer_config.json`: a string, or a list of which `default` is ours.
fn template_source(folder: &Path, field: Option<Value>) -> Result<Option<String>, TextError> {
    if let Some(bytes) = optional(&folder.join("chat_template.jinja"))? {
        return String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| TextError::Invalid { file: "chat_template.jinja", reason: "not UTF-8".into() });
    }
    Ok(match field {
        Some(Value::String(source)) => Some(source),
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    })
}
