//! Requests that exceed a replica's limits, and the errors that they get.

use attune_domain::serve::{Form, GenerateEvent, GenerateRequest, Priority, Prompt};
use serde_json::json;

use crate::{
    door::{app, ask, chat, events, failure, prompt_tokens, text},
    world::World,
};

/// A prompt that cannot fit is refused by its length in bytes, before it is tokenized: quickly, and without memory.
#[tokio::test]
async fn attack_a17_a_prompt_of_megabytes_that_cannot_fit_is_not_tokenised() {
    let world = World::new().await;
    let app = app(&world);
    let began = std::time::Instant::now();
    let long = "abcdefghij".repeat(400_000);
    for prompt in [text(&long), chat(&long)] {
        for _ in 0..4 {
            let (code, message) = failure(&events(&app, &ask(prompt.clone())).await);
            let rendered = matches!(prompt, Prompt::Chat { .. });
            // The rendered template has a limit of its own.
            assert!(code == "context_length_exceeded" || (rendered && code == "invalid_prompt"), "{code}: {message}");
            assert!(
                rendered || message.contains("bytes, and this model and its memory hold at most 1024 tokens"),
                "{message}"
            );
        }
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    // The byte limit does not refuse a prompt that may fit.
    assert_eq!(failure(&events(&app, &ask(text(&long[..16_384]))).await).0, "context_length_exceeded");
    assert_eq!(prompt_tokens(&events(&app, &ask(text(&long[..1000]))).await), 1000);
}

/// A request that exceeds the project's limit of answers is refused immediately; another project's request is accepted.
#[tokio::test]
async fn limit_of_a_project_s_answers_is_reported_at_once() {
    let world = World::new().await;
    let app = app(&world);
    let held = app.admission.enter("p", Priority::Live, 200).unwrap();
    let (code, message) = failure(&events(&app, &GenerateRequest { choices: 57, ..ask(text("a")) }).await);
    assert_eq!(code, "project_busy");
    assert!(message.contains("200 answers") && message.contains("limit of 256"), "{message}");
    let other = GenerateRequest { project: "q".into(), choices: 57, ..ask(text("a")) };
    assert!(matches!(events(&app, &other).await.last(), Some(GenerateEvent::Done { .. })));
    drop(held);
    let again = GenerateRequest { choices: 57, ..ask(text("a")) };
    assert!(matches!(events(&app, &again).await.last(), Some(GenerateEvent::Done { .. })));
}

/// A schema that is too expensive to enforce is refused quickly.
#[tokio::test]
async fn limit_of_grammars_refuses_a_schema_that_grows_without_end() {
    let world = World::new().await;
    let app = app(&world);
    let began = std::time::Instant::now();
    let item = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 90_000}}});
    let wide: serde_json::Map<_, _> = (0..900).map(|at| (format!("p{at}"), item.clone())).collect();
    for schema in [
        json!({"type": "string", "pattern": "^(([a-z]{1,900}){1,900}){1,900}$"}),
        json!({"type": "object", "properties": wide, "additionalProperties": false}),
        json!({"type": "string", "maxLength": 1_000_000_000}),
    ] {
        let mut request = ask(chat("who?"));
        request.form = Form::Schema { schema, strict: true };
        let told = events(&app, &request).await;
        let refused = matches!(&told[..], [GenerateEvent::Failed { code, .. }] if code == "invalid_request");
        assert!(refused || matches!(told.last(), Some(GenerateEvent::Done { .. })), "{told:?}");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
}
