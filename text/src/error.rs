//! Errors of tokenization, chat templates and encoding.

use std::path::PathBuf;

use attune_domain::dataset::MAX_MESSAGES;

/// An error in a model folder's tokenizer or chat template.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A required file that cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A file that is not valid.
    #[error("{file} is not valid: {reason}")]
    Invalid {
        /// The file's name.
        file: &'static str,
        /// The reason.
        reason: String,
    },
    /// A failure of the tokenizer on a text or on IDs.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A template that does not compile.
    #[error("the chat template is not valid: {0}")]
    Template(String),
}

/// The reason why a row, a chat or a prompt cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Chat messages for a model without a chat template.
    #[error("the base model has no chat template; use prompt/completion rows, or a base model made for chat")]
    NoTemplate,
    /// Messages that the template refuses, or on which it exceeds its limits.
    #[error("the chat template refuses these messages: {0}")]
    Template(String),
    /// A special token of the model in the user's text.
    #[error("{place} contains '{token}', which is a special token of the model; it cannot be given as text")]
    SpecialToken {
        /// The field of the row.
        place: String,
        /// The token's text.
        token: String,
    },
    /// A tool, or a call of one, that the template ignores.
    #[error(
        "{place}: the base model's chat template does not render '{tool}', so the model would not be trained on it; \
         use another chat template"
    )]
    Unshown {
        /// The field of the row.
        place: String,
        /// The tool's name.
        tool: String,
    },
    /// A prefix that is tokenized differently when the answer follows, so that no mask is correct.
    #[error("messages[{message}]: {reason}")]
    NotAPrefix {
        /// The index of the assistant's message.
        message: usize,
        /// The difference, and what to do.
        reason: &'static str,
    },
    /// More messages than the limit of a chat.
    #[error("the chat has {0} messages, and at most {MAX_MESSAGES} are allowed")]
    TooManyMessages(usize),
    /// A chat with so many answers that locating them exceeds the limit.
    #[error(
        "the chat has {messages} messages and {bytes} bytes once rendered: locating its answers requires rendering \
         more than {most} bytes; split it into several rows, or set weight to 0 for answers that are not to be trained"
    )]
    TooMuchWork {
        /// The number of messages.
        messages: usize,
        /// The size of the rendered chat, in bytes.
        bytes: usize,
        /// The limit of the renderings that locate the answers, in bytes.
        most: usize,
    },
    /// An answer without a token that ends a turn.
    #[error(
        "messages[{message}]: the chat template puts no token that ends a turn after this answer ({}), so the model \
         would never learn to stop; use another chat template, or add the template's token to eos_token_id in \
         generation_config.json",
        known(stop)
    )]
    Endless {
        /// The index of the assistant's message.
        message: usize,
        /// The tokens that end a turn, separated by commas; empty if the model names none.
        stop: String,
    },
    /// A row without a trained token.
    #[error("no token of the row is trained")]
    NothingTrained,
    /// A preference row, which no method supports.
    #[error("no training method supports preference rows")]
    Preference,
    /// A sequence that starts with two BOS tokens.
    #[error("the sequence starts with '{0}' twice: the chat template adds one to the tokenizer's own")]
    DoubledBos(String),
    /// A model without an EOS token.
    #[error("the base model names no end-of-text token, which must follow a completion and a text")]
    NoEos,
    /// A failure of the tokenizer.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

fn known(stop: &str) -> String {
    if stop.is_empty() { "the model names none".into() } else { format!("the model knows {stop}") }
}
