//! The frame of the OpenAPI document; the operations describe themselves. `openapi/openapi.json` is compared with it.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

/// The frame.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Attune",
        description = "Fine-tuning that speaks the OpenAI protocol and leaves the weights with you.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Key),
    security(("api_key" = [])),
    tags(
        (name = "Files", description = "Datasets, checked row by row, and whatever else is to be kept."),
        (name = "Uploads", description = "Files that come in parts."),
        (name = "Fine-tuning", description = "Jobs, their events and checkpoints."),
        (name = "Chat", description = "Answers of base models and tuned ones."),
        (name = "Models", description = "What may stand in a request's `model`."),
        (name = "Adapters", description = "What a job gave, to be taken home in PEFT's form."),
        (name = "Base models", description = "Hugging Face folders, brought by digest."),
        (name = "Usage", description = "What was used, what it cost, and what may be spent."),
        (name = "Webhooks", description = "Events, signed and sent to where you want to be told of them."),
        (name = "Organization", description = "Projects, people, API keys and the audit log."),
        (name = "Platform", description = "How the api is."),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::router;

    /// `UPDATE=1 cargo test -p attune-api openapi` rewrites the file.
    #[test]
    fn the_committed_document_is_the_one_that_the_code_gives() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/openapi.json");
        let now = router::document().to_pretty_json().unwrap() + "\n";
        if option_env_update() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == now, "openapi/openapi.json is stale: run the test again with UPDATE=1");
    }

    #[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
    fn option_env_update() -> bool {
        std::env::var_os("UPDATE").is_some()
    }
}
