#!/usr/bin/env python3
"""Runs Attune's training at two commits in turn on the same machine, and compares their speed and memory.

Prints a line for each run, then a figure a line as JSON: the second commit's best round over the first's. Rounds alternate,
and the bar of each figure is the spread of a commit's own rounds: a difference within it is noise. Exits with 1 if a figure
is not at its bar, or if the losses of the two differ.

Only the standard library. scripts/bench-against sets everything up and calls this.
"""
import argparse
import pathlib
import sys
import tempfile

import compare

sys.path.insert(0, str(compare.ROOT / "scripts/lib"))
from figures import report

RUNS = ["attune", "attune, checkpointing", "attune, rows", "attune, shared prefixes", "attune, document"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", required=True, help="the base model, a Hugging Face folder")
    p.add_argument("--before", required=True, type=pathlib.Path, help="the folder of the first commit's bench_train and bench_rows")
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
    figures, is_equal = [], True
    for name in RUNS:
        before, after = (results[side][name] for side in ("before", "after"))
        if before[0]["losses"] != after[0]["losses"]:
            is_equal = False
            print(f"{name}: the losses differ: {before[0]['losses'][:3]} before, {after[0]['losses'][:3]} after")
        slug = name.replace(",", "").replace(" ", "_")
        speed = max(map(rate, after)) / max(map(rate, before))
        figures.append((f"{slug}_speed_ratio", round(speed, 4), round(1 - noise(rate, before, after), 4), False))
        memory = min(map(peak, after)) / min(map(peak, before))
        figures.append((f"{slug}_peak_rss_ratio", round(memory, 4), round(1 + noise(peak, before, after), 4), True))
    sys.exit(0 if report(figures) and is_equal else 1)


if __name__ == "__main__":
    main()
