"""Prints the figures of a run of the abuse tests, one JSON object a line.

usage: abuse_figures.py LOG docs/LIMITS.md [SHORT]

LOG is what cargo-nextest printed: a line for each test (PASS, FAIL, …), and lines "FIGURE name value" of the tests
themselves. A case or an attack counts as right when all of its tests passed, and at least one did. Ends with 1 when a
figure misses its bar. SHORT (any text): the run on an empty HOME was left out, and so is its figure.
"""

import re
import sys

from figures import report

CASES = ["01", "02", "04", "05", "06", "07", "08", "09", "10", "12", "13", "14", "15", "18", "19"]
ATTACKS = (
    "a01 a02 a03 a04 a05 a05b a06 a07 a08 a09 a10 a11 a11b a12 a13 a14 a15 a16 a17 a18 a19 a20 a23 a25 a27 a28 a29"
).split()
# Name, bar, and whether lower is better.
PRINTED = [
    ("api_peak_rss_growth_mib_under_attack", 256, True),
    ("other_tenants_p95_ratio_under_flood", 2, True),
    ("pool_stalls", 0, True),
    ("leaked_settings", 0, True),
    ("orphans_after_sweep", 0, True),
    ("jobs_failed_by_api_outage", 0, True),
    ("served_over_trained_logit_difference", 1e-4, True),
    ("fresh_home_test_run", 1, False),
    ("client_flows_right", 40, False),
]


def outcomes(log):
    """Returns the worst outcome of each test by its function's name: True where it passed."""
    found = {}
    for state, name in re.findall(r"^\s+(PASS|FAIL|TIMEOUT|SIG\w+|ABORT|LEAK-FAIL) \[.*?\]\s+(?:\(\s*\d+/\d+\)\s+)?\S+ (\S+)", log, re.M):
        name = name.rsplit("::", 1)[-1]
        found[name] = found.get(name, True) and state == "PASS"
    return found


def right(tests, prefix):
    """Returns whether there are tests of `prefix` and all of them passed."""
    passed = [ok for name, ok in tests.items() if f"{prefix}_" in name]
    return bool(passed) and all(passed)


def worst(log, name, at_most):
    values = [float(v) for n, v in re.findall(r"FIGURE (\w+) (\S+)", log) if n == name]
    return (max if at_most else min)(values) if values else None


def main(log_path, limits_path, short=""):
    log, page = open(log_path, errors="replace").read(), open(limits_path).read()
    tests = outcomes(log)
    missed = [case for case in CASES if not right(tests, f"case_{case}")]
    through = [attack for attack in ATTACKS if not right(tests, f"attack_{attack}")]
    rows = [row.rsplit("|", 2)[-2].strip().strip("`") for row in page.splitlines() if row.startswith("| ") and "::" in row]
    tested = sum(tests.get(test, False) for test in rows)
    figures = [
        ("cases_right", len(CASES) - len(missed), len(CASES), False),
        ("limits_tested_share", round(tested / len(rows), 4) if rows else 0, 1.0, False),
        ("attacks_through", len(through), 0, True),
    ]
    printed = [figure for figure in PRINTED if not (short and figure[0] == "fresh_home_test_run")]
    figures += [(name, worst(log, name, at_most), bar, at_most) for name, bar, at_most in printed]
    for label, names in (("cases not right", missed), ("attacks through", through)):
        if names:
            print(f"{label}: {' '.join(names)}")
    untested = sorted({test for test in rows if not tests.get(test, False)})
    if untested:
        print(f"limits whose test did not pass in this run: {' '.join(untested)}")
    return 0 if report(figures) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
