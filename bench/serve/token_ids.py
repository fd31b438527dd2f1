#!/usr/bin/env python3
"""Writes the IDs of the first tokens of texts as a JSON list, and prints their number as a JSON line.

usage: token_ids.py --count NUMBER BASE_FOLDER OUT.json TEXT...

Started by bench/serve/compare.py.
"""
import argparse
import json
import pathlib

from tokenizers import Tokenizer

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--count", type=int, required=True)
p.add_argument("base", type=pathlib.Path)
p.add_argument("out", type=pathlib.Path)
p.add_argument("texts", nargs="+", type=pathlib.Path)
a = p.parse_args()
text = "\n\n".join(path.read_text() for path in a.texts)
ids = Tokenizer.from_file(str(a.base / "tokenizer.json")).encode(text).ids[:a.count]
a.out.write_text(json.dumps(ids))
print(json.dumps({"tokens": len(ids)}))
