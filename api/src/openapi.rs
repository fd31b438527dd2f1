//! The frame of the OpenAPI document; the operations describe themselves. A test compares `openapi/openapi.json` with
//! it.

use serde_json::{Map, Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document, RefOr, Schema,
        path::{Parameter, ParameterIn},
        schema::{Array, ArrayItems, SchemaType, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::wire::query;

/// The frame: title, security scheme and tags.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Attune",
        description = "Self-hosted fine-tuning with an OpenAI-compatible API: the weights stay with you.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Key),
    // utoipa does not collect the schemas of query parameters.
    components(schemas(
        query::AnyId,
        query::CompletionsGroup,
        query::CostsGroup,
        query::KeyId,
        query::TrainingGroup
    )),
    security(("api_key" = [])),
    tags(
        (name = "Files", description = "Datasets, checked row by row, and other files."),
        (name = "Uploads", description = "Files that are uploaded in parts."),
        (name = "Fine-tuning", description = "Jobs, their events and checkpoints."),
        (name = "Chat", description = "Completions of base models and tuned models."),
        (name = "LoRAX", description = "Generation with LoRAX's client."),
        (name = "Batches", description = "Many requests in one file, processed asynchronously."),
        (name = "Models", description = "The models that a request's `model` may name."),
        (name = "Deployments", description = "Replicas of a base model that only one project uses."),
        (name = "Adapters", description = "Trained adapters, for download and import in PEFT's format."),
        (name = "Base models", description = "Hugging Face folders, uploaded by digest."),
        (name = "Usage", description = "Usage, costs and the budget."),
        (name = "Webhooks", description = "Signed events, sent to your endpoints."),
        (name = "Organization", description = "Projects, users, API keys, the audit log and the status."),
        (name = "Installation", description = "Organizations; for keys with the scope `installation`."),
        (name = "Platform", description = "The state of the API."),
    ),
)]
pub struct Doc;

struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key, `sk-attune-…`, or a token of a configured issuer."))
            .build();
        document.components.get_or_insert_default().add_security_scheme("api_key", SecurityScheme::Http(bearer));
    }
}

/// Sets in the schemas of all query strings the pattern that [`crate::http::pagination::Params`] enforces.
pub fn say_what_no_query_holds(document: &mut Document) {
    let items = document.paths.paths.values_mut();
    let operations = items.flat_map(|item| [&mut item.get, &mut item.post, &mut item.put, &mut item.delete]);
    let parameters = operations.flatten().flat_map(|operation| operation.parameters.iter_mut().flatten());
    for parameter in parameters {
        if let RefOr::T(Parameter { parameter_in: ParameterIn::Query, schema: Some(schema), .. }) = parameter {
            say_no_nul(schema);
        }
    }
}

fn say_no_nul(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Array(Array { items: ArrayItems::RefOrSchema(items), .. })) => say_no_nul(items),
        RefOr::T(Schema::Object(text)) if text.schema_type == SchemaType::Type(Type::String) => {
            text.pattern.get_or_insert_with(|| r"^[^\u0000]*$".into());
        }
        _ => {}
    }
}

/// Returns the JSON schema of a job's file: the body of `create_job` and all schemas that it references.
///
/// # Errors
/// The document cannot be serialized as JSON.
pub fn job_schema(document: &Document) -> serde_json::Result<Value> {
    let mut all = serde_json::to_value(document)?["components"]["schemas"].take();
    let mut wanted = vec!["NewJob".to_owned()];
    let mut definitions = Map::new();
    while let Some(name) = wanted.pop() {
        let mut schema = all[&name].take();
        if !definitions.contains_key(&name) {
            point_to_definitions(&mut schema, &mut wanted);
            definitions.insert(name, schema);
        }
    }
    for field in ["training_file", "validation_file"] {
        let text = "The ID of a file, or a local path, whose file is uploaded first.";
        definitions["NewJob"]["properties"][field]["description"] = text.into();
    }
    definitions.sort_keys();
    Ok(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A fine-tuning job of Attune",
        "description": "The input of `attune jobs create -f`, as YAML or JSON.",
        "$ref": "#/$defs/NewJob",
        "$defs": definitions,
    }))
}

/// Changes references into the document to references into the schema, and collects the names that they refer to.
fn point_to_definitions(schema: &mut Value, wanted: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/components/schemas/").map(str::to_owned)
            {
                *reference = format!("#/$defs/{name}");
                wanted.push(name);
            }
            map.values_mut().for_each(|value| point_to_definitions(value, wanted));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| point_to_definitions(value, wanted)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::router;

    /// `UPDATE=1 cargo test -p attune-api openapi` rewrites the files.
    #[test]
    fn the_committed_document_is_the_one_that_the_code_gives() {
        let document = router::document();
        let job = serde_json::to_string_pretty(&job_schema(&document).unwrap()).unwrap();
        for (name, now) in [("openapi.json", document.to_pretty_json().unwrap()), ("job.schema.json", job)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi").join(name);
            if option_env_update() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, format!("{now}\n")).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(committed == format!("{now}\n"), "openapi/{name} is stale: run the test again with UPDATE=1");
        }
    }

    #[test]
    fn the_schema_of_a_job_is_complete() {
        let schema = job_schema(&router::document()).unwrap();
        let text = schema.to_string();
        assert!(!text.contains("#/components/") && text.contains("\"$ref\":\"#/$defs/TrainerFields\""), "{text}");
        assert_eq!(schema["$defs"]["NewJob"]["additionalProperties"], false);
        assert_eq!(schema["$defs"]["AdapterFields"]["additionalProperties"], false);
    }

    #[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
    fn option_env_update() -> bool {
        std::env::var_os("UPDATE").is_some()
    }
}
