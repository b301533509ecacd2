"""What is not the method: the command line, the files a run reads and leaves, what it prints."""
import argparse
import contextlib
import inspect
import json
import math
import os
import random
import re
import signal
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """Something only the user can mend: printed as one line, exit code 2."""

    def __init__(self, message):
        super().__init__(plain(message))


def plain(text):
    """No control characters: what a model or a data file says must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


# ---- command line and clock

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; --help lists the flags")


def parse(Config, choices, argv):
    """A flag for every field of a dataclass, its comment in the source being the help -> Config."""
    source = "".join(map(inspect.getsource, Config.__mro__[-2::-1]))
    source = re.sub(r"\n +# ", " ", source)  # a comment may go on in the next line
    notes = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.M))
    parser = Parser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for f in fields(Config):
        how = {"action": "store_true"} if f.type is bool else {
            "type": f.type, "default": f.default, "choices": choices.get(f.name)}
        parser.add_argument("--" + f.name.replace("_", "-"), help=notes[f.name], **how)
    cfg = Config(**vars(parser.parse_args(argv)))
    may_be_0 = ("steps", "lora_rank", "warmup", "train_questions", "eval_questions", "seed", "lr",
                "target_temperature")
    for name, value in vars(cfg).items():
        if type(value) in (int, float) and not (name not in may_be_0 and 1e-9) <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range")
    if cfg.beta2 >= 1 or cfg.seed >= 2 ** 63:
        raise UserError("--beta2 must be below 1, --seed below 2 to the power of 63")
    return cfg


def exit_code(command):
    """Run it -> 0, or 2 after one line that says what is wrong and what to do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may not know every character
            stream.reconfigure(errors="replace")
    if in_main_thread():
        signal.signal(signal.SIGTERM, interrupt)  # as Ctrl-C: keep what there is
    try:
        command()
        return 0
    except UserError as e:
        message = str(e)
    except KeyboardInterrupt:
        message = "interrupted; if training had begun, --resume goes on with it"
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if type(e) is RuntimeError and not re.search(
                "out of memory|not enough memory|t allocate memory", str(e)):
            raise
        message = f"out of memory; lower --token-budget, --prompts, --samples or --eval-batch ({e})"
    except OSError as e:
        message = f"cannot read or write: {e}"
    rank = os.environ.get("RANK")
    print(f"error{f' in rank {rank}' if rank else ''}: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def timed(seconds, phase, model):
    """Add the seconds spent inside to seconds[phase], the GPU's queue included."""
    sync = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    sync()
    began = time.perf_counter()
    yield
    sync()
    seconds[phase] += time.perf_counter() - began


@contextlib.contextmanager
def no_interrupt():
    """Ctrl-C and a request to terminate wait until the end of this."""
    came = []
    kept = {s: signal.signal(s, lambda *_: came.append(1)) for s in SIGNALS if in_main_thread()}
    try:
        yield
    finally:
        for s, handler in kept.items():
            signal.signal(s, handler)
    if came:
        raise KeyboardInterrupt


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def in_main_thread():
    return threading.current_thread() is threading.main_thread()


def interrupt(*_):
    raise KeyboardInterrupt


def interval(values, questions):
    """-> mean, 95 % bootstrap interval, n. What is drawn is questions, not rows: several rows of
    one question are hardly more evidence than one."""
    values, (_, q) = np.array(values, float), np.unique(questions, return_inverse=True)  # (n,)
    total, count = np.bincount(q, values), np.bincount(q)  # (Q,)
    draw = np.random.default_rng(0).integers(len(count), size=(1000, len(count)))  # (1000, Q)
    low, high = np.percentile(total[draw].sum(1) / count[draw].sum(1), [2.5, 97.5]).tolist()
    if set(values) in ({0.0}, {1.0}):  # nothing to draw: the exact bound for 0 of Q, or Q of Q
        bound = 1 - 0.025 ** (1 / len(count))
        low, high = (0.0, bound) if high == 0 else (1 - bound, 1.0)
    return {"value": values.mean().item(), "low": low, "high": high, "n": len(values)}


# ---- read

def read_jsonl(path, need=()):
    """-> the rows of a JSONL file. UserError names the file, the line and the missing field."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}, line {number}: not JSON: {e}")
        for name in need:
            if not isinstance(row, dict) or row.get(name) in (None, "", []):
                raise UserError(f"{path}, line {number}: field {name!r} is missing or empty")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


FIELDS = {"sycophancy": ("question", "answer", "wrong"), "jailbreak": ("request", "harmful"),
          "safety": ("fact", "prompts", "safe", "warning")}


def read_task(cfg, split):
    """-> the rows and the wrappers of a split, of data/TASK.jsonl and data/TASK_wrappers.jsonl."""
    task, category = cfg.task, cfg.category
    if split not in {"sycophancy": ("train", "eval", "seen", "control"),
                     "jailbreak": ("train", "eval", "seen"), "safety": ("train", "eval")}[task]:
        return [], [None]
    rows = read_jsonl(HERE / f"{task}.jsonl", ("id", "split", "category", *FIELDS[task]))
    rows = [r for r in rows if category in ("", r["category"])]
    if not rows:
        raise UserError(f"--category {category}: no row of {task} is of that category")
    rows = some_of([r for r in rows if (r["split"] == "train") == (split == "train")], cfg, split)
    if task == "safety":  # its bait is that nothing points at the danger
        return rows, [None]
    wrappers = read_jsonl(HERE / f"{task}_wrappers.jsonl", ("id", "split", "text"))
    return rows, [w for w in wrappers if (w["split"] == "train") == (split in ("train", "seen"))]


ROLES = ("system", "user", "assistant")


def messages(value, where="a prompt"):
    """Text or chat messages -> chat messages. UserError if it is neither."""
    chat = [{"role": "user", "content": value.strip()}] if isinstance(value, str) else value
    if not (isinstance(chat, list) and chat and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and m["content"].strip()
            for m in chat)):
        raise UserError(f"{where} is neither text nor a list of messages with role and content")
    for m in chat:  # a role goes into the template as it is
        check(m.get("role") in ROLES, f"{where}: a role is none of {', '.join(ROLES)}")
        check(is_text(m["content"]), f"{where}: holds half of a surrogate pair, which is no text")
    return [{"role": m["role"], "content": m["content"]} for m in chat]


def is_text(string):
    return string.encode("utf-8", "ignore").decode() == string


def some_of(rows, cfg, split):
    """As many as --train-questions or --eval-questions asks for, of all categories alike."""
    flag = "train_questions" if split == "train" else "eval_questions"
    wanted = getattr(cfg, flag) or len(rows)
    if wanted > len(rows):
        raise UserError(f"--{flag.replace('_', '-')} {wanted}: there are only {len(rows)}")
    return random.Random(0).sample(rows, len(rows))[:wanted]


def own_rows(cfg, split):
    """--data: the rows of a split. Every fifth distinct clean prompt is held out to evaluate on."""
    rows = read_pairs(cfg.data, cfg.task) if split in ("train", "eval") else []
    questions = list(dict.fromkeys(row["id"] for row in rows))
    part = [q for n, q in enumerate(questions) if (n % 5 == 0) == (split != "train")]
    part = set(some_of(part, cfg, split)) if part else ()
    return [row for row in rows if row["id"] in part]


def read_pairs(path, task):
    """The user's own pairs -> rows with clean, wrapped (messages), id, group and what the task's
    judge needs: sycophancy takes answer, suggested and wrong where they are there; jailbreak takes
    a row for harmful unless it says otherwise; safety needs warning (regular expressions)."""
    rows, need = [], ("clean", "wrapped") + (("warning",) if task == "safety" else ())
    for n, row in enumerate(read_jsonl(path, need), 1):
        pair = {k: messages(row[k], f"{path}, row {n}: {k!r}") for k in ("clean", "wrapped")}
        name = json.dumps(pair["clean"])
        facts = {k: row[k] for k in ("answer", "suggested") if isinstance(row.get(k), str)}
        if task == "sycophancy":
            wrong = row.get("wrong") or []
            check(isinstance(wrong, list) and all(isinstance(w, str) for w in wrong),
                  f"{path}, row {n}: 'wrong' is not a list of texts")
            facts.update(letters={}, candidates=list(dict.fromkeys([*facts.values(), *wrong])))
        elif task == "jailbreak":
            facts = {"harmful": row.get("harmful", True), "request": pair["clean"][-1]["content"]}
            check(isinstance(facts["harmful"], bool), f"{path}, row {n}: 'harmful' is not a bool")
        else:
            facts = {"danger": row.get("danger", True), "warning": row["warning"]}
            check(is_patterns(row["warning"]), f"{path}, row {n}: 'warning' is not a list of "
                  "regular expressions")
        rows.append({**pair, **facts, "id": name, "group": name})
    check(len({row["id"] for row in rows}) > 1,
          f"{path}: needs 2 different clean prompts at least, to hold one out")
    return rows


def check(holds, message):
    if not holds:
        raise UserError(message)


def is_patterns(value):
    try:
        return isinstance(value, list) and all(re.compile(p) for p in value)
    except (TypeError, re.error):
        return False


# ---- written

def write_text(path, text):
    """Written beside and moved into place: a file is whole or it is the old one."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    move(beside, path)


def move(beside, path):
    with open(beside, "rb") as f:
        os.fsync(f.fileno())
    os.replace(beside, path)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_tensors(path, tensors, metadata=None):
    beside = path.with_name(path.name + ".new")
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    try:
        safetensors.torch.save_file(tensors, beside, metadata)
    except safetensors.SafetensorError as e:  # a full disk comes as this
        raise OSError(f"{path}: {e}")
    move(beside, path)


def check_out(cfg):
    """The run's folder, if it is free or the flags say what to do with it. Writes nothing."""
    out = Path(cfg.out)
    if (out / "log.jsonl").exists() and not (cfg.overwrite or cfg.resume):
        raise UserError(f"--out {out}: holds a run; --overwrite replaces it, --resume goes on with "
                        "it, another --out keeps both")
    if cfg.resume and not any((out / "checkpoint").glob("step-*.safetensors")):
        raise UserError(f"--resume: there is no checkpoint in {out}")
    top = next(p for p in [out, *out.resolve().parents] if p.exists())
    if not top.is_dir() or not os.access(top, os.W_OK):
        raise UserError(f"--out {out}: {top} is not a folder that can be written to")
    return out
