"""Generated requests against every operation of the OpenAPI document, with schemathesis: all its checks, all its phases.

Address and key come from the environment, as for the official client. Prints each figure as a line of JSON; exits
with 1 if a check failed. ATTUNE_FUZZ_SECONDS is the time budget, ATTUNE_FUZZ_SEED makes a run repeatable.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import openai

URL, KEY = os.environ["OPENAI_BASE_URL"].removesuffix("/v1"), os.environ["OPENAI_API_KEY"]
SECONDS = int(os.environ.get("ATTUNE_FUZZ_SECONDS", "420"))
SEED = os.environ.get("ATTUNE_FUZZ_SEED", "1")
CASES = 10_000

# Operations with rules that a schema cannot express, which are refused with 400: rows inside a file, rules between
# fields, limits that depend on the base model. For all others, a request that matches the schema must not get a 400.
RULES_BEYOND_THE_SCHEMA = [
    "create_file", "create_upload", "create_upload_part", "complete_upload", "create_job", "estimate_job", "preview_file",
    "report_file", "create_chat_completion", "create_completion", "create_response", "create_base_model", "put_blob", "find_blob",
    "create_batch", "import_adapter", "set_adapter_alias", "start_adapter_canary", "start_adapter_shadow", "create_webhook_endpoint", "update_webhook_endpoint",
    "list_webhook_deliveries", "create_project", "create_user", "create_project_api_key", "set_budget", "update_job",
    # An ended object cannot be stopped; a base model cannot be deleted.
    "cancel_job", "pause_job", "resume_job", "cancel_batch", "cancel_upload", "delete_model",
    # A stream has no limit; the maximum number of buckets depends on their width; a permission's project must exist.
    "list_job_events", "usage_completions", "usage_training", "create_checkpoint_permissions",
    "list_checkpoint_permissions", "create_project_user",
    # The issuer of the owner must be configured.
    "create_organization",
    # LoRAX's clients get 422 for an invalid request.
    "lorax", "lorax_generate", "lorax_generate_stream",
    # An entry's ID names a cloud; its GPU must be known, and its prices plausible for that GPU.
    "set_catalogue_entry",
]

client = openai.OpenAI(max_retries=0)


def make(path, **body):
    return client.post(path, body=body, cast_to=object)


def upload():
    return client.files.create(file=open(os.environ["ATTUNE_ROWS"], "rb"), purpose="fine-tune").id


def train(file):
    """Runs a job to its end, so that its adapter and its checkpoint exist."""
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file, hyperparameters={"n_epochs": 2, "batch_size": 4},
                                         extra_body={"trainer": {"checkpoint_every_steps": 2}})
    deadline = time.time() + 120
    while client.fine_tuning.jobs.retrieve(job.id).status != "succeeded":
        assert time.time() < deadline, client.fine_tuning.jobs.retrieve(job.id)
        time.sleep(0.5)
    return client.fine_tuning.jobs.retrieve(job.id)


def pending_upload():
    return make("/uploads", filename="a.jsonl", purpose="fine-tune", bytes=9, mime_type="text/plain")["id"]


def batch():
    rows = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
                       "body": {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}})
    file = client.files.create(file=("rows.jsonl", rows.encode()), purpose="batch").id
    return client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h").id


def endpoint():
    return make("/webhook_endpoints", url="http://127.0.0.1:9/nobody-listens")["id"]


def user(name):
    return make("/organization/users", issuer=os.environ["ATTUNE_ISSUER"], subject=name, role="viewer")["id"]


def member(project, name):
    who = user(name)
    make(f"/organization/projects/{project}/users", user_id=who, role="viewer")
    return who


def world():
    """Creates one lasting object of each kind, by the name of its path parameter, and a separate object for each
    operation that deletes or ends one, so that requests in random order do not remove the objects of the others."""
    file = upload()
    job = train(file)
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    # The requests use the API key of the first project, which must exist until the end.
    fuzzed, archived = (make("/organization/projects", name=name)["id"] for name in ("fuzzed", "archived"))
    key = lambda: make(f"/organization/projects/{fuzzed}/api_keys", name="fuzzed")["id"]
    permit = lambda: make(f"/fine_tuning/checkpoints/{checkpoint}/permissions", project_ids=[fuzzed])["data"][0]["id"]
    make_alias = lambda name: client.put(f"/adapters/{job.fine_tuned_model}/aliases/{name}", cast_to=object,
                                         body={"version": job.fine_tuned_model})
    hook = endpoint()
    make_alias("prod"), make_alias("old")
    kept = {"file_id": file, "job_id": job.id, "model": "tiny", "name": "tiny", "project_id": fuzzed, "adapter": job.fine_tuned_model,
            "alias": "prod", "file": "adapter_config.json", "checkpoint": checkpoint, "upload_id": pending_upload(),
            "batch_id": batch(), "webhook_endpoint_id": hook, "key_id": key(), "user_id": member(fuzzed, "stays"),
            "delivery_id": make(f"/webhook_endpoints/{hook}/test")["id"]}
    ended = {"delete_file": {"file_id": upload()}, "delete_adapter_alias": {"alias": "old"},
             "delete_webhook_endpoint": {"webhook_endpoint_id": endpoint()}, "delete_project_api_key": {"key_id": key()},
             "delete_project_user": {"user_id": member(fuzzed, "leaves the project")}, "delete_user": {"user_id": user("leaves")},
             "delete_checkpoint_permission": {"permission_id": permit()}, "archive_project": {"project_id": archived},
             "cancel_upload": {"upload_id": pending_upload()}, "complete_upload": {"upload_id": pending_upload()},
             "cancel_batch": {"batch_id": batch()}}
    return kept, ended


def configuration(known_operations, kept, ended):
    """Returns schemathesis.toml: existing IDs for path parameters, and the operations that may return 400."""
    lines = ["[parameters]", *(f'"path.{name}" = "{value}"' for name, value in kept.items())]
    for operation in sorted({*RULES_BEYOND_THE_SCHEMA, *ended} & known_operations):
        lines += ["[[operations]]", f'include-operation-id = "{operation}"']
        if operation in ended:
            ids = ", ".join(f'"path.{name}" = "{value}"' for name, value in ended[operation].items())
            lines += [f"parameters = {{ {ids} }}"]
        if operation in RULES_BEYOND_THE_SCHEMA:
            lines += ["checks.positive_data_acceptance.expected-statuses = [200, 201, 400, 401, 403, 404, 409, 413, 415, 422, 429, 503]"]
    return "\n".join(lines) + "\n"


def operations():
    import urllib.request
    document = json.load(urllib.request.urlopen(f"{URL}/openapi.json"))
    return {o["operationId"] for path in document["paths"].values() for o in path.values() if isinstance(o, dict) and "operationId" in o}


def fuzz(phases, seconds, configured):
    """Runs schemathesis and returns its report."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "schemathesis.toml").write_text(configured)
        st = pathlib.Path(sys.executable).with_name("st")
        ran = subprocess.run(
            [st, "--config-file", folder / "schemathesis.toml", "run", f"{URL}/openapi.json", "-H", f"Authorization: Bearer {KEY}",
             "--phases", phases, "--checks", "all", "--continue-on-failure", "--no-shrink", "-n", "60", "--seed", SEED,
             "--max-time", str(seconds), "--request-timeout", "20",
             "--report", "json", "--report-json-path", folder / "report.json"],
            cwd=folder, text=True, capture_output=True)
        if ran.returncode:
            print(ran.stdout[-60_000:], ran.stderr[-4000:])
        return json.loads((folder / "report.json").read_text())


def count(reports, *codes):
    return sum(failure["count"] for report in reports for failure in report["failures"] if not codes or failure["code"] in codes)


kept, ended = world()
# A chain of requests uses the IDs that its own requests returned; only archiving does not use the fuzzed project.
chains = {name: kept[name] for name in ("file_id", "job_id", "model", "name", "project_id")}
known = operations()
reports = [fuzz("examples,coverage,fuzzing", SECONDS * 3 // 4, configuration(known, kept, ended)),
           fuzz("stateful", SECONDS // 4, configuration(known, chains, {"archive_project": ended["archive_project"]}))]
cases = sum(report["test_cases"]["generated"] for report in reports)
failures = {"server_errors": count(reports, "ST101"), "ignored_auth": count(reports, "ST401", "ST402")}
failures["other_failures"] = count(reports) - sum(failures.values())
print(json.dumps({"figure": "schemathesis_cases", "value": cases, "bar": CASES}))
for name, value in failures.items():
    print(json.dumps({"figure": f"schemathesis_{name}", "value": value, "bar": 0, "at_most": True}))
sys.exit(1 if count(reports) or cases < CASES else 0)
