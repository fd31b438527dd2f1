"""Prints the figures of the source code's form, one JSON object a line.

usage: house_figures.py LOG BASE_OPENAPI OPENAPI DOCS

LOG is what cargo-nextest printed with the tidy tests' lines "FIGURE name value". The two OpenAPI documents are compared
without their texts: what was there must be as it was; additions that a client of the first need not know are only
printed. A page `DOCS/adding-….md` lists the files to touch under "## Files", one a list item.
Ends with 1 when a figure misses its bar.
"""

import json
import re
import sys
from pathlib import Path

from figures import report

# Name, and the most that is allowed.
PRINTED = [
    ("import_circles", 0),
    ("largest_folder", 25),
    ("median_function_lines", 12),
    ("p90_file_lines", 300),
    ("longest_function", 68),
    ("banned_words", 0),
    ("unsafe_files", 2),
]
PAGES = [
    ("files_to_add_a_method", "adding-a-method.md"),
    ("files_to_add_a_family", "adding-a-model-family.md"),
    ("files_to_add_a_provider", "adding-a-provider.md"),
    ("files_to_add_a_metric", "adding-a-metric.md"),
    ("files_to_add_an_export", "adding-an-export.md"),
    ("files_to_add_a_device_kernel", "adding-a-device-kernel.md"),
]
TEXTS = {"description", "summary", "example", "examples"}
# The keys whose children may be added: no request that was valid becomes invalid by it.
OPEN = {"paths", "properties", "schemas", "responses", "securitySchemes"}
# The lists that may grow.
GROWING = {"enum", "oneOf", "tags"}


def structure(value, in_properties=False):
    """Returns a document without its texts; a property of a text's name is kept."""
    if isinstance(value, dict):
        kept = (k for k in value if in_properties or k not in TEXTS)
        return {k: structure(value[k], k == "properties" and not in_properties) for k in kept}
    return [structure(item) for item in value] if isinstance(value, list) else value


def is_addition(path, before, after):
    """Returns whether a difference leaves all that was there. What only answers have may always be there from now on."""
    *_, parent, name = path
    if name == "required" and any(part.endswith("View") for part in path):
        return set(before or []) <= set(after or [])
    if before is None:
        return parent in OPEN or name in {"get", "post", "put", "patch", "delete", "head"}
    if not (isinstance(before, list) and isinstance(after, list)) or any(item not in after for item in before):
        return False
    added = [item for item in after if item not in before]
    return name in GROWING or (name == "parameters" and not any(item.get("required") for item in added))


def changes(before, after, path=("", "")):
    """Yields each place where two documents differ, and whether something was only added there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from changes(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield "/".join(path[1:]), is_addition(path, before, after)


def listed(page):
    """Counts the files that a page lists."""
    if not page.is_file():
        return None
    section = page.read_text().split("## Files", 1)[-1].split("\n## ", 1)[0]
    return len(re.findall(r"^(?:[-*]|\d+\.) ", section, re.M))


def main(log, base, document, docs):
    said = dict(re.findall(r"FIGURE (\w+) (\d+)", Path(log).read_text(errors="replace")))
    figures = [(name, int(said[name]) if name in said else None, bar) for name, bar in PRINTED]
    places = sorted(changes(*(structure(json.loads(Path(path).read_text())) for path in (base, document))))
    for place, is_added in places:
        print(f"openapi, {'added' if is_added else 'changed'}: {place}", file=sys.stderr)
    figures.append(("openapi_structural_changes", sum(not is_added for _, is_added in places), 0))
    figures += [(name, listed(Path(docs) / page), 6) for name, page in PAGES]
    return report([(*figure, True) for figure in figures])


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
