#!/usr/bin/env python3
"""Runs the peer (peer_peft.py) and Attune one after the other, over and over on the same machine, and compares them.

Prints a table of all runs, then a figure a line as JSON: {"figure": ..., "value": ..., "bar": ...}, with "at_most": true where
lower is better. Of the rounds of a run the best one counts, for both alike: what else the machine does can only slow a run.

Only the standard library. scripts/bench-train sets everything up and calls this.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import make_document_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "examples/quickstart/train.jsonl"
SEQUENCES, LENGTH, ROWS = 4, 256, 8


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer-python", required=True, help="a Python that has the peer's packages")
    p.add_argument("--folder", required=True, help="the base model, a Hugging Face folder")
    p.add_argument("--examples", required=True, type=pathlib.Path, help="the folder of bench_train and bench_rows")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--steps", type=int, default=6, help="steps of each run; the first is not counted")
    p.add_argument("--only", default="", help="only runs whose name contains this; then there are no figures")
    return p.parse_args()


def runs(a, scratch):
    """Name to (command, environment), the peer's next to ours. The last finds the packed base that those before it kept."""
    free = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "OMP_WAIT_POLICY")}
    itself = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    # As attune-trainer, and bench_rows, set it for themselves: see node/src/threads.rs.
    ours = itself | {"OMP_WAIT_POLICY": "passive", "MALLOC_MMAP_THRESHOLD_": "4294967296",
                     "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_ARENA_MAX": "1", "GOMP_SPINCOUNT": "3000"}
    steps = ["--steps", str(a.steps)]
    peer = [a.peer_python, str(ROOT / "bench/peer_peft.py"), "--model", a.folder, *steps]
    shape = ["--batch", str(SEQUENCES), "--seq", str(LENGTH)]
    rows = ["--data", str(DATA), "--batch", str(ROWS)]
    train = [str(a.examples / "bench_train"), "random", a.folder, "--sequences", str(SEQUENCES), "--length", str(LENGTH), *steps]
    document = scratch / "document.jsonl"
    few = ["--steps", str(min(a.steps, make_document_rows.write(document) // ROWS))]
    data, about = rows_of(a, scratch, DATA), rows_of(a, scratch, document)
    return {
        "matmul": ([str(a.examples / "bench_train"), "matmul"], ours),
        "peer": (peer + shape, free),
        "attune": (train, ours),
        "peer, checkpointing": (peer + shape + ["--checkpointing", "1"], free),
        "attune, checkpointing": ([*train, "--checkpointing"], ours),
        "attune, two at once": ([*train, "--micro", "2"], ours),
        "attune, one at once": ([*train, "--micro", "1"], ours),
        "peer, rows": (peer + rows, free),
        "attune, rows": (data + steps, itself),
        "attune, shared prefixes": (data + steps + ["--share-prefixes"], itself),
        "peer, document": (peer + ["--data", str(document), "--batch", str(ROWS), *few], free),
        "attune, document": (about + few + ["--share-prefixes"], itself),
        "peer, rows, checkpointing": (peer + rows + ["--checkpointing", "1"], free),
        "attune, to first step": (data + ["--steps", "0"], itself),
    }


def rows_of(a, scratch, data):
    """Our run over a file of rows, in the order in which the peer shuffles them."""
    order = list(range(len(data.read_text().splitlines())))
    random.Random(0).shuffle(order)
    path = scratch / f"{data.stem}.order"
    path.write_text(" ".join(map(str, order)))
    return [str(a.examples / "bench_rows"), a.folder, str(data), "--batch", str(ROWS), "--order", str(path),
            "--cache", str(scratch / "base.packed")]


def run(name, command, environment):
    start = time.time()
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        sys.exit(f"{name} failed (exit status {done.returncode}): {' '.join(command)}\n{done.stderr[-2000:]}")
    result = json.loads(lines[-1])
    print(f"  {name:26} {time.time() - start:6.1f} s  {shown(result)}", flush=True)
    return result


def shown(result):
    names = {"gflop_per_s": "GFLOP/s of libtorch", "chosen_gflop_per_s": "GFLOP/s of the library we take",
             "tokens_per_s": "tokens/s", "rows_per_s": "rows/s", "peak_rss_mb": "MB", "seconds_to_first_step": "s to first step"}
    known = ((result.get(key), unit) for key, unit in names.items())
    return "  ".join(f"{value:.1f} {unit}" for value, unit in known if value is not None)


def best(results):
    """Of each number the best of the rounds."""
    lower = {"peak_rss_mb", "seconds_to_first_step", "step_s"}
    out = dict(results[0])
    for key, value in out.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            out[key] = (min if key in lower else max)(result[key] for result in results)
    return out


def figures(got):
    peer, ours = got["peer"], got["attune"]
    peer_kept, ours_kept = got["peer, checkpointing"], got["attune, checkpointing"]
    plans = [got[name] for name in ("attune", "attune, checkpointing", "attune, two at once", "attune, one at once")]
    fitting = [plan["tokens_per_s"] for plan in plans if plan["peak_rss_mb"] <= peer_kept["peak_rss_mb"]]
    rows = got["peer, rows"]["rows_per_s"]
    rate = 4 * ours["matmul_weights"] * ours["tokens_per_s"] / 1e9
    return [
        ("train_tokens_per_s_ratio", ours["tokens_per_s"] / peer["tokens_per_s"], 1.2, False),
        ("train_tokens_per_s_ratio_checkpointing", ours_kept["tokens_per_s"] / peer_kept["tokens_per_s"], 1.2, False),
        ("train_tokens_per_s_ratio_free_plan", max(fitting, default=0.0) / peer_kept["tokens_per_s"], 1.6, False),
        ("train_rows_per_s_ratio_packed", got["attune, rows"]["rows_per_s"] / rows, 1.6, False),
        ("train_rows_per_s_ratio_shared_prefixes", got["attune, shared prefixes"]["rows_per_s"] / rows, 3.0, False),
        ("train_rows_per_s_ratio_shared_document", got["attune, document"]["rows_per_s"] / got["peer, document"]["rows_per_s"], 3.0, False),
        ("peak_rss_ratio", ours["peak_rss_mb"] / peer["peak_rss_mb"], 0.3, True),
        ("peak_rss_ratio_checkpointing", ours_kept["peak_rss_mb"] / peer_kept["peak_rss_mb"], 0.3, True),
        ("matmul_rate_share", rate / got["matmul"]["gflop_per_s"], 0.68, False),
        ("seconds_to_first_step", got["attune, to first step"]["seconds_to_first_step"], 3.0, True),
    ]


def limit(got):
    """What the matmuls of the shared rows would let through at the machine's rate, if there were nothing but them."""
    flop, rate = got["attune, shared prefixes"]["gflop_per_row"], got["matmul"]["chosen_gflop_per_s"]
    print(f"shared prefixes: {flop:.1f} GFLOP of matmuls a row; at {rate:.0f} GFLOP/s and with nothing else to do, {rate / flop:.2f} rows/s, "
          f"{rate / flop / got['peer, rows']['rows_per_s']:.2f} times the peer's\n")


def table(got):
    columns = [("tokens_per_s", "tokens/s"), ("rows_per_s", "rows/s"), ("peak_rss_mb", "peak MB")]
    print(f"\n{'best of the rounds':28}" + "".join(f"{title:>12}" for _, title in columns))
    for name, result in got.items():
        cells = [result.get(key) for key, _ in columns]
        if any(cell is not None for cell in cells[:2]):
            print(f"{name:28}" + "".join(f"{'' if cell is None else format(cell, '.1f'):>12}" for cell in cells))
    if "matmul" in got:
        print(f"{'matmul, 2048 x 2048 x 2048':28}{shown(got['matmul'])}")
    print()


def agree(peer, ours):
    """The same rows in the same order under a fresh adapter: the first loss is the same, or they train on other things."""
    off = abs(peer["losses"][0] - ours["losses"][0])
    if off > 0.02:
        sys.exit(f"the peer's first loss is {peer['losses'][0]} and ours {ours['losses'][0]}: they do not train on the same rows")


def main():
    a = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        wanted = {name: what for name, what in runs(a, pathlib.Path(scratch)).items() if a.only in name}
        results = {name: [] for name in wanted}
        for turn in range(a.rounds):
            print(f"round {turn + 1} of {a.rounds}", flush=True)
            for name, (command, environment) in wanted.items():
                results[name].append(run(name, command, environment))
    got = {name: best(all_rounds) for name, all_rounds in results.items()}
    table(got)
    if a.only:
        return
    agree(results["peer, rows"][0], results["attune, rows"][0])
    agree(results["peer, rows"][0], results["attune, shared prefixes"][0])
    agree(results["peer, document"][0], results["attune, document"][0])
    limit(got)
    for name, value, bar, at_most in figures(got):
        print(json.dumps({"figure": name, "value": round(value, 4), "bar": bar} | ({"at_most": True} if at_most else {})))


if __name__ == "__main__":
    main()
