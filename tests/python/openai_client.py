"""Uses Attune with the official `openai` client, as users' code does. Address and key come from the environment.

Usage: openai_client.py TRAIN.jsonl ANSWER.  Every assertion is on the client's own typed results.
"""
import sys
import time

import openai
from openai import OpenAI

path, answer = sys.argv[1:3]
client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY

file = client.files.create(file=open(path, "rb"), purpose="fine-tune")
assert file.object == "file" and file.purpose == "fine-tune" and file.filename == "train.jsonl", file
assert file.bytes == len(open(path, "rb").read()), file
assert client.files.retrieve(file.id).id == file.id
assert file.id in [f.id for f in client.files.list()]
assert client.files.content(file.id).read() == open(path, "rb").read()

job = client.fine_tuning.jobs.create(
    model="tiny", training_file=file.id, seed=7, suffix="client", metadata={"team": "tests"},
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 4}}},
    extra_body={"trainer": {"learning_rate": 0.01}})
assert job.object == "fine_tuning.job" and job.status == "validating_files" and job.training_file == file.id, job
assert job.hyperparameters.n_epochs == 6 and job.hyperparameters.batch_size == 4, job
assert job.metadata == {"team": "tests"} and job.seed == 7, job
assert job.id in [j.id for j in client.fine_tuning.jobs.list(limit=10)]

deadline = time.time() + 120
while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
    assert time.time() < deadline, job
    time.sleep(0.2)
assert job.status == "succeeded", job
assert job.fine_tuned_model and job.finished_at and job.trained_tokens, job

# Three pages of ten, by the client's auto-pagination.
events = list(client.fine_tuning.jobs.list_events(job.id, limit=10))
assert len({e.id for e in events}) == len(events) > 30, len(events)
assert any(e.type == "metrics" and e.data["train_loss"] > 0 for e in events), events[:3]
checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
assert all(c.fine_tuning_job_id == job.id and c.step_number > 0 for c in checkpoints), checkpoints

assert {"tiny", job.fine_tuned_model} <= {m.id for m in client.models.list()}
assert client.models.retrieve(job.fine_tuned_model).object == "model"

ask = dict(model=job.fine_tuned_model, messages=[{"role": "user", "content": "question 5"}], temperature=0, max_tokens=40)
said = client.chat.completions.create(**ask)
assert said.choices[0].message.content == answer and said.choices[0].finish_reason == "stop", said
assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens, said
streamed = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == answer, streamed
assert streamed[-1].usage.total_tokens == said.usage.total_tokens, streamed[-1]
stopped = client.chat.completions.create(**ask, stop=["ok"])
assert stopped.choices[0].message.content == answer.split("ok")[0], stopped
short = client.chat.completions.create(**{**ask, "max_tokens": 3})
assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3, short
seeded = [client.chat.completions.create(**{**ask, "model": "tiny", "temperature": 1, "seed": 3}).choices[0].message.content
          for _ in range(2)]
assert seeded[0] == seeded[1], seeded


def refused(kind, param, call):
    try:
        call()
    except kind as error:
        assert error.param == param, (error.param, error.message)
        return error.message
    raise AssertionError(f"nothing was refused for {param}")


refused(openai.NotFoundError, "model", lambda: client.chat.completions.create(**{**ask, "model": "nobody"}))
refused(openai.BadRequestError, "nonsense", lambda: client.fine_tuning.jobs.create(
    model="tiny", training_file=file.id, extra_body={"nonsense": 1}))
refused(openai.BadRequestError, "adapter.rank", lambda: client.fine_tuning.jobs.create(
    model="tiny", training_file=file.id, extra_body={"adapter": {"rank": 4096}}))
try:
    OpenAI(api_key="sk-attune-nobody").models.list()
    raise AssertionError("a foreign key was let in")
except openai.AuthenticationError:
    pass
print("the official client is content: openai", openai.__version__)
