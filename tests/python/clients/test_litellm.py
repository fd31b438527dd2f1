"""litellm: one call for every provider; Attune is an `openai/` one with an address."""
import asyncio
import json

import litellm
import pytest

from conftest import ANSWER, ASK, BASE_URL, KEY, ROWS, Ticket

WHERE = dict(api_base=BASE_URL, api_key=KEY, max_retries=0)
HOT = dict(messages=ASK, max_tokens=200, temperature=1.2, seed=1, **WHERE)
TOOL = {"type": "function", "function": {"name": "ticket", "description": "Writes it.", "strict": True,
                                         "parameters": Ticket.model_json_schema()}}


def test_a_chat_is_answered(tuned):
    said = litellm.completion(model=f"openai/{tuned}", messages=ASK, temperature=0, max_tokens=40, **WHERE)
    assert said.choices[0].message.content == ANSWER and said.choices[0].finish_reason == "stop", said
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens, said.usage


def test_a_chat_comes_in_pieces(tuned):
    chunks = list(litellm.completion(model=f"openai/{tuned}", messages=ASK, temperature=0, max_tokens=40, stream=True,
                                     stream_options={"include_usage": True}, **WHERE))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER, chunks
    whole = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert whole.choices[0].message.content == ANSWER and whole.usage.completion_tokens > 0, whole


def test_an_asynchronous_chat_is_answered(tuned):
    said = asyncio.run(litellm.acompletion(model=f"openai/{tuned}", messages=ASK, temperature=0, max_tokens=40, **WHERE))
    assert said.choices[0].message.content == ANSWER, said


def test_a_pydantic_model_is_the_answer_s_form():
    said = litellm.completion(model="openai/tiny", response_format=Ticket, **HOT)
    assert 0 <= Ticket.model_validate_json(said.choices[0].message.content).count <= 9, said


def test_a_tool_is_called_and_answered():
    said = litellm.completion(model="openai/tiny-tools", tools=[TOOL], tool_choice="required", **HOT).choices[0]
    assert said.finish_reason == "tool_calls", said
    (call, *_) = said.message.tool_calls
    assert call.function.name == "ticket" and Ticket.model_validate_json(call.function.arguments), call
    story = [*ASK, said.message] + [{"role": "tool", "tool_call_id": c.id, "content": "done"} for c in said.message.tool_calls]
    again = litellm.completion(model="openai/tiny-tools", tools=[TOOL], tool_choice="none", **{**HOT, "messages": story})
    assert not again.choices[0].message.tool_calls, again


def test_a_text_is_completed():
    said = litellm.text_completion(model="text-completion-openai/tiny", prompt="once", max_tokens=4, temperature=0, **WHERE)
    assert said.choices[0].text and said.usage.completion_tokens <= 4, said


def test_a_model_that_does_not_exist_is_its_own_error():
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", messages=ASK, **WHERE)


def test_a_foreign_key_is_its_own_error():
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(model="openai/tiny", messages=ASK, **{**WHERE, "api_key": "sk-attune-nobody"})


def test_a_chat_too_long_is_its_own_error():
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="openai/tiny", messages=[{"role": "user", "content": "a" * 3000}], **WHERE)


def test_files_and_jobs_are_made():
    file = litellm.create_file(file=("rows.jsonl", ROWS.read_bytes()), purpose="fine-tune", custom_llm_provider="openai", **WHERE)
    job = litellm.create_fine_tuning_job(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1},
                                         custom_llm_provider="openai", **WHERE)
    assert job.id and job.status == "validating_files", job
    listed = litellm.list_fine_tuning_jobs(limit=10, custom_llm_provider="openai", **WHERE)
    assert job.id in json.dumps([one.id for one in listed]), listed
    gone = litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, custom_llm_provider="openai", **WHERE)
    assert gone.id == job.id, gone


def test_embeddings_do_not_exist():
    with pytest.raises(litellm.NotFoundError):
        litellm.embedding(model="openai/tiny", input=["a"], **WHERE)
