"""Figures as the scripts print them: one JSON object a line, each with its bar."""

import json


def report(figures):
    """Prints figures (name, value, bar, whether lower is better); returns True if all are at their bars. A bar of None is none."""
    met = True
    for name, value, bar, at_most in figures:
        print(json.dumps({"figure": name, "value": value, "bar": bar} | ({"at_most": True} if at_most else {})))
        met = met and value is not None and (bar is None or (value <= bar if at_most else value >= bar))
    return met
