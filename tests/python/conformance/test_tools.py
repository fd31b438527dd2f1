"""Tools, with a model whose template supports them."""
import json

ASK = [{"role": "user", "content": "question 5"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather", "strict": True, "parameters": {
    "type": "object", "additionalProperties": False, "required": ["city"],
    "properties": {"city": {"enum": ["Oslo", "Rome"]}}}}}


def test_a_call_that_must_be_made_is_made(client):
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        said = client.chat.completions.create(model="tiny-tools", messages=ASK, tools=[WEATHER], tool_choice=choice,
                                              temperature=1.2, seed=1, max_tokens=120).choices[0]
        assert said.finish_reason == "tool_calls" and said.message.tool_calls, said
        for call in said.message.tool_calls:
            assert call.type == "function" and call.id and call.function.name == "weather", call
            assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome"), call


def test_a_call_comes_in_pieces(client):
    chunks = list(client.chat.completions.create(model="tiny-tools", messages=ASK, tools=[WEATHER],
                                                 tool_choice="required", seed=1, max_tokens=120, stream=True))
    deltas = [d for c in chunks if c.choices for d in c.choices[0].delta.tool_calls or []]
    first = [d for d in deltas if d.index == 0]
    assert first[0].id and first[0].function.name == "weather", first
    assert json.loads("".join(d.function.arguments or "" for d in first))["city"] in ("Oslo", "Rome"), first
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"


def test_an_answer_to_a_call_is_taken(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    story = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
    said = client.chat.completions.create(model="tiny-tools", messages=story, tools=[WEATHER], max_tokens=5)
    assert said.choices[0].finish_reason in ("stop", "length", "tool_calls"), said


def test_a_template_without_tools_has_the_generic_form(client):
    said = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required", seed=1,
                                          max_tokens=120)
    (call,) = said.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome"), call
