//! A model folder's text files: `tokenizer.json`, the chat template, and the BOS and EOS tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use attune_domain::{digest::Sha256, template_kwargs::TemplateKwargs, text::text_file::model_document};
use serde::Deserialize;
use serde_json::Value;

use crate::error::TextError;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// The files of a model's folder that concern text; only the first is required.
pub const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "chat_template.jinja"];

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The special tokens that chat templates may use.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// The tokenizer, chat template and special tokens of a base model.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// The texts of `bos_token` and so on, for templates.
    special: BTreeMap<String, String>,
    bos: Option<u32>,
    eos: Option<u32>,
    stop: Vec<u32>,
    prefix: Vec<u32>,
    kwargs: TemplateKwargs,
}

/// The fields of `tokenizer_config.json` that are used.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
    chat_template: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// The fields of `config.json` and `generation_config.json` that are used.
#[derive(Default, Deserialize)]
struct IdConfig {
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

/// A function that returns a file of the model by its name; `None`: the file does not exist.
pub type Files<'a> = dyn Fn(&'static str) -> Result<Option<Vec<u8>>, TextError> + 'a;

impl TextModel {
    /// Reads a Hugging Face folder. `tokenizer.json` is required; a base model may have no chat template.
    ///
    /// # Errors
    /// [`TextError`]: a file is missing or not valid, or the template does not compile.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        Self::read(&|name| optional(&folder.join(name)))
    }

    /// Reads a model from files in memory: those of [`FILES`] that exist, by name.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, TextError> {
        Self::read(&|name| Ok(files.get(name).cloned()))
    }

    fn read(file: &Files<'_>) -> Result<Self, TextError> {
        let json = file("tokenizer.json")?.ok_or_else(|| TextError::Unreadable {
            path: "tokenizer.json".into(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut tokenizer = Tokenizer::from_json(&json)?;
        let names: TokenizerConfig = read(file, TOKENIZER_CONFIG)?;
        let config: IdConfig = read(file, "config.json")?;
        let generation: IdConfig = read(file, "generation_config.json")?;

        let special = named_tokens(&names.rest);
        let id_of = |name: &str| special.get(name).and_then(|token| tokenizer.id_of(token));
        let bos = id_of("bos_token").or_else(|| ids(config.bos_token_id.as_ref()).first().copied());
        let mut stop = ids(generation.eos_token_id.as_ref());
        stop.extend(ids(config.eos_token_id.as_ref()));
        let eos = id_of("eos_token").or_else(|| stop.first().copied());
        stop.extend(eos);
        stop.sort_unstable();
        stop.dedup();
        tokenizer.guard(&stop);
        tokenizer.guard(bos.as_slice());

        let source = template_source(file, names.chat_template)?;
        let template = source.map(|source| ChatTemplate::new(&source, special.clone())).transpose()?;
        let prefix = match names.add_bos_token {
            Some(true) => bos.into_iter().collect(),
            Some(false) => Vec::new(),
            None => tokenizer.prefix()?,
        };
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            template,
            special,
            bos,
            eos,
            stop,
            prefix,
            kwargs: TemplateKwargs::default(),
        })
    }

    /// Returns the model with these variables, which its chat template gets with each row.
    #[must_use]
    pub fn with_kwargs(self, kwargs: TemplateKwargs) -> Self {
        Self { kwargs, ..self }
    }

    /// Returns the model with another chat template, such as an adapter's. The tokenizer is shared, not copied.
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
            kwargs: self.kwargs.clone(),
        })
    }

    /// Returns the variables that the chat template gets with each row.
    #[must_use]
    pub const fn kwargs(&self) -> &TemplateKwargs {
        &self.kwargs
    }

    /// Returns the tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the chat template; `None` for a base model that was not made for chat.
    #[must_use]
    pub const fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Returns the SHA-256 of the chat template's text.
    #[must_use]
    pub fn template_sha256(&self) -> Option<Sha256> {
        self.template.as_ref().map(ChatTemplate::sha256)
    }

    /// Returns the BOS token's ID.
    #[must_use]
    pub const fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the ID of the EOS token, which ends a text and follows a completion in training.
    #[must_use]
    pub const fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Returns the IDs of all tokens that end an answer, sorted: those of `generation_config.json`, `config.json` and
    /// the tokenizer.
    #[must_use]
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// Returns the tokens that the tokenizer adds before a plain text: the BOS token, or nothing. Chat templates write
    /// their own.
    #[must_use]
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }
}

/// Returns the chat template in an adapter's folder, if it has one: in `chat_template.jinja`, or in
/// `tokenizer_config.json`, where older releases of transformers wrote it.
///
/// # Errors
/// [`TextError`]: a file cannot be read or is not valid, or several templates are named and none is `default`.
pub fn adapter_template(folder: &Path) -> Result<Option<String>, TextError> {
    adapter_template_in(&|name| optional(&folder.join(name)))
}

/// Returns the chat template as [`adapter_template`], from files in memory.
///
/// # Errors
/// As [`adapter_template`].
pub fn adapter_template_in(file: &Files<'_>) -> Result<Option<String>, TextError> {
    let TokenizerConfig { chat_template, .. } = read(file, TOKENIZER_CONFIG)?;
    let is_named = matches!(&chat_template, Some(Value::Array(list)) if !list.is_empty());
    let source = template_source(file, chat_template)?;
    if source.is_none() && is_named {
        let reason = "chat_template names several templates, and none of them 'default'".into();
        return Err(TextError::Invalid { file: TOKENIZER_CONFIG, reason });
    }
    Ok(source)
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Unreadable { path: path.to_owned(), source }),
    }
}

fn read<T: Default + for<'de> Deserialize<'de>>(files: &Files<'_>, file: &'static str) -> Result<T, TextError> {
    match files(file)? {
        Some(bytes) => {
            let invalid = |reason| TextError::Invalid { file, reason };
            let text = model_document(&bytes).map_err(invalid)?;
            serde_json::from_slice(text).map_err(|e| invalid(e.to_string()))
        }
        None => Ok(T::default()),
    }
}

/// Returns the special tokens by name; each is a string, or an object with `content`.
fn named_tokens(fields: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    NAMED.iter().filter_map(|name| Some(((*name).to_owned(), text(fields.get(*name)?)?))).collect()
}

/// Reads an ID, or a list of IDs.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Returns the text of `chat_template.jinja`, or of the field of `tokenizer_config.json`: a string, or a list from
/// which `default` is used.
fn template_source(file: &Files<'_>, field: Option<Value>) -> Result<Option<String>, TextError> {
    if let Some(bytes) = file("chat_template.jinja")? {
        let invalid = |reason| TextError::Invalid { file: "chat_template.jinja", reason };
        // A byte order mark is refused: transformers would print it before every chat.
        model_document(&bytes).map_err(invalid)?;
        return String::from_utf8(bytes).map(Some).map_err(|_| invalid("not UTF-8".into()));
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
