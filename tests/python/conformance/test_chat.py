"""Chat completions."""
import json
import math
import re

import openai
import pydantic
import pytest

from conftest import refused

ASK = [{"role": "user", "content": "question 5"}]


def test_an_answer_and_the_same_in_pieces(client, tuned, answer):
    ask = dict(model=tuned.fine_tuned_model, messages=ASK, temperature=0, max_completion_tokens=40)
    said = client.chat.completions.create(**ask)
    assert said.object == "chat.completion" and said.model == tuned.fine_tuned_model, said
    assert said.choices[0].message.content == answer and said.choices[0].finish_reason == "stop", said
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens, said
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert {c.id for c in chunks} == {chunks[0].id} and all(c.object == "chat.completion.chunk" for c in chunks)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer, chunks
    assert chunks[-1].usage.total_tokens == said.usage.total_tokens and not chunks[-1].choices, chunks[-1]
    assert not any(c.usage for c in client.chat.completions.create(**ask, stream=True))


def test_a_checkpoint_answers_too(client, tuned):
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(tuned.id):
        name = checkpoint.fine_tuned_model_checkpoint
        said = client.chat.completions.create(model=name, messages=ASK, temperature=0, max_completion_tokens=8)
        assert said.model == name and said.usage.completion_tokens > 0, said


def test_stop_length_and_seed(client, tuned, answer):
    ask = dict(model=tuned.fine_tuned_model, messages=ASK, temperature=0, max_tokens=40)
    stopped = client.chat.completions.create(**ask, stop=["ok"]).choices[0]
    assert stopped.message.content == answer.split("ok")[0] and stopped.finish_reason == "stop", stopped
    short = client.chat.completions.create(**{**ask, "max_tokens": 3})
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3, short
    hot = {**ask, "model": "tiny", "temperature": 1}
    said = [client.chat.completions.create(**hot, seed=seed).choices[0].message.content for seed in (3, 3, 4)]
    assert said[0] == said[1] != said[2], said


def test_n_answers_differ_and_are_counted(client):
    said = client.chat.completions.create(model="tiny", messages=ASK, n=3, seed=5, temperature=1, max_tokens=12)
    assert [c.index for c in said.choices] == [0, 1, 2], said
    assert len({c.message.content for c in said.choices}) == 3, said
    assert said.usage.completion_tokens <= 36, said.usage
    chunks = client.chat.completions.create(model="tiny", messages=ASK, n=3, seed=5, temperature=1, max_tokens=12,
                                            stream=True)
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == [c.message.content for c in said.choices], streamed


def test_further_sampling_parameters_travel_in_extra_body(client):
    ask = dict(model="tiny", messages=ASK, temperature=1.5, max_tokens=12, logprobs=True)
    greedy = client.chat.completions.create(**{**ask, "temperature": 0}).choices[0].message.content
    for only_one in ({"top_k": 1}, {"min_p": 1}):
        said = client.chat.completions.create(**ask, seed=3, extra_body=only_one).choices[0].message.content
        assert said == greedy, (only_one, said, greedy)
    # A large penalty excludes the tokens that the answer already has.
    worn = client.chat.completions.create(**{**ask, "temperature": 0}, extra_body={"repetition_penalty": 100})
    tokens = [token.bytes for token in worn.choices[0].logprobs.content]
    assert len({tuple(token) for token in tokens}) == len(tokens) > 1, worn
    for more, param in [({"top_k": -2}, "top_k"), ({"min_p": 2}, "min_p"),
                        ({"repetition_penalty": 0}, "repetition_penalty")]:
        refused(openai.BadRequestError, param, lambda: client.chat.completions.create(**ask, extra_body=more))


def test_an_expression_a_grammar_and_a_choice_are_kept_while_decoding(client):
    ask = dict(model="tiny", messages=ASK, temperature=1.5, max_tokens=40)
    date, sums = "[0-9]{4}/[0-9]{2}", 'start: N (" + " N)~1..2\nN: /[0-9]{1,2}/'
    for seed in range(3):
        for more, pattern in [
            ({"response_format": {"type": "grammar", "syntax": "regex", "definition": date}}, date),
            ({"response_format": {"type": "grammar", "syntax": "lark", "definition": sums}}, r"\d+( \+ \d+){1,2}"),
            ({"extra_body": {"structured_outputs": {"choice": ["left", "right"]}}}, "left|right"),
            ({"extra_body": {"structured_outputs": {"grammar": sums}}}, r"\d+( \+ \d+){1,2}"),
        ]:
            choice = client.chat.completions.create(**ask, seed=seed, **more).choices[0]
            assert choice.finish_reason == "stop" and re.fullmatch(pattern, choice.message.content), (more, choice)
    text = client.completions.create(model="tiny", prompt="a", temperature=1.5, max_tokens=40,
                                     extra_body={"structured_outputs": {"regex": date}}).choices[0].text
    assert re.fullmatch(date, text), text
    wrong = {"type": "grammar", "syntax": "lark", "definition": "start: word"}
    why = refused(openai.BadRequestError, "response_format",
                  lambda: client.chat.completions.create(**ask, response_format=wrong))
    assert "word" in why, why
    refused(openai.BadRequestError, "structured_outputs", lambda: client.chat.completions.create(
        **ask, extra_body={"structured_outputs": {"regex": "(a"}}))


def test_logprobs_are_probabilities(client, tuned, answer):
    ask = dict(model=tuned.fine_tuned_model, messages=ASK, temperature=0, max_tokens=40, logprobs=True, top_logprobs=3)
    tokens = client.chat.completions.create(**ask).choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode().startswith(answer), tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0, token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-6), token
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-6, token
    streamed = [t for c in client.chat.completions.create(**ask, stream=True) if c.choices and c.choices[0].logprobs
                for t in c.choices[0].logprobs.content or []]
    assert [t.token for t in streamed] == [t.token for t in tokens]


def test_a_schema_is_kept_while_decoding(client):
    schema = {"type": "object", "additionalProperties": False, "required": ["name", "age", "tags"], "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "b"]}}}}
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    for seed in range(3):  # an untrained model at a high temperature generates any allowed token
        said = client.chat.completions.create(model="tiny", messages=ASK, seed=seed, temperature=1.5, max_tokens=200,
                                              response_format=form).choices[0]
        assert said.finish_reason == "stop", said
        value = json.loads(said.message.content)
        assert set(value) == {"name", "age", "tags"} and 0 <= value["age"] <= 99 and len(value["tags"]) <= 2, value

    class Step(pydantic.BaseModel):
        done: bool

    parsed = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Step, temperature=1.5,
                                           max_tokens=60).choices[0].message.parsed
    assert isinstance(parsed.done, bool)


def test_a_json_object_is_one(client):
    ask = [{"role": "system", "content": "Answer in JSON."}, *ASK]
    said = client.chat.completions.create(model="tiny", messages=ask, temperature=0, max_tokens=300,
                                          response_format={"type": "json_object"}).choices[0]
    if said.finish_reason == "stop":
        assert isinstance(json.loads(said.message.content), dict), said
    else:
        assert said.message.content.lstrip().startswith("{"), said


def test_what_cannot_be_is_refused_by_name(client):
    ask = dict(model="tiny", messages=ASK)
    for param, wrong in [
        ("nonsense", {"extra_body": {"nonsense": 1}}),
        ("temperature", {"temperature": 3}),
        ("top_p", {"top_p": 2}),
        ("n", {"n": 0}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("messages", {"messages": []}),
    ]:
        refused(openai.BadRequestError, param, lambda: client.chat.completions.create(**{**ask, **wrong}))
    refused(openai.NotFoundError, "model", lambda: client.chat.completions.create(model="nobody", messages=ASK))
