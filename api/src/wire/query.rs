//! Schemas of list query parameters. [`crate::http::pagination::Params`] parses the lists; these types only describe
//! them.

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

/// Defines a string enum: a type that describes it in the OpenAPI document, and its values, to check parameters
/// against.
macro_rules! words {
    ($(#[doc = $doc:literal])+ $name:ident: $($word:literal),+) => {
        $(#[doc = $doc])+
        #[derive(Debug)]
        pub struct $name;

        impl $name {
            /// The allowed values.
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
    /// The fields by which the report on completions can be grouped.
    CompletionsGroup: "project_id", "api_key_id", "model", "adapter_id"
}

words! {
    /// The fields by which the report on training can be grouped.
    TrainingGroup: "project_id", "api_key_id", "model", "fine_tuning_job_id"
}

words! {
    /// The fields by which the report on costs can be grouped.
    CostsGroup: "project_id", "line_item"
}

/// An ID of any kind.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(pattern = "^[a-z_]+[-_][0-9a-f]{32}$", example = "file-0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
pub struct AnyId(String);

/// The ID of an API key.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(pattern = "^key_[0-9a-f]{32}$", example = "key_0190c2e17d2f7b3c9d1e5f6a7b8c9d0e")]
pub struct KeyId(String);

/// A server-sent event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ServerSentEvent {
    /// The event's ID: a client resumes the stream after it with `Last-Event-ID`.
    pub id: Option<String>,
    /// The event type, always `message`, the default: the stream omits the field.
    pub event: Option<String>,
    /// The object, as JSON.
    pub data: String,
}
