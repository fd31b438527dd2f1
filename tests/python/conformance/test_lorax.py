"""LoRAX's client, `lorax-client`: its address is `…/lorax/{model}`, and the key is a header."""
import asyncio
import json
import os

import lorax
import pytest
from lorax.errors import NotFoundError, UnknownError, ValidationError
from lorax.types import MergedAdapters

from conftest import ANSWER, ended

URL = os.environ["OPENAI_BASE_URL"].removesuffix("/v1")
HEADERS = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
ASK = "question 5"


@pytest.fixture(scope="module")
def tiny():
    return lorax.Client(f"{URL}/lorax/tiny", headers=HEADERS)


@pytest.fixture(scope="module")
def adapter(client):
    """Returns arguments with which an adapter answers ANSWER; it was trained on plain prompts, over the base as `tiny` is
    served."""
    rows = "".join(json.dumps({"prompt": f"question {i}", "completion": ANSWER}) + "\n" for i in range(24))
    file = client.files.create(file=("plain.jsonl", rows.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 8, "batch_size": 4}}},
        extra_body={"trainer": {"learning_rate": 0.01}, "quantization": {"type": "none"}})
    job = ended(client, job.id)
    assert job.status == "succeeded", job
    return dict(prompt=ASK, adapter_id=job.fine_tuned_model, adapter_source="local", max_new_tokens=40)


def test_a_text_is_generated_as_in_completions(client, tiny):
    said = tiny.generate(ASK, max_new_tokens=8)
    same = client.completions.create(model="tiny", prompt=ASK, max_tokens=8, temperature=0)
    assert said.generated_text == same.choices[0].text, said
    details = said.details
    assert details.prompt_tokens == same.usage.prompt_tokens == len(ASK), details
    assert details.generated_tokens == same.usage.completion_tokens == len(details.tokens), details
    assert details.finish_reason in ("length", "eos_token") and details.seed is None and details.prefill == [], details
    assert all(token.logprob <= 0 for token in details.tokens), details
    assert "".join(token.text for token in details.tokens if not token.special) == said.generated_text, said
    assert tiny.generate(ASK, max_new_tokens=8, details=False).details is None


def test_an_adapter_answers_over_its_base(client, tiny, adapter):
    said = tiny.generate(**adapter)
    same = client.completions.create(model=adapter["adapter_id"], prompt=ASK, temperature=0, max_tokens=40)
    assert said.generated_text == same.choices[0].text == ANSWER, said
    assert said.details.finish_reason == "eos_token" and same.choices[0].finish_reason == "stop", said
    assert tiny.generate(ASK, max_new_tokens=40).generated_text != said.generated_text
    own = lorax.Client(f"{URL}/lorax/{adapter['adapter_id']}", headers=HEADERS)
    assert own.generate(ASK, max_new_tokens=40).generated_text == ANSWER, "a tuned model in the path"


def test_adapters_are_merged(tiny, adapter):
    ask = {key: value for key, value in adapter.items() if key != "adapter_id"}
    for strategy, weights in (("linear", [0.5, 0.5]), ("ties", [1.0, 1.0]), ("dare_linear", [0.5, 0.5]),
                              ("dare_ties", [1.0, 1.0])):
        # An adapter that is merged with itself is itself.
        merged = MergedAdapters(ids=[adapter["adapter_id"]] * 2, weights=weights, merge_strategy=strategy, density=1.0,
                                majority_sign_method="total")
        assert tiny.generate(**ask, merged_adapters=merged).generated_text == ANSWER, strategy
    pruned = MergedAdapters(ids=[adapter["adapter_id"]] * 2, weights=[1.0, 1.0], merge_strategy="ties", density=0.5)
    chunks = list(tiny.generate_stream(**ask, merged_adapters=pruned))
    assert chunks[-1].generated_text == tiny.generate(**ask, merged_adapters=pruned).generated_text
    nothing = MergedAdapters(ids=[adapter["adapter_id"]], weights=[0.0], merge_strategy="linear", density=1.0)
    said = tiny.generate(**ask, merged_adapters=nothing).generated_text
    assert said == tiny.generate(ASK, max_new_tokens=40).generated_text, "without its adapters, the base answers"
    with pytest.raises(ValidationError, match="is not an adapter"):
        tiny.generate(**ask, merged_adapters=MergedAdapters(ids=["tiny"], weights=[1.0], density=1.0))


def test_a_text_comes_token_by_token(tiny, adapter):
    said = tiny.generate(**adapter)
    chunks = list(tiny.generate_stream(**adapter))
    assert "".join(chunk.token.text for chunk in chunks if not chunk.token.special) == said.generated_text, chunks
    assert [chunk.token for chunk in chunks] == said.details.tokens, chunks
    assert all(chunk.generated_text is None and chunk.details is None for chunk in chunks[:-1]), chunks
    last = chunks[-1]
    assert last.generated_text == said.generated_text, last
    assert last.details.finish_reason == said.details.finish_reason, last
    assert last.details.generated_tokens == said.details.generated_tokens == len(chunks), last


def test_sampling_has_a_seed(tiny):
    ask = dict(prompt=ASK, do_sample=True, temperature=1.0, top_k=50, top_p=0.9, max_new_tokens=12)
    said = [tiny.generate(**ask, seed=seed) for seed in (3, 3, 4)]
    assert said[0].generated_text == said[1].generated_text != said[2].generated_text, said
    assert [one.details.seed for one in said] == [3, 3, 4], said
    assert tiny.generate(**ask).details.seed is not None
    assert tiny.generate(ASK, repetition_penalty=1.5, max_new_tokens=12).details.seed is None


def test_a_stop_sequence_ends_the_text(tiny, adapter):
    text = tiny.generate(**adapter).generated_text
    stop = text[3:5]
    said = tiny.generate(**adapter, stop_sequences=[stop])
    assert said.generated_text == text[:text.index(stop) + len(stop)], said
    assert said.details.finish_reason == "stop_sequence", said.details


def test_end_tokens_can_be_ignored(tiny, adapter):
    said = tiny.generate(**{**adapter, "max_new_tokens": 60})
    assert said.details.finish_reason == "eos_token" and said.details.tokens[-1].special, said.details
    longer = tiny.generate(**{**adapter, "max_new_tokens": 60}, ignore_eos_token=True)
    assert longer.details.finish_reason == "length" and longer.details.generated_tokens == 60, longer.details


def test_a_prompt_is_truncated_repeated_and_scored(tiny):
    said = tiny.generate("a longer " + ASK, truncate=len(ASK), decoder_input_details=True, max_new_tokens=4)
    assert [token.text for token in said.details.prefill] == list(ASK), said.details
    assert said.details.prefill[0].logprob is None, said.details
    assert all(token.logprob < 0 for token in said.details.prefill[1:]), said.details
    plain = tiny.generate(ASK, max_new_tokens=4).generated_text
    assert said.generated_text == plain, said
    assert tiny.generate(ASK, return_full_text=True, max_new_tokens=4).generated_text == ASK + plain


def test_a_schema_is_kept_while_decoding(tiny):
    schema = {"type": "object", "additionalProperties": False, "required": ["ok"], "properties": {"ok": {"type": "boolean"}}}
    said = tiny.generate(ASK, response_format={"type": "json_object", "schema": schema}, max_new_tokens=60)
    assert isinstance(json.loads(said.generated_text)["ok"], bool), said
    assert said.details.finish_reason == "eos_token", said.details


def test_the_asynchronous_client_is_answered(tiny, adapter):
    client = lorax.AsyncClient(f"{URL}/lorax/tiny", headers=HEADERS)

    async def both():
        streamed = [chunk async for chunk in client.generate_stream(**adapter)]
        return await client.generate(**adapter), streamed

    said, streamed = asyncio.run(both())
    assert said.generated_text == streamed[-1].generated_text == tiny.generate(**adapter).generated_text


def test_what_cannot_be_is_refused_by_name(tiny, adapter):
    merged = MergedAdapters(ids=["a"] * 9, weights=[0.5] * 9, density=0.5)
    for more in (dict(typical_p=0.5), dict(watermark=True), dict(return_k_alternatives=2), dict(api_token="secret"),
                 dict(best_of=2, do_sample=True), dict(adapter_id="a", adapter_source="hub"),
                 dict(merged_adapters=merged), dict(max_new_tokens=0), dict(temperature=3)):
        with pytest.raises(ValidationError, match=f"parameters.{list(more)[-1 if 'adapter_source' in more else 0]}"):
            tiny.generate(ASK, **more)
    with pytest.raises(ValidationError, match="another base"):
        lorax.Client(f"{URL}/lorax/tiny-tools", headers=HEADERS).generate(**adapter)
    with pytest.raises(NotFoundError, match="nobody"):
        tiny.generate(ASK, adapter_id="nobody")
    with pytest.raises(UnknownError, match="401"):
        lorax.Client(f"{URL}/lorax/tiny", headers={"Authorization": "Bearer sk-attune-nobody"}).generate(ASK)
