"""Fine-tuning jobs, their events, checkpoints and result files, and their models."""
import csv
import io

import openai
import pytest

from conftest import ended, refused, until


def test_a_job_is_filled_in_as_it_goes(client, tuned, training_file):
    assert tuned.object == "fine_tuning.job" and tuned.training_file == training_file.id, tuned
    assert tuned.hyperparameters.n_epochs == 6 and tuned.hyperparameters.batch_size == 4, tuned
    assert tuned.method.type == "supervised" and tuned.method.supervised.hyperparameters.n_epochs == 6, tuned
    assert tuned.metadata == {"team": "tests"} and tuned.seed == 7 and tuned.error is None, tuned
    assert tuned.fine_tuned_model.startswith("ft:tiny:") and ":client:" in tuned.fine_tuned_model, tuned
    assert tuned.trained_tokens > 0 and tuned.created_at <= tuned.finished_at, tuned
    assert tuned.organization_id and tuned.model == "tiny" and tuned.integrations in (None, []), tuned


def test_hyperparameters_may_be_left_to_the_platform(client, training_file):
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}}})
    resolved = job.method.supervised.hyperparameters
    assert isinstance(resolved.n_epochs, int) and isinstance(resolved.batch_size, int), job
    assert isinstance(resolved.learning_rate_multiplier, float), job
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert ended(client, cancelled.id).status == "cancelled"


def test_jobs_are_listed_by_page_and_by_metadata(client, tuned, training_file):
    more = [client.fine_tuning.jobs.create(model="tiny", training_file=training_file.id, metadata={"batch": "three"})
            for _ in range(3)]
    for job in more:
        client.fine_tuning.jobs.cancel(job.id)
    found = [job.id for job in client.fine_tuning.jobs.list(limit=2, metadata={"batch": "three"})]
    assert found == [job.id for job in more[::-1]], found
    everything = [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    assert tuned.id in everything and len(everything) == len(set(everything))
    page = client.fine_tuning.jobs.list(limit=1, after=more[-1].id)
    assert page.data[0].id == more[-2].id and page.has_more, page


def test_a_job_pauses_and_resumes(client, training_file):
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file.id, seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 40, "batch_size": 4}}})
    until(lambda: client.fine_tuning.jobs.retrieve(job.id), lambda j: j.status == "running")
    client.fine_tuning.jobs.pause(job.id)
    paused = until(lambda: client.fine_tuning.jobs.retrieve(job.id), lambda j: j.status == "paused")
    assert paused.finished_at is None, paused
    resumed = client.fine_tuning.jobs.resume(job.id)
    assert resumed.status in ("queued", "running", "validating_files"), resumed
    client.fine_tuning.jobs.cancel(job.id)
    assert ended(client, job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.pause(job.id)


def test_events_and_checkpoints_are_paged(client, tuned):
    events = list(client.fine_tuning.jobs.list_events(tuned.id, limit=7))
    assert len({e.id for e in events}) == len(events) > 20, len(events)
    assert all(e.object == "fine_tuning.job.event" and e.level in ("info", "warn", "error") for e in events)
    metrics = [e for e in events if e.type == "metrics"]
    assert metrics and all(e.data["step"] > 0 for e in metrics), metrics[:2]
    assert all(e.data.get("train_loss", 1) > 0 and e.data.get("valid_loss", 1) > 0 for e in metrics), metrics[:2]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(tuned.id, limit=1))
    assert checkpoints and len({c.id for c in checkpoints}) == len(checkpoints), checkpoints
    for checkpoint in checkpoints:
        assert checkpoint.object == "fine_tuning.job.checkpoint" and checkpoint.fine_tuning_job_id == tuned.id
        assert checkpoint.step_number > 0 and checkpoint.metrics.train_loss > 0, checkpoint
        assert checkpoint.fine_tuned_model_checkpoint.endswith(f":ckpt-step-{checkpoint.step_number}"), checkpoint


def test_results_are_a_table_among_the_files(client, tuned):
    job = until(lambda: client.fine_tuning.jobs.retrieve(tuned.id), lambda job: job.result_files, 30)
    (file_id,) = job.result_files
    file = client.files.retrieve(file_id)
    assert file.purpose == "fine-tune-results" and file.filename.endswith(".csv"), file
    table = list(csv.DictReader(io.StringIO(client.files.content(file_id).read().decode())))
    assert [int(row["step"]) for row in table] == list(range(1, len(table) + 1)), table[:3]
    assert all(float(row["train_loss"]) > 0 for row in table), table[:3]
    assert any(row["valid_loss"] for row in table), table[-1]


def test_a_checkpoint_can_be_lent(client, tuned):
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(tuned.id))).fine_tuned_model_checkpoint
    permissions = client.fine_tuning.checkpoints.permissions
    project = tuned.organization_id and until_project(client)
    made = list(permissions.create(checkpoint, project_ids=[project]))
    assert [p.project_id for p in made] == [project] and made[0].object == "checkpoint.permission", made
    assert made[0].id in [p.id for p in permissions.list(checkpoint)]
    gone = permissions.delete(made[0].id, fine_tuned_model_checkpoint=checkpoint)
    assert gone.deleted and gone.id == made[0].id, gone
    assert made[0].id not in [p.id for p in permissions.list(checkpoint)]


def until_project(client):
    """Creates a second project of the organization."""
    body = client.post("/organization/projects", body={"name": "lent-to"}, cast_to=object)
    return body["id"]


def test_models_are_listed_and_a_tuned_one_deleted(client, training_file):
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file.id, hyperparameters={"n_epochs": 1})
    name = ended(client, job.id).fine_tuned_model
    assert {"tiny", name} <= {m.id for m in client.models.list()}
    model = client.models.retrieve(name)
    assert model.object == "model" and model.id == name and model.owned_by and model.created > 0, model
    gone = client.models.delete(name)
    assert gone.deleted and gone.id == name and gone.object == "model", gone
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    refused(openai.NotFoundError, "model", lambda: client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "question 5"}]))


def test_what_cannot_be_is_refused_by_name(client, training_file):
    make = dict(model="tiny", training_file=training_file.id)
    for param, wrong in [
        ("nonsense", {"extra_body": {"nonsense": 1}}),
        ("adapter.rank", {"extra_body": {"adapter": {"rank": 4096}}}),
        ("training_file", {"training_file": "file-nobody"}),
        ("validation_file", {"validation_file": "file-nobody"}),
        ("suffix", {"suffix": "x" * 65}),
    ]:
        refused(openai.BadRequestError, param, lambda: client.fine_tuning.jobs.create(**{**make, **wrong}))
    for method in ("dpo", "reinforcement"):
        refused(openai.BadRequestError, "method.type",
                lambda: client.fine_tuning.jobs.create(**make, method={"type": method}))
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-nobody")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="sk-attune-nobody", max_retries=0).models.list()


def test_an_answer_has_the_request_s_id(client):
    raw = client.models.with_raw_response.list()
    assert raw.headers["x-request-id"] == raw.parse()._request_id
