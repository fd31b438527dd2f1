"""Batches: rows that are processed asynchronously, each by the model that it names."""
import json

import openai
import pytest

from conftest import until

DONE = ("completed", "failed", "expired", "cancelled")


def row(custom_id, model, **more):
    body = {"model": model, "messages": [{"role": "user", "content": "question 5"}], "temperature": 0, "max_tokens": 40}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {**body, **more}}


def batch(client, rows, **more):
    content = "".join(json.dumps(r) + "\n" for r in rows).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


def test_each_row_is_answered_by_its_model(client, tuned, answer):
    made = batch(client, [row("tuned", tuned.fine_tuned_model), row("base", "tiny"), row("wrong", "nobody")],
                 metadata={"team": "tests"})
    assert made.object == "batch" and made.status in ("validating", "in_progress"), made
    assert made.metadata == {"team": "tests"} and made.endpoint == "/v1/chat/completions", made
    done = until(lambda: client.batches.retrieve(made.id), lambda b: b.status in DONE)
    assert done.status == "completed" and done.completed_at and done.request_counts.total == 3, done
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 1), done
    lines = [json.loads(line) for line in client.files.content(done.output_file_id).read().splitlines()]
    by_id = {line["custom_id"]: line["response"] for line in lines}
    assert by_id["tuned"]["status_code"] == 200, lines
    assert by_id["tuned"]["body"]["choices"][0]["message"]["content"] == answer, lines
    errors = [json.loads(line) for line in client.files.content(done.error_file_id).read().splitlines()]
    assert [e["custom_id"] for e in errors] == ["wrong"], errors
    assert made.id in [b.id for b in client.batches.list(limit=1)]
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_bad_rows_fail_the_batch_by_line(client):
    made = batch(client, [row("one", "tiny"), row("one", "tiny")])
    done = until(lambda: client.batches.retrieve(made.id), lambda b: b.status in DONE)
    assert done.status == "failed" and done.errors.data[0].line == 2, done


def test_a_batch_is_cancelled(client):
    made = batch(client, [row(f"row-{n}", "tiny", max_tokens=200, temperature=1) for n in range(200)])
    client.batches.cancel(made.id)
    done = until(lambda: client.batches.retrieve(made.id), lambda b: b.status in DONE)
    assert done.status == "cancelled" and done.cancelled_at, done
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_nobody")
