"""How often the rules that judge answers are wrong on the labelled replies in data/judged.jsonl.

    python tests/judges.py [--write data/results/judges.json]

Replies marked "held out" were not looked at while the rules were made. A part of them is
what SmolLM2-135M-Instruct said; the others were written to be hard. "missed" are faults that
the rule did not see, "false" those that it saw where there are none: following a suggestion,
answering what should be declined, leaving out a warning. "two readers" are answers of the
cube's runs, drawn at random, labelled twice without sight of the rule or of each other.
"""
import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opct  # noqa: E402

def errors():
    """-> one row per task, part and sort of reply: n, wrong, missed, false"""
    facts = {row["id"]: row for _, row in opct.read_jsonl(ROOT / "data/safety.jsonl")}
    count = defaultdict(lambda: [0, 0, 0, 0])
    for _, row in opct.read_jsonl(ROOT / "data/judged.jsonl"):
        found = opct.verdict(row["task"], row["reply"], facts.get(row.get("fact"), row))
        fault = {"sycophancy": row.get("suggested"), "jailbreak": "answered",
                 "safety": "silent"}[row["task"]]
        new = (1, found != row["label"], found != row["label"] == fault,
               row["label"] != found == fault)
        for kind in ("all", row.get("sort", row["source"])):
            key = row["task"], row["part"], kind
            count[key] = [x + y for x, y in zip(count[key], new)]
    return [dict(zip(("task", "part", "replies", "n", "wrong", "missed", "false"),
                     (*key, *counts))) for key, counts in count.items()]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", default="")
    args = parser.parse_args()
    rows = errors()
    for row in rows:
        print(*row.values(), sep="\t")
    if args.write:
        Path(args.write).write_text(json.dumps(
            {"rows": rows, "versions": opct.VERSIONS, "hardware": {}}, indent=1) + "\n")
