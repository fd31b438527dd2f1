//! Descriptions of query parameters. [`crate::http::pagination::Params`] parses them; these types are for the OpenAPI
//! document only.

use serde::Serialize;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
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

/// The interval of a report on usage.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Interval {
    /// The start in Unix seconds. The report begins with the bucket that contains it.
    #[param(minimum = 0, maximum = 253402300799.0)]
    pub start_time: i64,
    /// The end in Unix seconds. Defaults to now.
    #[param(minimum = 0, maximum = 253402300799.0)]
    pub end_time: Option<i64>,
    /// The width of a bucket: `1m`, `1h` or `1d` (the default).
    #[param(pattern = "^(1m|1h|1d)$")]
    pub bucket_width: Option<String>,
}

/// The interval of a report on costs.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Days {
    /// The start in Unix seconds. The report begins with the day that contains it.
    #[param(minimum = 0, maximum = 253402300799.0)]
    pub start_time: i64,
    /// The end in Unix seconds. Defaults to now.
    #[param(minimum = 0, maximum = 253402300799.0)]
    pub end_time: Option<i64>,
    /// The width of a bucket. Only `1d` is supported.
    #[param(pattern = "^1d$")]
    pub bucket_width: Option<String>,
}

/// The projects of a report.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfProjects {
    /// Return only usage of these projects. A key has access to its own project only.
    pub project_ids: Option<Vec<String>>,
}

/// The page of a report.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AtPage {
    /// The `next_page` of the previous page.
    #[param(pattern = "^page_[0-9]{1,11}$")]
    pub page: Option<String>,
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
