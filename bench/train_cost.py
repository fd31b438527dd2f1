#!/usr/bin/env python3
"""How the cost of a training step grows: tokens per second and peak memory over sequence length, batch and rank.

  train_cost.py measure --folder F --examples DIR   every cell in a process of its own, into docs/bench/train.csv
  train_cost.py draw                                docs/train-cost.svg from that file

A cell of more than 16k tokens is left out, and one whose peak, by the line through those measured so far, would be above
8 GB. Only the standard library. scripts/train-cost builds what this runs.
"""
import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CSV, SVG = ROOT / "docs/bench/train.csv", ROOT / "docs/train-cost.svg"
LENGTHS, BATCHES, RANKS = [128, 256, 512, 1024, 2048, 4096], [1, 2, 4, 8, 16], [8, 16, 32, 64, 128]
# As attune-trainer sets them for itself: see node/src/threads.rs.
SETTINGS = {"OMP_WAIT_POLICY": "passive", "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592",
            "MALLOC_ARENA_MAX": "1", "GOMP_SPINCOUNT": "3000"}
RANK, RANKED = 16, [(256, 4), (1024, 4)]  # the rank of the first two columns, and the shapes of the third
MOST_TOKENS, MOST_MB = 16384, 8192
FIELDS = ["length", "batch", "rank", "checkpointing", "tokens_per_s", "step_s", "peak_rss_mb"]


def cells():
    """Small ones first, so that the large ones can be distinguished from them."""
    shapes = {(length, batch, RANK) for length in LENGTHS for batch in BATCHES}
    shapes |= {(length, batch, rank) for length, batch in RANKED for rank in RANKS}
    shapes = sorted((s for s in shapes if s[0] * s[1] <= MOST_TOKENS), key=lambda s: (s[0] * s[1], s))
    return [(*shape, checkpointing) for shape in shapes for checkpointing in (0, 1)]


def predicted_mb(rows, cell):
    """By the line through the smallest and the largest cell of the same kind so far; nothing, where there are no two."""
    like = sorted((r["length"] * r["batch"], r["peak_rss_mb"]) for r in rows if r["checkpointing"] == cell[3])
    if len({tokens for tokens, _ in like}) < 2:
        return 0.0
    (few, low), (many, high) = like[0], like[-1]
    return high + (high - low) / (many - few) * (cell[0] * cell[1] - many)


def measure(a):
    rows = []
    CSV.parent.mkdir(parents=True, exist_ok=True)
    every, start = cells()[: a.first], time.monotonic()
    for number, (length, batch, rank, checkpointing) in enumerate(every, 1):
        name = f"{number:3}/{len(every)}  {length:5} x {batch:<3} rank {rank:<4} {'checkpointing' if checkpointing else 'all kept'}"
        if a.minutes and time.monotonic() - start > 60 * a.minutes:
            print(f"{name}: and all after it are left out, {a.minutes} minutes are over", flush=True)
            return
        expected = predicted_mb(rows, (length, batch, rank, checkpointing))
        if expected > MOST_MB:
            print(f"{name}: left out, it would take {expected:.0f} MB", flush=True)
            continue
        command = [str(a.examples / "bench_train"), "random", a.folder, "--sequences", str(batch), "--length", str(length),
                   "--rank", str(rank), "--steps", "3" if length * batch <= 1024 else "2"]
        command += ["--checkpointing"] if checkpointing else []
        done = subprocess.run(command, env=os.environ | SETTINGS, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{name}: failed (exit status {done.returncode}): {' '.join(command)}")
        got = json.loads(done.stdout.splitlines()[-1])
        shape = {"length": length, "batch": batch, "rank": rank, "checkpointing": checkpointing}
        rows.append(shape | {key: got[key] for key in FIELDS[4:]})
        print(f"{name}: {got['tokens_per_s']:.1f} tokens/s  {got['peak_rss_mb']} MB", flush=True)
        with CSV.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2"]
WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 250, 190, 62, 58, 66, 74
STYLE = """text { font: 12px system-ui, sans-serif; fill: #6e7781 } .title { font-weight: 600 } .small { font-size: 11px }
.axis { stroke: #6e7781; fill: none } .grid { stroke: #8c959f; stroke-opacity: 0.3 }"""  # greys that show on white and on black


def nice_top(largest):
    """Four round steps that reach it."""
    step = 10.0 ** -2
    while True:
        for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5):
            if 4 * factor * step >= largest:
                return 4 * factor * step
        step *= 10


class Panel:
    """One pair of axes: a logarithmic base below, and lines over it."""

    def __init__(self, column, row, title, unit, places, top):
        self.x, self.y = LEFT + column * (WIDTH + GAP_X), TOP + row * (HEIGHT + GAP_Y)
        self.places, self.top, self.parts = places, top, []
        text = lambda x, y, anchor, words, kind="small": self.parts.append(
            f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>')
        text(self.x, self.y - 12, "start", title, "title")
        for part in range(5):
            y = self.y + HEIGHT * (1 - part / 4)
            self.parts.append(f'<path class="grid" d="M{self.x},{y:.1f}h{WIDTH}"/>')
            text(self.x - 6, y + 4, "end", f"{top * part / 4:g}")
        for place in places:
            text(self.at(place, 0)[0], self.y + HEIGHT + 16, "middle", place)
        text(self.x + WIDTH / 2, self.y + HEIGHT + 33, "middle", unit)
        self.parts.append(f'<path class="axis" d="M{self.x},{self.y}v{HEIGHT}h{WIDTH}"/>')

    def at(self, place, value):
        return (self.x + WIDTH * (self.places.index(place) + 0.5) / len(self.places),
                self.y + HEIGHT * (1 - value / self.top))

    def line(self, points, colour, dashed=False):
        if not points:
            return
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for x, y in (self.at(*point) for point in points):
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" fill="{colour}"/>')


def legend(x, y, entries):
    parts = []
    for words, colour, dashed in entries:
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        parts.append(f'<path d="M{x:.0f},{y - 4}h20" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text class="small" x="{x + 25:.0f}" y="{y}">{words}</text>')
        x += 25 + 6.5 * len(words) + 10
    return parts


def draw(_):
    with CSV.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    pick = lambda **wanted: [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    kinds = [("tokens_per_s", 1, "tokens per second"), ("peak_rss_mb", 1024, "peak memory, GB")]
    parts = []
    for line, (field, unit, what) in enumerate(kinds):
        top = nice_top(max(row[field] for row in rows) / unit)
        for column, kind in enumerate(["everything kept", "checkpointing"]):
            panel = Panel(column, line, f"{what}: {kind}", f"tokens of a sequence (rank {RANK})", LENGTHS, top)
            for batch, colour in zip(BATCHES, COLOURS):
                found = sorted((int(row["length"]), row[field] / unit) for row in pick(batch=batch, rank=RANK, checkpointing=column))
                panel.line(found, colour)
            parts += panel.parts
        panel = Panel(2, line, f"{what}: by rank", "rank of the adapter", RANKS, top)
        for (length, batch), colour in zip(RANKED, COLOURS[2::-2]):
            for checkpointing in (0, 1):
                found = pick(length=length, batch=batch, checkpointing=checkpointing)
                panel.line(sorted((int(row["rank"]), row[field] / unit) for row in found), colour, bool(checkpointing))
        parts += panel.parts
    parts += legend(LEFT, 20, [(f"batch {batch}", colour, False) for batch, colour in zip(BATCHES, COLOURS)])
    shapes = [(f"{batch} x {length}", colour) for (length, batch), colour in zip(RANKED, COLOURS[2::-2])]
    right = LEFT + 2 * (WIDTH + GAP_X)
    parts += legend(right, 20, [(words, colour, False) for words, colour in shapes] + [("checkpointing", "#8c959f", True)])
    width, height = LEFT + 3 * WIDTH + 2 * GAP_X + 40, TOP + 2 * HEIGHT + GAP_Y + 44
    title = "Tokens per second and peak memory of a training step over sequence length, batch and rank"
    SVG.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">\n'
                   f"<title>{title}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n")
    print(f"{SVG} from {len(rows)} cells")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = p.add_subparsers(required=True)
    measured = modes.add_parser("measure")
    measured.add_argument("--folder", required=True, help="the base model, a Hugging Face folder")
    measured.add_argument("--examples", required=True, type=pathlib.Path, help="the folder of bench_train")
    measured.add_argument("--first", type=int, help="only so many cells, to try it")
    measured.add_argument("--minutes", type=float, help="begin no cell after so many; small cells come first")
    measured.set_defaults(run=measure)
    modes.add_parser("draw").set_defaults(run=draw)
    a = p.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
