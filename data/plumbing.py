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
from typing import get_args

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


def flags(Config):
    """[(name, type, default, choices or None, help)] of the fields of a dataclass. The help is the
    comment in the source."""
    source = "".join(map(inspect.getsource, Config.__mro__[-2::-1]))
    source = re.sub(r"\n +# ", " ", source)  # a comment may go on in the next line
    notes = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.M))
    return [(f.name, str if get_args(f.type) else f.type, f.default, get_args(f.type) or None,
             notes.get(f.name, "")) for f in fields(Config)]


def parse(Config, argv):
    """A flag for every field of a dataclass -> Config."""
    parser = Parser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                    epilog="--show RUN and --compare RUN RUN ... look at runs that are done")
    for name, kind, default, choices, note in flags(Config):
        how = {"action": "store_true"} if kind is bool else {
            "type": kind, "default": default, "choices": choices}
        parser.add_argument("--" + name.replace("_", "-"), help=note or " ", **how)
    cfg = Config(**vars(parser.parse_args(argv)))
    may_be_0 = ("steps", "lora_rank", "warmup", "train_questions", "eval_questions", "seed", "lr",
                "target_temperature")
    for name, value in vars(cfg).items():
        if type(value) in (int, float) and not (name not in may_be_0 and 1e-9) <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range")
    if cfg.beta2 >= 1 or cfg.seed >= 2 ** 63:
        raise UserError("--beta2 must be below 1, --seed below 2 to the power of 63")
    if cfg.adapter and not cfg.evaluate:
        raise UserError("--adapter goes with --evaluate; to train on from an adapter, --merge it "
                        "first and take the merged folder for --model")
    if cfg.evaluate and hasattr(cfg, "targets"):
        raise UserError("--evaluate: python opct.py --evaluate --adapter RUN evaluates any run")
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
    rows = []
    for line, row in parse_lines(path, read_bytes(path)):
        has(row, need, f"{path}, line {line}")
        rows.append(row)
    check(rows, f"{path}: holds no rows")
    return rows


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}")


def parse_lines(path, data):
    """JSONL -> (line number, row) of every line that is not blank."""
    for number, line in enumerate(as_text(path, data).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as e:
                raise UserError(f"{path}, line {number}: not JSON: {e}")


def as_text(path, data):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text")


def has(row, need, where):
    for name in need:
        if not isinstance(row, dict) or row.get(name) in (None, "", []):
            raise UserError(f"{where}: field {name!r} is missing or empty")


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


def check(holds, message):
    if not holds:
        raise UserError(message)


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
    if cfg.merge and not cfg.overwrite and Path(cfg.merge).exists() and (
            not Path(cfg.merge).is_dir() or any(Path(cfg.merge).iterdir())):
        raise UserError(f"--merge {cfg.merge}: there is something already; --overwrite writes over "
                        "it")
    top = next(p for p in [out, *out.resolve().parents] if p.exists())
    if not top.is_dir() or not os.access(top, os.W_OK):
        raise UserError(f"--out {out}: {top} is not a folder that can be written to")
    return out
