#!/usr/bin/env python3
"""Runs Attune's training at two commits in turn on the same machine, and compares their speed and memory.

Prints a table of all runs, then a figure a line as JSON: the second commit's best round over the first's. Rounds alternate,
and the bar of each figure is the spread of a commit's own rounds: a difference within it is noise.

Only the standard library. scripts/bench-against sets everything up and calls this.
"""
import argparse
import json
import pathlib
import tempfile

import compare

RUNS = ["attune", "attune, checkpointing", "attune, rows", "attune, shared prefixes", "attune, document"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", required=True, help="the base model, a Hugging Face folder")
    p.add_argument("--before", required=True, type=pathlib.Path, help="where the first commit's bench_train and bench_rows lie")
    p.add_argument("--after", required=True, type=pathlib.Path, help="the same of the second commit")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=6, help="steps of each run; the first is not counted")
    return p.parse_args()


def measured(a, examples):
    """The runs of one commit, with a folder of their own for what they write."""
    scratch = tempfile.TemporaryDirectory()
    options = argparse.Namespace(**vars(a), examples=examples, peer_python="")
    wanted = compare.runs(options, pathlib.Path(scratch.name))
    return scratch, {name: wanted[name] for name in RUNS}


def rate(result):
    return result.get("tokens_per_s") or result["rows_per_s"]


def peak(result):
    return result["peak_rss_mb"]


def noise(value, *sides):
    """The larger spread of a commit's own rounds, as a share; 2 % at least."""
    return max(0.02, *(1 - min(map(value, side)) / max(map(value, side)) for side in sides))


def figure(name, value, bar, at_most=False):
    print(json.dumps({"figure": name, "value": round(value, 4), "bar": round(bar, 4)} | ({"at_most": True} if at_most else {})))


def main():
    a = arguments()
    sides = {side: measured(a, folder.resolve()) for side, folder in (("before", a.before), ("after", a.after))}
    results = {side: {name: [] for name in RUNS} for side in sides}
    for turn in range(a.rounds):
        print(f"round {turn + 1} of {a.rounds}", flush=True)
        for name in RUNS:
            for side, (_, runs) in sides.items():
                results[side][name].append(compare.run(f"{name}, {side}", *runs[name]))
    print()
    for name in RUNS:
        before, after = (results[side][name] for side in ("before", "after"))
        if before[0]["losses"] != after[0]["losses"]:
            print(f"{name}: the losses differ: {before[0]['losses'][:3]} before, {after[0]['losses'][:3]} after")
        slug = name.replace(",", "").replace(" ", "_")
        speed = max(map(rate, after)) / max(map(rate, before))
        figure(f"{slug}_speed_ratio", speed, 1 - noise(rate, before, after))
        memory = min(map(peak, after)) / min(map(peak, before))
        figure(f"{slug}_peak_rss_ratio", memory, 1 + noise(peak, before, after), at_most=True)


if __name__ == "__main__":
    main()
