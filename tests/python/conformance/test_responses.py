"""The Responses API, without stored responses."""
import json
import math

import openai
import pydantic
import pytest

from conftest import refused

ASK = "question 5"
WEATHER = {"type": "function", "name": "weather", "description": "The weather", "strict": True, "parameters": {
    "type": "object", "additionalProperties": False, "required": ["city"],
    "properties": {"city": {"enum": ["Oslo", "Rome"]}}}}
TEXT_EVENTS = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
               "response.output_text.delta", "response.output_text.done", "response.content_part.done",
               "response.output_item.done", "response.completed"]
CALL_EVENTS = ["response.created", "response.in_progress", "response.output_item.added",
               "response.function_call_arguments.delta", "response.function_call_arguments.done",
               "response.output_item.done"]


def types(events):
    """Returns the events' types; several deltas in a row are one."""
    found = [event.type for event in events]
    return [kind for i, kind in enumerate(found) if not (kind.endswith(".delta") and i and found[i - 1] == kind)]


def valid(model):
    """Checks that the client's type has the values that its declaration requires, and returns it."""
    type(model).model_validate(model.to_dict(), strict=False)
    return model


def test_a_plain_request_is_answered(client, tuned, answer):
    said = valid(client.responses.create(model=tuned.fine_tuned_model, input=ASK, temperature=0))
    assert said.output_text == answer and said.status == "completed" and said.error is None, said
    assert said.object == "response" and said.model == tuned.fine_tuned_model and said.store is False, said
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens, said.usage
    asked = [{"role": "user", "content": ASK}]
    chat = client.chat.completions.create(model=tuned.fine_tuned_model, messages=asked, temperature=0)
    assert chat.choices[0].message.content == answer
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (said.usage.input_tokens, said.usage.output_tokens)


def test_a_response_comes_as_events(client, tuned, answer):
    events = list(client.responses.create(model=tuned.fine_tuned_model, input=ASK, temperature=0, stream=True))
    assert types(events) == TEXT_EVENTS, types(events)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        valid(event)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer
    assert events[-1].response.output_text == answer and events[-1].response.usage.output_tokens > 0, events[-1]
    with client.responses.stream(model=tuned.fine_tuned_model, input=ASK, temperature=0) as stream:
        assert stream.get_final_response().output_text == answer


def test_a_conversation_is_sent_whole(client, tuned):
    ask = dict(model=tuned.fine_tuned_model, temperature=0, max_output_tokens=20)
    first = client.responses.create(**ask, instructions="Be brief.", input=[{"role": "user", "content": ASK}])
    story = [{"role": "user", "content": [{"type": "input_text", "text": ASK}]}, *first.output,
             {"role": "user", "content": "question 6"}]
    second = valid(client.responses.create(**ask, input=story))
    assert second.usage.input_tokens > first.usage.output_tokens and second.previous_response_id is None, second
    messages = [{"role": "user", "content": ASK}, {"role": "assistant", "content": first.output_text},
                {"role": "user", "content": "question 6"}]
    chat = client.chat.completions.create(model=tuned.fine_tuned_model, messages=messages, temperature=0, max_tokens=20)
    assert chat.choices[0].message.content == second.output_text and chat.usage.prompt_tokens == second.usage.input_tokens


def test_a_function_is_called_and_its_output_is_taken(client):
    ask = dict(model="tiny-tools", tools=[WEATHER], temperature=1.2, max_output_tokens=120)
    said = valid(client.responses.create(**ask, input=ASK, tool_choice="required", parallel_tool_calls=False))
    (call,) = said.output
    assert call.type == "function_call" and call.name == "weather" and call.status == "completed", call
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome"), call
    assert said.tools[0].name == "weather" and said.tool_choice == "required" and not said.parallel_tool_calls, said
    story = [{"role": "user", "content": ASK}, *said.output,
             {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    after = valid(client.responses.create(**{**ask, "max_output_tokens": 5}, input=story))
    assert after.status in ("completed", "incomplete"), after


def test_a_call_comes_as_events(client):
    events = list(client.responses.create(model="tiny-tools", input=ASK, tools=[WEATHER], max_output_tokens=200,
                                          tool_choice={"type": "function", "name": "weather"}, stream=True))
    assert types(events)[:len(CALL_EVENTS)] == CALL_EVENTS, types(events)
    for event in events:
        valid(event)
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"
              and event.output_index == done.output_index]
    assert "".join(deltas) == done.arguments and json.loads(done.arguments)["city"] in ("Oslo", "Rome"), done


def test_a_schema_is_kept_while_decoding(client):
    class Reply(pydantic.BaseModel):
        ok: bool

    said = client.responses.parse(model="tiny", input=ASK, text_format=Reply, max_output_tokens=60)
    assert isinstance(said.output_parsed, Reply), said
    text = {"format": {"type": "json_object"}}
    said = client.responses.create(model="tiny", input=ASK, text=text, temperature=1.5, max_output_tokens=300)
    assert said.text.format.type == "json_object", said.text
    assert said.status == "incomplete" or isinstance(json.loads(said.output_text), dict), said


def test_an_answer_that_is_cut_is_incomplete(client):
    said = valid(client.responses.create(model="tiny", input=ASK, max_output_tokens=3))
    assert said.status == "incomplete" and said.incomplete_details.reason == "max_output_tokens", said
    assert said.usage.output_tokens == 3, said.usage
    events = list(client.responses.create(model="tiny", input=ASK, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete", events[-1]


def test_logprobs_are_probabilities(client, tuned, answer):
    said = valid(client.responses.create(model=tuned.fine_tuned_model, input=ASK, temperature=0, top_logprobs=3,
                                         include=["message.output_text.logprobs"]))
    tokens = said.output[0].content[0].logprobs
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == answer, tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    assert all(sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001 for token in tokens)


def test_labels_are_repeated_and_nothing_is_stored(client):
    raw = client.responses.with_raw_response.create(model="tiny", input=ASK, max_output_tokens=1, metadata={"a": "b"},
                                                    user="ann", store=True, prompt_cache_key="key")
    said = raw.parse()
    assert raw.headers["attune-stored"] == "false" and said.metadata == {"a": "b"} and said.user == "ann", said
    assert said.prompt_cache_key == "key", said
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(said.id)


def test_what_cannot_be_is_refused_by_name(client):
    def ask(**more):
        return lambda: client.responses.create(**{"model": "tiny", "input": ASK, "max_output_tokens": 1, **more})

    bad = openai.BadRequestError
    refused(bad, "previous_response_id", ask(previous_response_id="resp_1"))
    refused(bad, "background", ask(background=True))
    refused(bad, "reasoning", ask(reasoning={"effort": "low"}))
    refused(bad, "tools[0].type", ask(tools=[{"type": "web_search"}]))
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b.png", "detail": "auto"}]}]
    refused(bad, "input[0].content[0].type", ask(input=image))
    refused(bad, "temperature", ask(temperature=3))
    refused(bad, "nonsense", ask(extra_body={"nonsense": 1}))
    refused(bad, "input", ask(input="x" * 5000))
    refused(openai.NotFoundError, "model", ask(model="nobody"))
