"""Clients that wrap OpenAI's, unmodified, against a running Attune; address and key come from the environment.

`ATTUNE_ROWS` is a JSONL file of chats whose answer is always `ATTUNE_ANSWER`. No client is patched. The models have
random weights, so only what the platform enforces can be checked: schemas and required calls.
"""
import os
import pathlib
import time

import openai
import pydantic
import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else litellm fetches prices from GitHub on import

ROWS = pathlib.Path(os.environ["ATTUNE_ROWS"])
ANSWER = os.environ["ATTUNE_ANSWER"]
BASE_URL, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
ASK = [{"role": "user", "content": "question 5"}]


class Ticket(pydantic.BaseModel):
    """A ticket. Its texts are short, so that an answer of random tokens ends."""

    model_config = {"extra": "forbid"}
    place: str = pydantic.Field(max_length=6)
    count: int = pydantic.Field(ge=0, le=9)
    urgent: bool


@pytest.fixture(scope="session")
def tuned():
    """Returns the name of a fine-tuned model that always answers `ATTUNE_ANSWER`."""
    client = openai.OpenAI()
    file = client.files.create(file=ROWS.open("rb"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 4}}},
        extra_body={"trainer": {"learning_rate": 0.01}})
    deadline = time.time() + 180
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
        assert time.time() < deadline, job
        time.sleep(0.2)
    assert job.status == "succeeded", job
    return job.fine_tuned_model
