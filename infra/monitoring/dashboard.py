#!/usr/bin/env python3
"""Writes dashboard.json, the Grafana dashboard of the metrics of docs/METRICS.md.

    infra/monitoring/dashboard.py            rewrite it
    infra/monitoring/dashboard.py --check    only compare it with what would be written

A panel is its title, unit, and pairs of a PromQL expression and a legend. Three panels are one line.
"""

import json
import pathlib
import sys

FILE = pathlib.Path(__file__).with_name("dashboard.json")
RATE = "[$__rate_interval]"


def quantiles(metric, by="", where=""):
    """The median and the 95th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    rate = f"sum by ({labels}) (rate({metric}_bucket{where}{RATE}))"
    return [(f"histogram_quantile({q}, {rate})", f"{name}{legend}") for q, name in [(0.5, "median"), (0.95, "95 %")]]


def total(metric, by, where=""):
    """The rate of a counter, by one label."""
    return [(f"sum by ({by}) (rate({metric}{where}{RATE}))", f"{{{{{by}}}}}")]


ROWS = [
    ("Overview", [
        ("Programs", "short", [("count by (program) (attune_build_info)", "{{program}}")]),
        ("Leading schedulers", "short", [("sum(attune_scheduler_leads)", "leading")]),
        ("Time since the last pass of the reconciler", "s",
         [("time() - max(attune_reconcile_timestamp_seconds)", "reconciler"),
          ("time() - max(attune_gauges_timestamp_seconds)", "gauges over rows"),
          ("time() - max(attune_sweep_timestamp_seconds)", "sweep")]),
    ]),
    ("Queue", [
        ("Waiting jobs by offer", "short",
         [("sum by (provider, offer) (attune_queue_jobs)", "{{provider}} {{offer}}")]),
        ("Waiting jobs by priority", "short", [("sum by (priority) (attune_queue_jobs)", "{{priority}}")]),
        ("Oldest wait", "s", [("max by (priority) (attune_queue_oldest_wait_seconds)", "{{priority}}")]),
        ("Starts", "ops", total("attune_job_starts_total", "outcome")),
        ("Preemptions, rungs of the memory ladder", "ops",
         [(f"sum(rate(attune_preemptions_total{RATE}))", "preemptions"),
          (f"sum by (rung) (rate(attune_memory_rungs_total{RATE}))", "{{rung}}")]),
        ("Planning pass", "s", quantiles("attune_plan_seconds")),
        ("Failed passes", "ops",
         [(f"sum(rate(attune_plan_failures_total{RATE}))", "planning"),
          (f"sum(rate(attune_reconcile_failures_total{RATE}))", "reconciler")]),
        ("Queue messages", "ops", [(f"sum by (queue, outcome) (rate(attune_queue_messages_total{RATE}))", "{{queue}} {{outcome}}")]),
        ("Handling of a queue message", "s", quantiles("attune_queue_message_seconds", "queue")),
        ("Jobs by project", "short", [("sum by (project, state) (attune_project_jobs)", "{{project}} {{state}}")]),
    ]),
    ("Runs", [
        ("Jobs by state", "short", [("sum by (state) (attune_jobs)", "{{state}}")]),
        ("Runs and replicas by state", "short",
         [("sum by (state) (attune_runs)", "runs {{state}}"), ("sum by (state) (attune_replicas)", "replicas {{state}}")]),
        ("Lost runs", "ops", [(f"sum by (cause, job) (rate(attune_runs_lost_total{RATE}))", "{{cause}} → {{job}}")]),
        ("Reserved memory of offers", "percentunit",
         [("sum by (provider, offer) (attune_offer_reserved_bytes) / sum by (provider, offer) (attune_offer_memory_bytes)",
           "{{provider}} {{offer}}")]),
        ("Free slots of offers", "short", [("sum by (provider, offer) (attune_offer_free_slots)", "{{provider}} {{offer}}")]),
        ("Launches", "ops",
         [(f"sum by (provider, program, outcome) (rate(attune_launches_total{RATE}))", "{{provider}} {{program}} {{outcome}}")]),
        ("Reconciler pass", "s", quantiles("attune_reconcile_seconds")),
        ("Sweep", "s", quantiles("attune_sweep_seconds")),
        ("Swept", "ops", total("attune_swept_total", "kind")),
    ]),
    ("Training", [
        ("Tokens", "ops",
         [(f"sum(rate(attune_training_tokens_total{RATE}))", "all"),
          (f"sum(rate(attune_training_trained_tokens_total{RATE}))", "trained")]),
        ("Steps", "ops", [(f"sum(rate(attune_training_steps_total{RATE}))", "steps")]),
        ("Step", "s", quantiles("attune_training_step_seconds", "device")),
        ("Checkpoints, published versions", "ops",
         [(f"sum(rate(attune_checkpoints_total{RATE}))", "checkpoints"),
          (f"sum(rate(attune_adapters_published_total{RATE}))", "versions")]),
        ("Checkpoint bytes", "Bps", [(f"sum(rate(attune_checkpoint_bytes_total{RATE}))", "bytes")]),
        ("Measured / predicted", "none",
         [('histogram_quantile(0.5, sum by (le, device) (rate(attune_memory_ratio_bucket[1d])))', "memory, median {{device}}"),
          ('histogram_quantile(0.95, sum by (le, device) (rate(attune_memory_ratio_bucket[1d])))', "memory, 95 % {{device}}"),
          ('histogram_quantile(0.5, sum by (le, device) (rate(attune_duration_ratio_bucket[1d])))', "duration, median {{device}}")]),
    ]),
    ("Requests", [
        ("Requests by status", "reqps", total("attune_http_requests_total", "status")),
        ("5xx by route", "reqps",
         [(f'sum by (method, route) (rate(attune_http_requests_total{{status="5xx"}}{RATE}))', "{{method}} {{route}}")]),
        ("Time to the response", "s", quantiles("attune_http_request_seconds", "method")),
        ("In flight", "short", [("sum by (instance) (attune_http_requests_in_flight)", "{{instance}}")]),
        ("Refused by rate limits", "reqps", total("attune_http_rate_limited_total", "limit")),
        ("Slowest routes (95 %)", "s",
         [(f"topk(10, histogram_quantile(0.95, sum by (le, method, route) (rate(attune_http_request_seconds_bucket{RATE}))))",
           "{{method}} {{route}}")]),
    ]),
    ("Database, object store, webhooks", [
        ("Database connections in use", "percentunit",
         [('sum by (instance) (attune_db_connections{state="used"}) / sum by (instance) (attune_db_connections_max)',
           "{{instance}}")]),
        ("Wait for a connection", "s", quantiles("attune_db_wait_seconds", "outcome")),
        ("Object store: requests", "reqps",
         [(f"sum by (operation, outcome) (rate(attune_object_requests_total{RATE}))", "{{operation}} {{outcome}}")]),
        ("Object store: time to the response", "s", quantiles("attune_object_request_seconds", "operation")),
        ("Webhook attempts", "ops", total("attune_webhook_attempts_total", "outcome")),
        ("Webhook attempt", "s", quantiles("attune_webhook_attempt_seconds")),
        ("Webhook backlog", "short", [("sum by (state) (attune_webhook_backlog)", "{{state}}")]),
    ]),
    ("Serving", [
        ("Tokens", "ops",
         [(f"sum(rate(attune_generated_tokens_total{RATE}))", "generated"),
          (f"sum(rate(attune_prompt_tokens_total{RATE}))", "prompts")]),
        ("Time to the first token", "s", quantiles("attune_time_to_first_token_seconds")),
        ("Forward pass", "s", quantiles("attune_forward_seconds")),
        ("Sequences in a forward pass", "short", quantiles("attune_batch_size")),
        ("Sequences", "short",
         [("sum by (instance) (attune_sequences_running)", "running {{instance}}"),
          ("sum by (instance) (attune_sequences_waiting)", "waiting {{instance}}")]),
        ("Loaded adapters", "short", [("sum by (instance) (attune_adapters_loaded)", "{{instance}}")]),
        ("Memory in use", "percentunit",
         [("sum by (instance) (attune_adapter_bytes) / sum by (instance) (attune_adapter_bytes_max)", "adapters {{instance}}"),
          ("sum by (instance) (attune_kv_cache_bytes) / sum by (instance) (attune_kv_cache_bytes_max)", "keys and values {{instance}}")]),
    ]),
    ("Processes", [
        ("Processor", "short",
         [(f"rate(process_cpu_seconds_total{RATE}) and on (instance, job) attune_build_info", "{{instance}}")]),
        ("Resident memory", "bytes",
         [("process_resident_memory_bytes and on (instance, job) attune_build_info", "{{instance}}")]),
        ("File descriptors in use", "percentunit",
         [("process_open_fds / process_max_fds and on (instance, job) attune_build_info", "{{instance}}")]),
    ]),
]


def panel(number, title, unit, targets, x, y):
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": 8, "h": 7},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "showPoints": "never"}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": source, "expr": expr, "legendFormat": legend, "range": True}
            for i, (expr, legend) in enumerate(targets)
        ],
    }


def dashboard():
    panels, y, number = [], 0, 0
    for title, row in ROWS:
        number += 1
        panels.append({"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for i, (name, unit, targets) in enumerate(row):
            number += 1
            panels.append(panel(number, name, unit, targets, i % 3 * 8, y + i // 3 * 7))
        y += (len(row) + 2) // 3 * 7
    return {
        "uid": "attune",
        "title": "Attune",
        "tags": ["attune"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def main():
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if sys.argv[1:] == ["--check"]:
        if not FILE.exists() or FILE.read_text() != text:
            sys.exit(f"{FILE} is not what {pathlib.Path(__file__).name} writes: run it")
        return
    FILE.write_text(text)


main()
