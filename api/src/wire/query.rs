//! What the lists in query parameters hold. They are read by [`crate::http::pagination::Params`]; here they are only described.

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

/// One of some words: a type that describes them, and the words themselves, to be checked against.
macro_rules! words {
    ($(#[doc = $doc:literal])+ $name:ident: $($word:literal),+) => {
        $(#[doc = $doc])+
        #[derive(Debug)]
        pub struct $name;

        impl $name {
            /// Those that are allowed.
            pub const WORDS: &[&str] = &[$($word),+];
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let words = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Self::WORDS.to_vec()));
                words.description(Some(concat!($($doc),+).trim())).into()
            }
        }

        impl ToSchema for $name {}
    };
}

words! {
    /// By what the report on completions tells apart.
    CompletionsGroup: "project_id", "api_key_id", "model", "adapter_id"
}

words! {
    /// By what the report on training tells apart.
    TrainingGroup: "project_id", "api_key_id", "model", "fine_tuning_job_id"
}

words! {
    /// By what the report on costs tells apart.
    CostsGroup: "project_id", "line_item"
}

/// An id of any kind.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(pattern = "^[a-z_]+[-_][0-9a-f]{32}$", example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
pub struct AnyId(String);

/// The id of an API key.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(pattern = "^key_[0-9a-f]{32}$", example = "key_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
pub struct KeyId(String);

/// One event of a stream.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ServerSentEvent {
    /// Where the stream goes on behind: `Last-Event-ID`.
    pub id: Option<String>,
    /// Always `message`, which is never sent.
    pub event: Option<String>,
    /// The object, as JSON.
    pub data: String,
}
