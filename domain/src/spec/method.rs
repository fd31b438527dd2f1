//! The training method: everything that a method defines about itself. The rest of the platform only calls these
//! functions, apart from the trainer's objectives and the API's `method` object.

use serde::{Deserialize, Serialize};

use super::range::bad;
use crate::{bad_field::BadField, dataset::RowFormat};

/// The training method: the row formats that it accepts, and the tokens that have a loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Supervised fine-tuning on chats, or on prompts and completions; the answers are trained.
    #[default]
    Supervised,
    /// Continued pretraining on plain texts; every token is trained. Documents are packed into sequences of
    /// `max_length` tokens, and tokens of one document do not attend to another.
    ContinuedPretraining,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 2] = [Self::Supervised, Self::ContinuedPretraining];

    /// Returns the name in the API: the `type` of a `method` object, and the section of that object with the method's
    /// settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::ContinuedPretraining => "continued_pretraining",
        }
    }

    /// Returns the method with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Checks the requested name and fills in the default.
    ///
    /// # Errors
    /// [`BadField`]: no method has this name.
    pub(super) fn check(given: Option<&str>) -> Result<Self, BadField> {
        let Some(name) = given else { return Ok(Self::default()) };
        let allowed = || Self::one_of(|method| method.name().to_owned());
        Self::from_name(name).ok_or_else(|| bad("method.type", name, allowed()))
    }

    /// Returns the first method that trains on rows of this format.
    ///
    /// # Errors
    /// The [`WrongFormat`] of the default method if there is none.
    pub fn for_format(format: RowFormat) -> Result<Self, WrongFormat> {
        let fitting = Self::ALL.into_iter().find(|method| method.takes(format).is_ok());
        fitting.ok_or(WrongFormat { method: Self::default(), format })
    }

    /// Returns a list of all methods for messages, each in the form that `form` gives it: "a, b or c".
    #[must_use]
    pub fn one_of(form: impl Fn(Self) -> String) -> String {
        let [first @ .., last] = Self::ALL;
        format!("{} or {}", first.map(&form).join(", "), form(last))
    }

    /// Returns the accepted rows, for help texts.
    #[must_use]
    pub const fn rows(self) -> &'static str {
        match self {
            Self::Supervised => "chats, prompts and completions",
            Self::ContinuedPretraining => "plain texts",
        }
    }

    /// Returns the accepted row formats, for messages.
    const fn wanted(self) -> &'static str {
        match self {
            Self::Supervised => "chat or prompt/completion rows",
            Self::ContinuedPretraining => "text rows",
        }
    }

    /// Checks that the method trains on rows of this format.
    ///
    /// # Errors
    /// [`WrongFormat`] if it does not.
    pub const fn takes(self, format: RowFormat) -> Result<(), WrongFormat> {
        let right = match self {
            Self::Supervised => matches!(format, RowFormat::Chat | RowFormat::Completion),
            Self::ContinuedPretraining => matches!(format, RowFormat::Text),
        };
        if right { Ok(()) } else { Err(WrongFormat { method: self, format }) }
    }

    /// Returns whether several rows are packed into one sequence of at most `max_length` tokens.
    #[must_use]
    pub const fn packs_rows(self) -> bool {
        match self {
            Self::Supervised => false,
            Self::ContinuedPretraining => true,
        }
    }

    /// Returns whether every token of a row is trained; then a request must not set `train_on_prompt` to `false`.
    #[must_use]
    pub const fn trains_every_token(self) -> bool {
        match self {
            Self::Supervised => false,
            Self::ContinuedPretraining => true,
        }
    }

    /// Returns whether rows are rendered with the chat template; if not, a request must not set variables of it.
    #[must_use]
    pub const fn uses_chat_template(self) -> bool {
        match self {
            Self::Supervised => true,
            Self::ContinuedPretraining => false,
        }
    }
}

/// The error for a file whose row format does not match the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("method.type '{}' requires {}, but the file has {format} rows", method.name(), method.wanted())]
pub struct WrongFormat {
    /// The job's method.
    pub method: Method,
    /// The file's row format.
    pub format: RowFormat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_stored_one() {
        for method in Method::ALL {
            assert_eq!(serde_json::to_value(method).unwrap(), method.name());
            assert_eq!(Method::from_name(method.name()), Some(method));
        }
        assert_eq!(Method::from_name("no_such_method"), None);
    }

    #[test]
    fn messages_list_the_methods() {
        let listed = Method::one_of(|method| method.name().to_owned());
        assert_eq!(listed.replace(" or ", ", "), Method::ALL.map(Method::name).join(", "));
        assert_eq!(listed.matches(" or ").count(), 1);
    }

    #[test]
    fn rows_choose_a_method_that_trains_on_them() {
        for (format, method) in [
            (RowFormat::Chat, Method::Supervised),
            (RowFormat::Completion, Method::Supervised),
            (RowFormat::Text, Method::ContinuedPretraining),
        ] {
            assert_eq!(Method::for_format(format), Ok(method));
        }
        let refused = Method::for_format(RowFormat::Preference).unwrap_err().to_string();
        assert_eq!(
            refused,
            "method.type 'supervised' requires chat or prompt/completion rows, but the file has preference rows"
        );
    }
}
