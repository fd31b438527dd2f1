//! The events of a streamed response.

use serde_json::{Value, json};

use super::*;
use crate::wire::responses::request::NewResponse;

fn stream(with_logprobs: bool) -> ResponseStream {
    let body = json!({"model": "m", "input": "hi", "metadata": {"a": "b"}});
    let request = NewResponse::read(body.as_object().unwrap().clone()).unwrap();
    let heading = Heading {
        id: "chatcmpl-1".into(),
        created: 7,
        model: "m".into(),
        system_fingerprint: "fp_1".into(),
        with_logprobs,
        with_usage: false,
    };
    ResponseStream::new(heading, request.settings)
}

fn piece(text: &str) -> GenerateEvent {
    piece_of(text, text)
}

/// Returns a text with one token, whose own text may be another one.
fn piece_of(text: &str, token: &str) -> GenerateEvent {
    let tokens =
        vec![serve::TokenLogprob { id: 1, special: false, bytes: token.into(), logprob: Some(-0.5), top: vec![] }];
    GenerateEvent::Piece { choice: 0, text: text.into(), tokens }
}

fn called(id: &str) -> GenerateEvent {
    GenerateEvent::ToolCallStart { choice: 0, call: 0, id: id.into(), name: "f".into() }
}

fn arguments(text: &str) -> GenerateEvent {
    GenerateEvent::Arguments { choice: 0, call: 0, text: text.into() }
}

fn finished(finish_reason: FinishReason) -> GenerateEvent {
    GenerateEvent::Finished { choice: 0, finish_reason, stop_string: false, end_tokens: Vec::new() }
}

/// Returns the events of a stream from its beginning to its end, as JSON.
fn all(stream: &mut ResponseStream, events: Vec<GenerateEvent>) -> Vec<Value> {
    let mut all = stream.begin();
    for event in events {
        all.extend(stream.take(event));
    }
    all.extend(stream.end(Usage::new(3, 1, 4), 9));
    all.into_iter().map(|event| serde_json::to_value(event).unwrap()).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[test]
fn a_text_has_openais_events_in_their_order() {
    let events = all(&mut stream(true), vec![piece("a"), piece("b"), finished(FinishReason::Stop)]);
    assert_eq!(
        types(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    assert_eq!(
        (&events[0]["response"]["status"], &events[0]["response"]["output"]),
        (&json!("in_progress"), &json!([]))
    );
    let id = &events[2]["item"]["id"];
    let scored = |token: &str| json!({"token": token, "logprob": -0.5, "bytes": token.as_bytes(), "top_logprobs": []});
    assert_eq!(events[2]["item"]["content"], json!([]));
    assert_eq!(
        events[5],
        json!({"type": "response.output_text.delta", "item_id": id, "output_index": 0, "content_index": 0, "delta": "b",
               "logprobs": [scored("b")], "sequence_number": 5})
    );
    let part = json!({"type": "output_text", "text": "ab", "annotations": [], "logprobs": [scored("a"), scored("b")]});
    let item = json!({"type": "message", "id": id, "status": "completed", "role": "assistant", "content": [part]});
    assert_eq!((&events[6]["text"], &events[7]["part"], &events[8]["item"]), (&json!("ab"), &part, &item));
    let response = &events[9]["response"];
    assert_eq!(
        response["usage"],
        json!({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
               "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7})
    );
    let fields = ["object", "status", "output", "store", "metadata", "created_at", "completed_at", "model"];
    let shown: Vec<&Value> = fields.iter().map(|field| &response[field]).collect();
    assert_eq!(json!(shown), json!(["response", "completed", [item], false, {"a": "b"}, 7, 9, "m"]));
}

#[test]
fn calls_are_items_of_their_own_after_the_text() {
    let mut stream = stream(false);
    let events = vec![
        piece("a"),
        called("call_1"),
        arguments("{\"a\":"),
        arguments("1}"),
        called("call_2"),
        arguments("{}"),
        finished(FinishReason::ToolCalls),
    ];
    let events = all(&mut stream, events);
    assert_eq!(
        types(&events)[5..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let done = &events[11];
    assert_eq!(
        (&done["output_index"], &done["name"], &done["arguments"]),
        (&json!(1), &json!("f"), &json!("{\"a\":1}"))
    );
    let call = &events[12]["item"];
    assert_eq!(
        (&call["type"], &call["call_id"], &call["status"]),
        (&json!("function_call"), &json!("call_1"), &json!("completed"))
    );
    let ModelResponse { output, status, .. } = stream.into_response();
    assert_eq!((output.len(), status), (3, ResponseStatus::Completed));
}

/// Text that may become a call is held back, and its tokens come before it.
#[test]
fn the_tokens_of_text_that_was_held_back_are_those_of_the_text() {
    let tokens = |events: Vec<GenerateEvent>, item: usize| -> Vec<Value> {
        let events = all(&mut stream(true), events);
        let part = &events.last().unwrap()["response"]["output"][item]["content"][0];
        part["logprobs"].as_array().unwrap().iter().map(|token| token["token"].clone()).collect()
    };
    let events = vec![piece_of("", "{"), piece_of("{a", "a"), piece("b"), finished(FinishReason::Stop)];
    assert_eq!(tokens(events, 0), ["{", "a", "b"]);
    let events = vec![
        piece_of("", "{"),
        called("call_1"),
        arguments("{}"),
        piece_of("", "}"),
        piece("c"),
        finished(FinishReason::ToolCalls),
    ];
    assert_eq!(tokens(events, 1), ["c"]);
}

#[test]
fn an_answer_that_was_cut_is_incomplete() {
    let events = all(&mut stream(false), vec![piece("a"), finished(FinishReason::Length)]);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    assert_eq!(last["response"]["completed_at"], json!(null));
}

#[test]
fn an_empty_answer_is_an_empty_message() {
    let events = all(&mut stream(false), vec![finished(FinishReason::Stop)]);
    assert_eq!(events.last().unwrap()["response"]["output"][0]["content"][0]["text"], "");
}

#[test]
fn a_stream_that_breaks_ends_with_the_error() {
    let mut stream = stream(false);
    stream.begin();
    stream.take(piece("a"));
    let error = InferenceError::ReplicaUnavailable { message: "The replica ended.".into(), retry_after_seconds: 1 };
    let events = stream.fail(&error);
    assert_eq!(events.len(), 1);
    let event = serde_json::to_value(&events[0]).unwrap();
    assert_eq!((&event["type"], &event["sequence_number"]), (&json!("response.failed"), &json!(5)));
    assert_eq!(event["response"]["status"], "failed");
    assert_eq!(event["response"]["error"], json!({"code": "server_error", "message": "The replica ended."}));
}
