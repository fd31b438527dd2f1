"""Writes numbers.json: what Python prints for values that a chat template may hold (tool schemas above all).

Run with any Python 3: `python3 make_numbers.py`. Nothing but the standard library.
"""
import json, pathlib, platform

HERE = pathlib.Path(__file__).parent
VALUES = [
    0, -1, 7, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
    1.0, -1.0, 0.0, -0.0, 0.5, 0.1, 100.0, 1e15, 123456789012345.6, 9999999999999998.0, 1e16, 1.5e16, 1e17, 1e22, 1.5e300,
    0.001, 0.0001, 0.00012, 0.00001, 1.5e-7, 5e-324, 1.7976931348623157e308, 1 / 3, 2 / 3, 3.141592653589793, 2.5e-10,
    True, False, None, "plain", "it's", 'say "x"', "it's \"x\"", "tab\t nl\n cr\r \\ back", "\x00\x1b\x7f\x80\xa0\xad", "é ß 東京 🙂",
    "a\u0301 \u200b \u2028 \ue000 \U000e0001", [1.0, [2, {"k": None}]], {"a": 1e16, "b": [-0.0, True]}, [], {},
]


def main():
    rows = [{"value": value, "str": str(value), "repr_in_list": str([value]), "json": json.dumps(value, ensure_ascii=False),
             "json_ascii": json.dumps(value)} for value in VALUES]
    (HERE / "numbers.json").write_text(json.dumps({"made_by": "make_numbers.py", "python": platform.python_version(), "rows": rows},
                                                  ensure_ascii=True, indent=1) + "\n")


main()
