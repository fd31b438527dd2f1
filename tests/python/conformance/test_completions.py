"""Text completions."""
import openai
import pytest

from conftest import refused


def test_a_text_is_completed(client):
    said = client.completions.create(model="tiny", prompt="once", max_tokens=6, temperature=0)
    assert said.object == "text_completion" and said.choices[0].index == 0, said
    assert said.choices[0].finish_reason in ("stop", "length") and said.usage.completion_tokens <= 6, said
    chunks = client.completions.create(model="tiny", prompt="once", max_tokens=6, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == said.choices[0].text


def test_prompts_and_answers_are_numbered(client):
    said = client.completions.create(model="tiny", prompt=["one", "two"], n=2, max_tokens=5, temperature=1, seed=2)
    assert [c.index for c in said.choices] == [0, 1, 2, 3], said
    assert len({c.text for c in said.choices}) > 1, said


def test_echo_and_logprobs(client):
    said = client.completions.create(model="tiny", prompt="once", max_tokens=4, temperature=0, echo=True, logprobs=2)
    choice = said.choices[0]
    assert choice.text.startswith("once"), choice
    # A token that is not a whole character is written as its bytes.
    assert "".join(choice.logprobs.tokens).startswith("once") and choice.logprobs.text_offset[3] == 3, choice
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.text_offset[0] == 0, choice
    assert all(p <= 0 for p in choice.logprobs.token_logprobs[1:]), choice
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs[1:]), choice


def test_what_cannot_be_is_refused_by_name(client):
    for param, wrong in [("nonsense", {"extra_body": {"nonsense": 1}}), ("max_tokens", {"max_tokens": -1}),
                         ("suffix", {"suffix": "end"}), ("best_of", {"n": 3, "best_of": 2})]:
        refused(openai.BadRequestError, param,
                lambda: client.completions.create(**{"model": "tiny", "prompt": "once", **wrong}))
