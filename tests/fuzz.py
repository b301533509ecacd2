"""Random data files: a sentence or a right result, no traceback, no smuggled token.

    python tests/fuzz.py [--write FILE.json]      10,000 files, about a minute

Each file holds random bytes, random JSON, or rows of random text (control characters, half
surrogate pairs, pieces of chat templates and of markup) and goes through loading, encoding,
packing, judging and printing as a run would put it through.
"""
import argparse
import contextlib
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

MILD = ["<|im_", "end|>", "{{ messages }}", "{% raw %}", "</script>", "<img onerror=x>",
        "\u202e", "\u200f", "\x00", "\x1b[31m", "\x07", "\r\n", "\ufeff", "\u2028", "é",
        "東京", "🎈", "a", "Rome", "A)", "(", "?", "[", " ", "\t", "'", '"', "\\"]
PIECES = [*MILD, "<|im_end|>", "<|im_start|>", "<|im_start|>system\n", "<|endoftext|>",
          "\ud800", "\udfff"]  # these are refused

def text(rng, pieces=PIECES):
    start = "" if pieces is PIECES else rng.choice("abc")
    return start + "".join(rng.choice([rng.choice(pieces), chr(rng.randrange(1, 0x3000))])
                           for _ in range(rng.randrange(8)))

def anything(rng, depth=3):
    """A random JSON value."""
    if rng.random() < 0.7 or depth == 0:
        return rng.choice([None, True, rng.randrange(-9, 9), rng.random(), text(rng)])
    values = [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return rng.choice([values, {text(rng): value for value in values}])

def chat(rng, pieces):
    roles = ["user", "assistant"] * rng.randrange(3) + [rng.choice(["user"] * 9 + ["tool"])]
    return [{"role": role, "content": text(rng, pieces)} for role in roles]

def row(rng, pieces, task):
    """A row that is nearly right."""
    fields = {f: rng.choice([text, text, chat])(rng, pieces) for f in ("wrapped", "clean")}
    if task == "sycophancy":
        fields |= {f: text(rng, pieces) for f in ("answer", "suggested")}
        fields["aliases"] = {fields["answer"]: [text(rng, pieces)]}
    else:
        fields["harmful" if task == "jailbreak" else "danger"] = rng.random() < 0.5
    if task == "safety":
        fields["warning"] = rng.choices(["a", "b|c", r"\d", "(", ")"], k=2)
    if pieces is PIECES and rng.random() < 0.2:
        fields[rng.choice([*fields, "id", "group", "split", text(rng)])] = anything(rng)
    return fields

def file_of(rng, task):
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(200))
    pieces = PIECES if kind < 0.5 else MILD
    rows = [anything(rng) if kind < 0.2 else row(rng, pieces, task)
            for _ in range(rng.randrange(2, 7))]
    lines = [json.dumps(r, ensure_ascii=rng.random() < 0.7) for r in rows]
    return "\n".join(lines).encode("utf-8", "surrogatepass")

def once(seed, path, model, tokenizer):
    """One file -> "refused" or "taken"; AssertionError if it did harm."""
    rng = random.Random(seed)
    task = rng.choice(["sycophancy", "jailbreak", "safety"])
    path.write_bytes(file_of(rng, task))
    cfg = opct.Config(task=task, data=str(path), prompts=1, eval_questions=1)
    try:
        pairs = [p for split in ("train", "unseen") for p in opct.load_pairs(cfg, split)]
        encoded = list(opct.encode_pairs(model, tokenizer, pairs, cfg))
    except opct.UserError as e:
        assert str(path) in str(e) or "--" in str(e), e
        return "refused"
    for pair, both in zip(pairs, encoded):
        for messages, ids in zip((pair.wrapped, pair.clean), both):
            marks = sum(token in tokenizer.all_special_ids for token in ids)
            assert marks == 2 * len(messages) + 1, f"a token was smuggled in: {messages}"
        packed = opct.pack([list(both[0])], [[[5, 6, 7], [8]]])
        assert len(packed.predict_at) == 4 and packed.ids.shape == packed.positions.shape
        found = opct.verdict(task, text(rng), pair.example)
        assert opct.marks(task, pair.example, found, found)["unparsed"] == (found is None)
        json.dumps(pair.example).encode()
    return "taken"

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--write")
    args, began = parser.parse_args(), time.time()
    loaded = opct.load_model(opct.Config())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        path = Path(folder) / "data.jsonl"
        count = Counter(once(seed, path, *loaded) for seed in range(args.inputs))
    result = {"inputs": args.inputs, **count, "tracebacks": 0, "versions": opct.VERSIONS,
              "minutes": round((time.time() - began) / 60, 1)}
    if args.write:
        path = Path(args.write)  # other scripts write there, too
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {"fuzz": result}, indent=1) + "\n")
    print(json.dumps(result))

if __name__ == "__main__":
    main()
