"""langchain-openai: a chat model in LangChain's interfaces. It reads address and key from the environment."""
import asyncio

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from conftest import ANSWER, Ticket

HOT = dict(max_tokens=200, temperature=1.2, seed=1, max_retries=0)


def chat(model, **more):
    return ChatOpenAI(model=model, **{**HOT, **more})


@tool
def weather(city: str) -> str:
    """Says the weather."""
    return f"rain in {city}"


def test_a_chat_is_answered(tuned):
    said = chat(tuned, temperature=0, max_tokens=40).invoke([SystemMessage("Be brief."), HumanMessage("question 5")])
    assert isinstance(said, AIMessage) and said.content == ANSWER, said
    assert said.usage_metadata["total_tokens"] == said.usage_metadata["input_tokens"] + said.usage_metadata["output_tokens"]
    assert said.response_metadata["finish_reason"] == "stop", said


def test_a_chat_comes_in_pieces(tuned):
    pieces = list(chat(tuned, temperature=0, max_tokens=40, stream_usage=True).stream("question 5"))
    assert "".join(p.content for p in pieces) == ANSWER and len(pieces) > 2, pieces
    assert sum(pieces[1:], pieces[0]).usage_metadata["output_tokens"] > 0, pieces


def test_several_chats_are_answered_together(tuned):
    said = asyncio.run(chat(tuned, temperature=0, max_tokens=40).abatch(["question 1", "question 2", "question 3"]))
    assert [one.content for one in said] == [ANSWER] * 3, said


def test_a_prompt_and_a_model_are_a_chain(tuned):
    chain = ChatPromptTemplate.from_messages([("user", "question {n}")]) | chat(tuned, temperature=0, max_tokens=40)
    assert chain.invoke({"n": 5}).content == ANSWER


def test_a_pydantic_model_is_the_answer_s_form():
    ticket = chat("tiny").with_structured_output(Ticket, method="json_schema").invoke("question 5")
    assert isinstance(ticket, Ticket) and 0 <= ticket.count <= 9, ticket


def test_a_tool_is_the_answer_s_form():
    ticket = chat("tiny-tools").with_structured_output(Ticket, method="function_calling").invoke("question 5")
    assert isinstance(ticket, Ticket), ticket


def test_a_bound_tool_is_called():
    said = chat("tiny-tools", max_tokens=900).bind_tools([Ticket], tool_choice="required", strict=True).invoke("question 5")
    assert said.tool_calls and said.tool_calls[0]["name"] == "Ticket" and set(said.tool_calls[0]["args"]) == {"place", "count", "urgent"}, said


def test_a_tool_s_answer_is_taken():
    call = {"name": "weather", "args": {"city": "Oslo"}, "id": "call_1", "type": "tool_call"}
    story = [HumanMessage("Oslo?"), AIMessage("", tool_calls=[call]), ToolMessage(weather.invoke({"city": "Oslo"}), tool_call_id="call_1")]
    said = chat("tiny-tools", max_tokens=5).bind_tools([weather]).invoke(story)
    assert said.response_metadata["finish_reason"] in ("stop", "length", "tool_calls"), said


def test_a_call_comes_in_pieces():
    bound = chat("tiny-tools", max_tokens=900).bind_tools([Ticket], tool_choice="Ticket", strict=True)
    pieces = list(bound.stream("question 5"))
    whole = sum(pieces[1:], pieces[0])
    assert [call["name"] for call in whole.tool_calls] == ["Ticket"] and whole.tool_calls[0]["args"]["count"] in range(10), whole


def test_a_text_is_completed():
    assert OpenAI(model="tiny", max_tokens=6, temperature=0, max_retries=0).invoke("once")


def test_a_model_that_does_not_exist_is_openai_s_error():
    with pytest.raises(openai.NotFoundError):
        chat("nobody").invoke("question 5")


def test_embeddings_do_not_exist():
    with pytest.raises(openai.NotFoundError):
        OpenAIEmbeddings(model="tiny", check_embedding_ctx_length=False, max_retries=0).embed_query("a")
