#!/usr/bin/env python3
"""docs/memory.svg from docs/bench/memory.csv: the predicted peak memory of each job of the memory report over the measured.

The families that the constants of the estimate were not fitted on are marked. Only the standard library. scripts/memory-report
writes the table and runs this.
"""
import csv
import math
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CSV, SVG = ROOT / "docs/bench/memory.csv", ROOT / "docs/memory.svg"
PLACES = [128, 256, 512, 1024, 2048, 4096]
SIDE, LEFT, TOP, RIGHT, BOTTOM = 420, 64, 64, 28, 52
FITTED, HELD_OUT, GREY = "#4c78a8", "#f58518", "#8c959f"
BAND = 0.12  # the bar of the 95th percentile
STYLE = """text { font: 12px system-ui, sans-serif; fill: #6e7781 } .title { font-weight: 600 } .small { font-size: 11px }
.axis { stroke: #6e7781; fill: none } .grid { stroke: #8c959f; stroke-opacity: 0.3 }"""  # greys that show on white and on black


def main():
    with CSV.open() as file:
        rows = list(csv.DictReader(file))
    points = [(float(row["measured_mib"]), float(row["predicted_mib"]), row["held_out"] == "true") for row in rows]
    most = max(max(point[:2]) for point in points)
    places = [place for place in PLACES if place / 2 < most]
    low, high = math.log(places[0]), math.log(places[-1])
    x = lambda mib: LEFT + SIDE * (math.log(mib) - low) / (high - low)
    y = lambda mib: TOP + SIDE * (1 - (math.log(mib) - low) / (high - low))
    parts = []
    text = lambda at_x, at_y, anchor, words, kind="small", more="": parts.append(
        f'<text class="{kind}" x="{at_x:.0f}" y="{at_y:.0f}" text-anchor="{anchor}"{more}>{words}</text>')
    for place in places:
        parts.append(f'<path class="grid" d="M{LEFT},{y(place):.1f}h{SIDE}M{x(place):.1f},{TOP}v{SIDE}"/>')
        text(LEFT - 6, y(place) + 4, "end", place)
        text(x(place), TOP + SIDE + 16, "middle", place)
    parts.append(f'<path class="axis" d="M{LEFT},{TOP}v{SIDE}h{SIDE}"/>')
    text(LEFT + SIDE / 2, TOP + SIDE + 36, "middle", "measured peak, MiB")
    middle = TOP + SIDE / 2
    text(16, middle, "middle", "predicted peak, MiB", more=f' transform="rotate(-90 16 {middle:.0f})"')
    first, last = places[0], places[-1]
    parts.append(f'<path d="M{x(first):.1f},{y(first):.1f}L{x(last):.1f},{y(last):.1f}" stroke="{GREY}"/>')
    for share in (1 + BAND, 1 / (1 + BAND)):
        ends = [(max(first, first / share), max(first, first * share)), (min(last, last / share), min(last, last * share))]
        path = "L".join(f"{x(measured):.1f},{y(predicted):.1f}" for measured, predicted in ends)
        parts.append(f'<path d="M{path}" stroke="{GREY}" stroke-dasharray="5 3"/>')
    for measured, predicted, held_out in sorted(points, key=lambda point: point[2]):
        colour = HELD_OUT if held_out else FITTED
        parts.append(f'<circle cx="{x(measured):.1f}" cy="{y(predicted):.1f}" r="3.2" fill="{colour}" fill-opacity="0.8"/>')
    text(LEFT, 20, "start", "Predicted over measured peak memory of a training", "title")
    at = LEFT
    held_out = sum(point[2] for point in points)
    for words, colour in [(f"fitted families ({len(points) - held_out})", FITTED), (f"held-out families ({held_out})", HELD_OUT)]:
        parts.append(f'<circle cx="{at + 4}" cy="38" r="3.2" fill="{colour}"/>')
        text(at + 13, 42, "start", words)
        at += 160
    parts.append(f'<path d="M{at},38h20" stroke="{GREY}" stroke-dasharray="5 3"/>')
    text(at + 25, 42, "start", f"±{BAND:.0%}")
    width, height = LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM
    title = "Predicted over measured peak memory of each job of the memory report"
    SVG.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">\n'
                   f"<title>{title}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n")
    print(f"{SVG} from {len(points)} jobs")


if __name__ == "__main__":
    main()
