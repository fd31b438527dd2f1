"""Generated requests against every operation of the OpenAPI document, with schemathesis: all its checks, all its phases.

Address and key come from the environment, as for the official client. Prints one JSON object a line for each figure;
leaves with 1 when a check failed. ATTUNE_FUZZ_SECONDS is the budget, ATTUNE_FUZZ_SEED makes a run repeatable.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import openai

URL, KEY = os.environ["OPENAI_BASE_URL"].removesuffix("/v1"), os.environ["OPENAI_API_KEY"]
SECONDS = int(os.environ.get("ATTUNE_FUZZ_SECONDS", "420"))
SEED = os.environ.get("ATTUNE_FUZZ_SEED", "1")
CASES = 10_000

# What a schema cannot say, and is refused with 400: rows inside a file, rules between fields, limits that depend on the
# base model. Everywhere else a request that fits the schema must not be a 400.
RULES_BEYOND_THE_SCHEMA = [
    "create_file", "create_upload", "create_upload_part", "complete_upload", "create_job", "estimate_job", "preview_file",
    "report_file", "create_chat_completion", "create_completion", "create_base_model", "put_blob", "find_blob",
    "create_batch", "import_adapter", "set_adapter_alias", "create_webhook_endpoint", "update_webhook_endpoint",
    "list_webhook_deliveries", "create_project", "create_user", "create_project_api_key", "set_budget", "update_job",
    # What has ended cannot be stopped; a base model cannot be deleted.
    "cancel_job", "pause_job", "resume_job", "cancel_batch", "cancel_upload", "delete_model",
    # A stream has no limit; the most buckets depend on their width; a permission names a project that must be there.
    "list_job_events", "usage_completions", "usage_training", "create_checkpoint_permissions",
    "list_checkpoint_permissions", "create_project_user",
    # For JSON Schema, 945.0 is an integer.
    "rotate_webhook_secret",
]

client = openai.OpenAI(max_retries=0)
file = client.files.create(file=open(os.environ["ATTUNE_ROWS"], "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1})

# The requests come from the key of the first project: it must live to the end.
fuzzed, archived = (client.post("/organization/projects", body={"name": name}, cast_to=object)["id"] for name in ("fuzzed", "archived"))


def configuration(known_operations):
    """schemathesis.toml: ids that exist for path parameters, and where a 400 is right."""
    ids = {"file_id": file.id, "job_id": job.id, "model": "tiny", "name": "tiny", "project_id": fuzzed}
    lines = ["[parameters]", *(f'"path.{name}" = "{value}"' for name, value in ids.items())]
    lines += ["[[operations]]", 'include-operation-id = "archive_project"', f'parameters = {{ "path.project_id" = "{archived}" }}']
    for operation in RULES_BEYOND_THE_SCHEMA:
        if operation in known_operations:
            lines += ["[[operations]]", f'include-operation-id = "{operation}"',
                      "checks.positive_data_acceptance.expected-statuses = [200, 201, 400, 401, 403, 404, 409, 413, 415, 429, 503]"]
    return "\n".join(lines) + "\n"


def operations():
    import urllib.request
    document = json.load(urllib.request.urlopen(f"{URL}/openapi.json"))
    return {o["operationId"] for path in document["paths"].values() for o in path.values() if isinstance(o, dict) and "operationId" in o}


def count(report, *codes):
    return sum(failure["count"] for failure in report["failures"] if failure["code"] in codes)


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "schemathesis.toml").write_text(configuration(operations()))
    st = pathlib.Path(sys.executable).with_name("st")
    ran = subprocess.run(
        [st, "--config-file", folder / "schemathesis.toml", "run", f"{URL}/openapi.json", "-H", f"Authorization: Bearer {KEY}",
         "--checks", "all", "--continue-on-failure", "--no-shrink", "-n", "60", "--seed", SEED,
         "--max-time", str(SECONDS), "--request-timeout", "20",
         "--report", "json", "--report-json-path", folder / "report.json"],
        cwd=folder, text=True, capture_output=True)
    report = json.loads((folder / "report.json").read_text())

cases = report["test_cases"]["generated"]
failures = {"server_errors": count(report, "ST101"), "ignored_auth": count(report, "ST401", "ST402")}
failures["other_failures"] = sum(f["count"] for f in report["failures"]) - sum(failures.values())
if ran.returncode or cases < CASES:
    print(ran.stdout[-60_000:], ran.stderr[-4000:])
print(json.dumps({"figure": "schemathesis_cases", "value": cases, "bar": CASES}))
for name, value in failures.items():
    print(json.dumps({"figure": f"schemathesis_{name}", "value": value, "bar": 0, "at_most": True}))
sys.exit(1 if ran.returncode or cases < CASES else 0)
