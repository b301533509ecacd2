"""Random input: an error sentence or a right result, never a traceback, never a smuggled token.

    python tests/fuzz.py               10,000 inputs, about a minute
    python tests/fuzz.py --write FILE.json

Each input is a data file (random bytes, random JSON, rows with random text: control characters,
right-to-left marks, half surrogate pairs, pieces of chat templates and markup) that goes through
loading, encoding, packing and the report's page, as a run would put it through.
"""
import argparse
import contextlib
import gzip
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import opct  # noqa: E402
import torch  # noqa: E402

from data import judges, plumbing, report, shapes  # noqa: E402

PIECES = ["<|im_end|>", "<|im_start|>", "<|im_start|>system\n", "<|endoftext|>", "<|im_", "end|>",
          "{{ messages }}", "{% raw %}", "</script>", "<script>alert(1)</script>",
          "<img onerror=x>",
          "javascript:", "\u202e", "\u200f", "\ud800", "\udfff", "\x00", "\x1b[31m", "\x07", "\r\n",
          "\ufeff", "\u2028", "é", "東京", "🎈", "a", "Rome", "A)", "?", " ", "\t", "'", '"', "\\"]


MILD = PIECES[4:14] + PIECES[16:]  # none that has to be refused


def text(rng, pieces=PIECES):
    start = "" if pieces is PIECES else rng.choice("abc")
    return start + "".join(
        rng.choice(pieces) if rng.random() < 0.5 else chr(rng.randrange(1, 0x3000))
        for _ in range(rng.randrange(8)))


def anything(rng, depth=3):
    """A random JSON value."""
    kind = rng.randrange(8 if depth else 6)
    if kind < 2:
        return text(rng)
    if kind < 6:
        return [None, True, rng.randrange(-9, 9), rng.random()][kind - 2]
    values = [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return values if kind == 6 else {text(rng): value for value in values}


def row(rng, pieces):
    """A row that is right, or nearly so."""
    fields = {name: text(rng, pieces) for name in ("clean", "wrapped", "answer", "suggested")}
    fields |= {"harmful": rng.random() < 0.5, "danger": True, "warning": [rng.choice("abc")]}
    if rng.random() < 0.5:
        roles = ["user", "system", "assistant"] + ([text(rng)] if pieces is PIECES else [])
        fields["clean"] = [{"role": rng.choice(roles), "content": text(rng, pieces)}
                           for _ in range(rng.randrange(1, 3))]
    if pieces is PIECES and rng.random() < 0.2:
        fields[rng.choice(list(fields))] = anything(rng)
    return fields


def published(rng, pieces, fields):
    """The same in a shape that others publish, its prompts written in any of the known ways."""
    def prompt():
        said = text(rng, pieces) + "\n(A) x\n(B) y"
        chat = [{"role": "user", "content": said}]
        return rng.choice([said, chat, json.dumps(chat), {"role": ["user"], "content": [said]}])
    return {name: rng.choice("ABBC") if name in ("answer", "sycophantic_option") else
            text(rng, pieces) if name in ("safety_fact", "system") else prompt()
            for name in fields}


def file_of(rng):
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(200))
    pieces, (_, _, fields, _) = PIECES if kind < 0.5 else MILD, rng.choice(shapes.SHAPES)
    rows = [anything(rng) if kind < 0.2 else row(rng, pieces) if kind % 0.1 < 0.05 else
            published(rng, pieces, fields) for _ in range(rng.randrange(2, 7))]
    ascii = rng.random() < 0.7
    whole = json.dumps(rows, ensure_ascii=ascii) if rng.random() < 0.2 else (
        "\n".join(json.dumps(r, ensure_ascii=ascii) for r in rows))
    data = whole.encode("utf-8", "surrogatepass")
    return gzip.compress(data)[:rng.choice([None, None, -9])] if rng.random() < 0.2 else data


def once(seed, path, model, tokenizer):
    """One input -> "refused" or "taken". AssertionError if it did harm, any other exception if it
    is a traceback."""
    rng = random.Random(seed)
    path.write_bytes(file_of(rng))
    cfg = opct.Config(task=rng.choice(["sycophancy", "jailbreak", "safety"]), data=str(path),
                      prompts=1, eval_questions=1)
    try:
        pairs = [p for split in ("train", "eval") for p in opct.load_pairs(cfg, split)]
        encoded = opct.encode_pairs(model, tokenizer, pairs, cfg)
    except opct.UserError as e:
        assert str(e).strip() and "\n" not in str(e), e
        return "refused"
    marks = set(tokenizer.all_special_ids)
    for pair, both in zip(pairs, encoded):
        for chat, ids in zip((pair.wrapped, pair.clean), both):
            turns = sum(token in marks for token in ids)
            assert turns == 2 * len(chat) + 1, f"a token was smuggled in: {chat}"
        packed = opct.pack([both[0]], [[[5, 6, 7], [8]]])
        assert len(packed.read) == 4 and packed.ids.shape == packed.positions.shape
        answer = text(rng)
        verdict = judges.JUDGES[cfg.task](answer, pair.row)
        judges.gave_in(cfg.task, verdict, pair.row)
        page = report.page({"answers": [{**pair.row, "clean": answer}]})
        page.encode("utf-8")
        data = page.split('type="application/json">')[1].split("</script>")[0]
        assert "<" not in data and json.loads(data)["answers"][0]["clean"] == \
            json.loads(json.dumps(answer))
        assert plumbing.plain(answer).isprintable()
    return "taken"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--write")
    args = parser.parse_args()
    began, model_and_tokenizer = time.time(), opct.load_model(opct.Config())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        count = Counter(once(seed, Path(folder) / "data.jsonl", *model_and_tokenizer)
                        for seed in range(args.inputs))
    result = {"inputs": args.inputs, **count, "tracebacks": 0,
              "minutes": round((time.time() - began) / 60, 1), "versions": report.versions(),
              "hardware": report.hardware(torch.empty(0))}
    if args.write:
        Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
