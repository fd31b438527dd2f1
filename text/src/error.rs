//! What can go wrong between text and tokens.

use std::path::PathBuf;

use attune_domain::dataset::MAX_MESSAGES;

/// Why a model's folder gives no tokenizer or template.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file that must be there cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file is not what it should be.
    #[error("{file} is not valid: {reason}")]
    Invalid {
        /// The file's name.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer failed on a text or on ids.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The template does not compile.
    #[error("the chat template is not valid: {0}")]
    Template(String),
}

/// Why a row, a chat or a prompt has no token ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Chat messages, but the model has no chat template.
    #[error("the base model has no chat template; use prompt/completion rows, or a base model made for chat")]
    NoTemplate,
    /// The template refused the messages, or ran too long.
    #[error("the chat template refuses these messages: {0}")]
    Template(String),
    /// The user's text spells a token that steers the model.
    #[error("{place} contains '{token}', which is a special token of the model; it cannot be given as text")]
    SpecialToken {
        /// Where in the row.
        place: String,
        /// The token's text.
        token: String,
    },
    /// A tool, or a call of one, that the template passes over.
    #[error(
        "{place}: the base model's chat template shows no such thing, so '{tool}' would not be learnt; use another chat \
         template"
    )]
    Unshown {
        /// Where in the row.
        place: String,
        /// The tool's name.
        tool: String,
    },
    /// What comes before an answer is tokenised differently once the answer follows, so no mask is right.
    #[error("messages[{message}]: {reason}")]
    NotAPrefix {
        /// The assistant's message.
        message: usize,
        /// Which way it differs.
        reason: &'static str,
    },
    /// More messages than a chat may have.
    #[error("the chat has {0} messages, and at most {MAX_MESSAGES} are taken")]
    TooManyMessages(usize),
    /// A chat with so many answers that finding them takes too long.
    #[error(
        "the chat has {messages} messages and is {bytes} bytes long once it is rendered: to find its answers, more than \
         {most} bytes would have to be rendered; split it into several rows, or give the answers that are not to be \
         learnt weight 0"
    )]
    TooMuchWork {
        /// Messages of the chat.
        messages: usize,
        /// Bytes of it, rendered.
        bytes: usize,
        /// Bytes that may be rendered to find the answers.
        most: usize,
    },
    /// An answer without a token that ends a turn.
    #[error(
        "messages[{message}]: the chat template puts no token that ends a turn behind this answer ({}), so the model \
         would never learn to stop; use another chat template, or name the template's token in generation_config.json's \
         eos_token_id",
        known(stop)
    )]
    Endless {
        /// The assistant's message.
        message: usize,
        /// The tokens that end a turn, with commas; empty if the model names none.
        stop: String,
    },
    /// Nothing would be learnt from the row.
    #[error("no token of the row is trained")]
    NothingTrained,
    /// A better and a worse answer: no method learns from them.
    #[error("nothing learns from a preference row yet")]
    Preference,
    /// The sequence starts with two tokens of beginning.
    #[error("the sequence starts with '{0}' twice: the chat template adds one to the tokenizer's own")]
    DoubledBos(String),
    /// The model names no token that ends a text.
    #[error("the base model names no end-of-text token, which must follow a completion and a text")]
    NoEos,
    /// The tokenizer itself failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

fn known(stop: &str) -> String {
    if stop.is_empty() { "the model names none".into() } else { format!("the model knows {stop}") }
}
