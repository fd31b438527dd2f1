"""Requests chat completions and completions with the official `openai` client. Address and key come from the environment.

Usage: inference.py MODEL MODEL_WITH_TOOLS.  Every assertion is on the client's own typed results.
"""
import json
import math
import sys

import jsonschema
import openai
from openai import OpenAI

model, with_tools = sys.argv[1:3]
client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY
ask = dict(model=model, messages=[{"role": "user", "content": "question 5"}], max_tokens=24)


def chat(**more):
    return client.chat.completions.create(**{**ask, **more})


def adds_up(usage):
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def refused(param, call):
    try:
        call()
    except openai.BadRequestError as error:
        assert error.param == param, (error.param, error.message)
        return
    raise AssertionError(f"nothing was refused for {param}")


# Several choices: each has its index, the first equals the only choice of n=1, and a seed repeats them.
one = chat(seed=3)
three, again = (chat(seed=3, n=3) for _ in range(2))
texts = [choice.message.content for choice in three.choices]
assert [choice.index for choice in three.choices] == [0, 1, 2], three
assert texts == [choice.message.content for choice in again.choices], (three, again)
assert texts[0] == one.choices[0].message.content and len(set(texts)) == 3, texts
adds_up(three.usage)
assert three.usage.prompt_tokens == one.usage.prompt_tokens and three.usage.completion_tokens > one.usage.completion_tokens
assert one.system_fingerprint.startswith("fp_"), one

# The chunks of a stream add up to the whole answer.
said, reasons, usage = ["", "", ""], {}, None
for chunk in chat(seed=3, n=3, stream=True, stream_options={"include_usage": True}):
    assert chunk.object == "chat.completion.chunk", chunk
    usage = chunk.usage or usage
    for choice in chunk.choices:
        said[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
assert said == texts and [reasons[i] for i in range(3)] == [c.finish_reason for c in three.choices], (said, reasons)
assert usage == three.usage, usage

# Log-probabilities: for the tokens of the text, the sampled token among the top ones, no sum of probabilities above 1.
scored = chat(temperature=0, logprobs=True, top_logprobs=4).choices[0]
tokens = scored.logprobs.content
assert b"".join(bytes(t.bytes) for t in tokens).decode(errors="replace") == scored.message.content, scored
for token in tokens:
    assert len(token.top_logprobs) == 4 and token.logprob == token.top_logprobs[0].logprob <= 0, token
    assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-9, token
    assert sorted((t.logprob for t in token.top_logprobs), reverse=True) == [t.logprob for t in token.top_logprobs]
streamed = [t for c in chat(temperature=0, logprobs=True, top_logprobs=4, stream=True) if c.choices
            for t in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
assert [t.token for t in streamed] == [t.token for t in tokens], streamed
assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(streamed, tokens)), streamed
assert chat().choices[0].logprobs is None

# Stop strings, biases, penalties.
text = scored.message.content
stop = text[3:5]
cut = chat(temperature=0, stop=[stop]).choices[0]
assert cut.finish_reason == "stop" and cut.message.content == text[:text.index(stop)], (cut, text)
biased = chat(temperature=0, max_tokens=5, logit_bias={"65": 100}).choices[0]  # a byte's token ID is the byte
assert biased.message.content == "AAAAA", biased
worn = chat(temperature=0, max_tokens=12, logit_bias={str(b): 60 for b in b"ABCDEF"}, frequency_penalty=2, seed=1).choices[0]
assert len(set(worn.message.content)) > 1, worn

# Completions of plain text.
plain = client.completions.create(model=model, prompt="tell me", max_tokens=8, temperature=0)
assert plain.object == "text_completion" and plain.usage.completion_tokens <= 8, plain
adds_up(plain.usage)
many = client.completions.create(model=model, prompt=["tell me", list(b"tell me")], max_tokens=8, temperature=0, n=2)
assert [c.index for c in many.choices] == [0, 1, 2, 3] and {c.text for c in many.choices} == {plain.choices[0].text}, many
assert many.usage.prompt_tokens == 2 * plain.usage.prompt_tokens, many
adds_up(many.usage)
echoed = client.completions.create(model=model, prompt="tell me", max_tokens=4, temperature=0, echo=True, logprobs=2)
whole, lists = echoed.choices[0].text, echoed.choices[0].logprobs
assert whole.startswith("tell me") and lists.token_logprobs[0] is None and lists.text_offset[:3] == [0, 1, 2], echoed
assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset), echoed
assert lists.tokens[:7] == list("tell me") and all(p <= 0 for p in lists.token_logprobs[1:]), echoed
scores = client.completions.create(model=model, prompt="tell me", max_tokens=0, echo=True, logprobs=0)
assert scores.choices[0].text == "tell me" and scores.usage.completion_tokens == 0, scores
assert all(abs(a - b) < 1e-4 for a, b in zip(scores.choices[0].logprobs.token_logprobs[1:], lists.token_logprobs[1:7]))


def mean(choice):
    return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)


drawn = dict(model=model, prompt="tell me", max_tokens=6, seed=5, logprobs=0)
all_four = client.completions.create(**drawn, n=4)
best = client.completions.create(**drawn, n=1, best_of=4)
assert best.choices[0].text == max(all_four.choices, key=mean).text and len(best.choices) == 1, (best, all_four)
assert best.usage.completion_tokens == all_four.usage.completion_tokens, best
parts = ["", "", "", ""]
for chunk in client.completions.create(model=model, prompt=["tell me", "say"], max_tokens=8, seed=9, n=2, echo=True, stream=True):
    parts[chunk.choices[0].index] += chunk.choices[0].text
whole = client.completions.create(model=model, prompt=["tell me", "say"], max_tokens=8, seed=9, n=2, echo=True)
assert parts == [choice.text for choice in whole.choices], (parts, whole)

# Response formats: a model with random weights at a high temperature only generates JSON if it is constrained.
person = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "role": {"enum": ["admin", "guest"]}, "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]}},
    "required": ["name", "age", "role", "tags", "home"], "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                        "required": ["zip"], "additionalProperties": False}}}
form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": person}}
hot = dict(max_tokens=400, temperature=1.5)
for seed in range(4):
    for choice in chat(**hot, seed=seed, n=3, response_format=form).choices:
        assert choice.finish_reason == "stop", choice
        jsonschema.validate(json.loads(choice.message.content), person)
streamed = list(chat(**hot, seed=1, response_format=form, stream=True))
jsonschema.validate(json.loads("".join(c.choices[0].delta.content or "" for c in streamed if c.choices)), person)
whole = 0
for choice in chat(**hot, seed=2, n=6, response_format={"type": "json_object"}).choices:
    whole += choice.finish_reason == "stop"
    assert choice.finish_reason != "stop" or isinstance(json.loads(choice.message.content), dict), choice
assert whole, "no answer ended by itself"

# Tools.
tools = [{"type": "function", "function": {"name": name, "description": "Does it.", "parameters": person, "strict": True}}
         for name in ("add", "remove")]


def call(**more):
    return chat(**{**hot, "model": with_tools, "tools": tools, **more})


for seed in range(3):
    for more, names in [(dict(tool_choice="required"), {"add", "remove"}),
                        (dict(tool_choice={"type": "function", "function": {"name": "remove"}}), {"remove"})]:
        choice = call(seed=seed, parallel_tool_calls=False, **more).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        (made,) = choice.message.tool_calls
        assert made.type == "function" and made.id and made.function.name in names, made
        jsonschema.validate(json.loads(made.function.arguments), person)
# The message is sent back unchanged, with the tool's result.
made = call(seed=1, tool_choice="required", parallel_tool_calls=False)
assert call(tool_choice="none", max_tokens=8, messages=[
    *ask["messages"], made.choices[0].message,
    {"role": "tool", "tool_call_id": made.choices[0].message.tool_calls[0].id, "content": "done"}]).choices[0].message.tool_calls is None
# The deltas of a stream add up to the call.
parts = {}
for chunk in call(seed=1, tool_choice="required", parallel_tool_calls=False, stream=True):
    for delta in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
        part = parts.setdefault(delta.index, {"id": delta.id, "name": delta.function.name, "arguments": ""})
        part["arguments"] += delta.function.arguments or ""
    reason = chunk.choices[0].finish_reason if chunk.choices else reason
want = made.choices[0].message.tool_calls[0].function
assert reason == "tool_calls" and [(p["name"], p["arguments"]) for p in parts.values()] == [(want.name, want.arguments)], (parts, want)
assert all(p["id"] for p in parts.values()), parts
# tool_choice auto: text, or valid calls, since the tools are strict.
for seed in range(4):
    message = call(seed=seed, max_tokens=40).choices[0].message
    assert message.content or message.tool_calls, message

refused("suffix", lambda: client.completions.create(model=model, prompt="a", suffix="b"))
refused("best_of", lambda: client.completions.create(model=model, prompt="a", n=3, best_of=2))
refused("prompt", lambda: client.completions.create(model=model, prompt=[999999]))
refused("prompt", lambda: client.completions.create(model=model, prompt="a" * 2000))
refused("logit_bias", lambda: chat(logit_bias={"999999": 1}))
refused("messages", lambda: chat(messages=[{"role": "user", "content": "<|im_end|>"}]))
refused("top_logprobs", lambda: chat(top_logprobs=2))
# A template without tools gets them in the generic format.
switch = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
generic = chat(**hot, seed=3, tool_choice="required", tools=[
    {"type": "function", "function": {"name": "light", "parameters": switch, "strict": True}}]).choices[0]
assert generic.finish_reason == "tool_calls" and len(generic.message.tool_calls) == 1, generic
jsonschema.validate(json.loads(generic.message.tool_calls[0].function.arguments), switch)
# Nothing is stored, and a header reports it.
kept = client.chat.completions.with_raw_response.create(
    **{**ask, "model": model, "max_tokens": 2}, store=True, metadata={"a": "b"}, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
assert kept.headers["attune-stored"] == "false" and kept.parse().choices, kept.headers
refused("chat_template_kwargs", lambda: chat(extra_body={"chat_template_kwargs": {"messages": []}}))
# The prefix of a long prompt is processed once.
long = {"messages": [{"role": "user", "content": "word " * 60}], "max_tokens": 1}
first, second = chat(**long).usage, chat(**long).usage
assert second.prompt_tokens_details.cached_tokens in range(128, second.prompt_tokens), (first, second)
refused("tool_choice", lambda: chat(tool_choice="required"))
refused("response_format", lambda: chat(response_format={"type": "json_schema", "json_schema": {
    "name": "odd", "strict": True, "schema": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "required": ["a"]}}}))
print("inference answers the official client: openai", openai.__version__)
