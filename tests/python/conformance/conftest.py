"""The official Python client against a running Attune; address and key come from the environment.

`ATTUNE_ROWS` is a JSONL file of chats whose answer is always `ATTUNE_ANSWER`. Every assertion is on the client's own
typed results: a value that does not match its type is an error even if it looks right.
"""
import os
import pathlib
import time

import openai
import pytest

ROWS = pathlib.Path(os.environ["ATTUNE_ROWS"])
ANSWER = os.environ["ATTUNE_ANSWER"]
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="session")
def client():
    # No retries: a request that fails once has failed.
    return openai.OpenAI(max_retries=0)


@pytest.fixture(scope="session")
def rows():
    return ROWS


@pytest.fixture(scope="session")
def answer():
    return ANSWER


@pytest.fixture(scope="session")
def training_file(client):
    return client.files.create(file=ROWS.open("rb"), purpose="fine-tune")


def until(what, wanted, seconds=180):
    """Calls `what()` until `wanted` returns true for its result, and returns the result."""
    deadline = time.time() + seconds
    while not wanted(found := what()):
        assert time.time() < deadline, found
        time.sleep(0.2)
    return found


def ended(client, job_id):
    return until(lambda: client.fine_tuning.jobs.retrieve(job_id), lambda job: job.status in ENDED)


@pytest.fixture(scope="session")
def tuned(client, training_file):
    """Returns a job that has succeeded; its model always answers ANSWER."""
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file.id, validation_file=training_file.id, seed=7, suffix="client",
        metadata={"team": "tests"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 4}}},
        extra_body={"trainer": {"learning_rate": 0.01}})
    job = ended(client, job.id)
    assert job.status == "succeeded", job
    return job


def refused(kind, param, call):
    """Checks that the call is refused with an error of this kind that names `param`; returns its message."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.param == param, (caught.value.param, caught.value.message)
    return caught.value.message
