"""instructor: pydantic models as answers, in each of its modes for OpenAI's protocol."""
import asyncio

import instructor
import openai
import pydantic
import pytest

from conftest import ASK, Ticket

HOT = dict(messages=ASK, max_tokens=200, temperature=1.2, seed=1, max_retries=0)


def made(mode, model, **more):
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    return client.chat.completions.create(model=model, response_model=Ticket, **HOT, **more)


def test_a_schema_is_the_answer_s_form():
    ticket = made(instructor.Mode.JSON_SCHEMA, "tiny")
    assert isinstance(ticket, Ticket) and 0 <= ticket.count <= 9, ticket


def test_a_tool_is_the_answer_s_form():
    ticket = made(instructor.Mode.TOOLS, "tiny-tools")
    assert isinstance(ticket, Ticket) and len(ticket.place) <= 6, ticket


def test_a_strict_tool_is_the_answer_s_form():
    ticket = made(instructor.Mode.TOOLS_STRICT, "tiny-tools")
    assert isinstance(ticket, Ticket), ticket


def test_an_answer_comes_with_its_completion():
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    ticket, completion = client.chat.completions.create_with_completion(model="tiny", response_model=Ticket, **HOT)
    assert isinstance(ticket, Ticket) and completion.usage.completion_tokens > 0, completion


def test_an_answer_comes_in_parts():
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    parts = list(client.chat.completions.create_partial(model="tiny", response_model=Ticket, **HOT))
    assert len(parts) > 1 and parts[-1].count in range(10) and parts[-1].urgent in (True, False), parts


def test_an_asynchronous_client_is_answered():
    client = instructor.from_openai(openai.AsyncOpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    ticket = asyncio.run(client.chat.completions.create(model="tiny", response_model=Ticket, **HOT))
    assert isinstance(ticket, Ticket), ticket


def test_an_answer_that_the_model_refuses_is_requested_again():
    class Never(Ticket):
        @pydantic.field_validator("count")
        @classmethod
        def never(cls, value):
            raise ValueError("no count is right")

    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    with pytest.raises(Exception) as failed:
        client.chat.completions.create(model="tiny", response_model=Never, **{**HOT, "max_retries": 2})
    assert "no count is right" in str(failed.value), failed.value
