#!/usr/bin/env python3
"""Sends the held-out rows to models through Attune's API and prints how often each is right.

    evaluate.py --rows heldout.jsonl MODEL [MODEL…]        ATTUNE_API_URL and ATTUNE_API_KEY name the platform

For each model: how many answers are a JSON object, how many of the wanted fields are exactly right (an answer that is no
object has none right), and how many records are right as a whole. Greedy, several requests in flight, nothing but
Python's own library. With --strict, the last model must reach the example's bar, or the exit code is 1.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request

BAR = {"valid": 95.0, "exact": 70.0}
IN_FLIGHT = 8
# The longest wanted answer has 45 tokens; a model that does not stop is cut here.
MAX_TOKENS = 72
PATIENCE_S = 600


def ask(model: str, messages: list[dict]) -> str:
    """One answer. Waits while the platform starts a server for the model or is full; any other refusal is an error."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    request = urllib.request.Request(
        os.environ["ATTUNE_API_URL"].rstrip("/") + "/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["ATTUNE_API_KEY"]},
    )
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return json.load(reply)["choices"][0]["message"]["content"] or ""
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if error.code not in (429, 503) or time.monotonic() > deadline:
                raise SystemExit(f"{model}: the API answered {error.code}: {said}") from None
            wait = error.headers.get("Retry-After", "")
            time.sleep(min(int(wait) if wait.isdigit() else 1, 10))
        except (OSError, http.client.HTTPException) as error:
            raise SystemExit(f"{model}: {os.environ['ATTUNE_API_URL']} cannot be reached: {error}") from None


def as_object(answer: str) -> dict | None:
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def same(got: object, want: object) -> bool:
    """Equal and of one type: 1 is not true, and "2" is not 2."""
    return type(got) is type(want) and got == want


def run(model: str, rows: list[list[dict]]) -> dict:
    """All rows through one model, with a line of progress."""
    start, answers = time.monotonic(), [""] * len(rows)
    tty = sys.stderr.isatty()
    ask(model, rows[0][:-1])  # the server's start and the adapter's way into memory are no part of the rate shown
    ready = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
        tasks = {pool.submit(ask, model, row[:-1]): at for at, row in enumerate(rows)}
        try:
            for done, task in enumerate(concurrent.futures.as_completed(tasks), 1):
                answers[tasks[task]] = task.result()
                if tty or done % 30 == 0 or done == len(rows):
                    line = f"  {model}: {done}/{len(rows)} answers, {time.monotonic() - ready:.0f} s"
                    print(line, end="\r" if tty and done < len(rows) else "\n", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    result = {"model": model, "answers": answers, "seconds": round(time.monotonic() - start, 1), "fields": {}}
    valid = exact = right = wanted = 0
    for row, answer in zip(rows, answers):
        want, got = json.loads(row[-1]["content"]), as_object(answer)
        valid += got is not None
        exact += got is not None and list(got) == list(want) and all(same(got[key], want[key]) for key in want)
        for key, value in want.items():
            hit = got is not None and key in got and same(got[key], value)
            result["fields"][key] = result["fields"].get(key, 0) + hit
            right, wanted = right + hit, wanted + 1
    share = lambda part, whole: round(100 * part / whole, 1)
    result["fields"] = {key: share(hits, len(rows)) for key, hits in result["fields"].items()}
    return result | {"valid": share(valid, len(rows)), "field": share(right, wanted), "exact": share(exact, len(rows))}


def table(results: list[dict], rows: int) -> None:
    lines = [("valid JSON", "valid"), ("fields exactly right", "field"), ("records exactly right", "exact")]
    width = max([16, *(len(result["model"]) for result in results)])
    print(f"\n{rows} held-out rows".ljust(27) + "".join(result["model"].rjust(width + 2) for result in results))
    for name, key in lines:
        print(f"  {name:24}" + "".join(f"{result[key]:.1f} %".rjust(width + 2) for result in results))
    for key in results[0]["fields"]:
        print(f"    {key:22}" + "".join(f"{result['fields'][key]:.1f} %".rjust(width + 2) for result in results))


def example(results: list[dict], rows: list[list[dict]]) -> None:
    """One row, as each model answers it: one that distinguishes the models, if one does."""
    right = lambda result, at: as_object(result["answers"][at]) == json.loads(rows[at][-1]["content"])
    at = next((i for i in range(len(rows)) if right(results[-1], i) and not all(right(r, i) for r in results)), 0)
    print(f"\nOne of them:\n  message  {rows[at][-2]['content']}\n  wanted   {rows[at][-1]['content']}")
    for result in results:
        said = " ".join(result["answers"][at].split())
        print(f"  {result['model']}\n           {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--rows", required=True, metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="COUNT", help="only the first so many rows")
    parser.add_argument("--out", metavar="FILE", help="write every answer and number as JSON")
    parser.add_argument("--strict", action="store_true", help="fail when the last model misses the bar")
    given = parser.parse_args()
    missing = [name for name in ("ATTUNE_API_URL", "ATTUNE_API_KEY") if not os.environ.get(name)]
    if missing:
        sys.exit(f"set {' and '.join(missing)}; `attune up` writes both into credentials.json of its data folder")
    with open(given.rows, encoding="utf-8") as file:
        rows = [json.loads(line)["messages"] for line in file][: given.limit]
    results = [run(model, rows) for model in given.models]
    table(results, len(rows))
    example(results, rows)
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1, ensure_ascii=False)
    if given.strict:
        tuned = results[-1]
        met = all(tuned[key] >= least for key, least in BAR.items())
        bar = f"at least {BAR['valid']:.0f} % valid JSON and {BAR['exact']:.0f} % exact records"
        print(f"\nAsked of the tuned model: {bar}. {'Met.' if met else 'Missed.'}")
        sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
