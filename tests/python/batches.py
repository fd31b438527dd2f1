"""A batch with the official client: rows for several models, responses by custom_id, and refused files.

Usage: batches.py ANSWER TUNED_MODEL OTHER_MODEL
"""

import io
import json
import sys
import time

import openai
from openai.types import Batch

answer, tuned, other = sys.argv[1:]
client = openai.OpenAI()


def rows(*requests):
    return "".join(json.dumps(request) + "\n" for request in requests).encode()


def request(custom_id, model, **more):
    messages = [{"role": "user", "content": "question 3"}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 40}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body | more}


def create(content, **more):
    file = client.files.create(file=("requests.jsonl", io.BytesIO(content)), purpose="batch")
    assert file.purpose == "batch"
    more = {"endpoint": "/v1/chat/completions", "completion_window": "24h"} | more
    return client.batches.create(input_file_id=file.id, **more)


def ended(batch):
    assert isinstance(batch, Batch)
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.2)
    raise AssertionError(batch)


def lines(file_id):
    return {row["custom_id"]: row for row in map(json.loads, client.files.content(file_id).text.splitlines())}


many = [request(f"tuned-{i}", tuned) for i in range(5)] + [request(f"other-{i}", other) for i in range(5)]
wrong = [request("nobody", "ft:tiny:default:nobody:00000000"), request("hot", tuned, temperature=9)]
batch = create(rows(*many, *wrong), metadata={"team": "a"})
assert batch.status == "validating" and batch.object == "batch" and batch.metadata == {"team": "a"}, batch
assert batch.request_counts.total == 0
batch = ended(batch)
assert batch.status == "completed", batch
assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (12, 10, 2), batch
assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
output, errors = lines(batch.output_file_id), lines(batch.error_file_id)
assert list(output) == [row["custom_id"] for row in many], "in the order of the input"
for custom_id, row in output.items():
    assert row["error"] is None and row["response"]["status_code"] == 200 and row["response"]["request_id"], row
    said = row["response"]["body"]["choices"][0]["message"]["content"]
    assert (said == answer) == custom_id.startswith("tuned"), row
assert errors["nobody"]["response"]["status_code"] == 404, errors
assert errors["nobody"]["response"]["body"]["error"]["code"] == "model_not_found"
assert errors["hot"]["response"]["status_code"] == 400
assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"
assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"

turn = {"custom_id": "turn", "method": "POST", "url": "/v1/responses"}
turn["body"] = {"model": tuned, "input": "question 3", "temperature": 0, "max_output_tokens": 40}
done = ended(create(rows(turn), endpoint="/v1/responses"))
body = lines(done.output_file_id)["turn"]["response"]["body"]
assert body["object"] == "response" and body["output"][0]["content"][0]["text"] == answer, body

failed = ended(create(rows(request("a", tuned), request("a", tuned)) + b"{\n" + rows(request("b", tuned) | {"url": "/v1/x"})))
assert failed.status == "failed" and failed.output_file_id is None, failed
found = [(error.line, error.code) for error in failed.errors.data]
assert found == [(2, "duplicate_custom_id"), (3, "invalid_json_line"), (4, "mismatched_endpoint")], found

stopped = create(rows(*(request(f"r{i}", tuned) for i in range(2000))))
while client.batches.retrieve(stopped.id).request_counts.completed < 3:
    time.sleep(0.1)
assert client.batches.cancel(stopped.id).status == "cancelling"
stopped = ended(stopped)
assert stopped.status == "cancelled" and stopped.cancelled_at >= stopped.cancelling_at, stopped
assert 3 <= len(lines(stopped.output_file_id)) == stopped.request_counts.completed < 2000
try:
    client.batches.cancel(stopped.id)
    raise AssertionError("an ended batch was cancelled")
except openai.ConflictError as refused:
    assert "cancelled" in refused.message

page = client.batches.list(limit=2)
assert [item.id for item in page.data] == [stopped.id, failed.id] and page.has_more
assert len(list(client.batches.list(limit=1))) == 4
for more, param in [({"endpoint": "/v1/embeddings"}, "endpoint"), ({"completion_window": "1h"}, "completion_window")]:
    asked = {"input_file_id": batch.input_file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    try:
        client.batches.create(**(asked | more))
        raise AssertionError(more)
    except openai.BadRequestError as refused:
        assert refused.param == param, refused
try:
    client.batches.retrieve("batch_" + "0" * 32)
    raise AssertionError("found")
except openai.NotFoundError:
    pass
