"""--data: pairs as they are published, or one's own, into what opct.py and its judges need.

The file is JSONL, a JSON list, or a JSON object that holds one list of rows; gzipped or not. Its
shape is known by the fields of its first row:

    own pairs                                clean, wrapped
    sycophancy as the OPCT paper has it      prompt_unbiased, prompt_biased, answer,
                                             sycophantic_option
    mcq-bias                                 unbiased_messages, biased_messages, and for accuracy
                                             ground_truth, biased_option
    jailbreak as the OPCT paper has it       clean, and wrapped or prompt; system
    SAGE-Eval                                safety_fact, prompt
    consistency-training-methods             reference_messages, variant_messages
"""
import gzip
import json
import re
import sys

from data.plumbing import (UserError, as_text, check, has, messages, parse_lines, plain,
                           read_bytes, some_of)


# ---- a row of each shape -> clean, wrapped, facts that a judge needs

def own(row):
    return row["clean"], row["wrapped"], {}


def paper_sycophancy(row):
    facts = lettered(row["prompt_unbiased"], row["answer"], row["sycophantic_option"])
    return chat(row["prompt_unbiased"]), chat(row["prompt_biased"]), facts


def mcq_bias(row):
    facts = lettered(row["unbiased_messages"], row.get("ground_truth"), row.get("biased_option"))
    return chat(row["unbiased_messages"]), chat(row["biased_messages"]), facts


def paper_jailbreak(row):
    clean, wrapped = chat(row["clean"]), chat(row["wrapped" if "wrapped" in row else "prompt"])
    system = messages(row["system"]) if row.get("system") else []
    system = [{**m, "role": "system"} for m in system]
    return system + clean, system + wrapped, {}


def sage_eval(row):
    system = [{"role": "system", "content": row["safety_fact"]}]
    return system + chat(row["prompt"]), chat(row["prompt"]), {
        "warning": WARNS, "fact": row["safety_fact"], "group": row["safety_fact"]}


def consistency_methods(row):
    return chat(row["reference_messages"]), chat(row["variant_messages"]), {}


# name, the task that it is for (None: any), the fields it is known by, what makes a row of it
SHAPES = [
    ("sycophancy as the OPCT paper has it", "sycophancy",
     ("prompt_unbiased", "prompt_biased", "answer", "sycophantic_option"), paper_sycophancy),
    ("mcq-bias", "sycophancy", ("unbiased_messages", "biased_messages"), mcq_bias),
    ("SAGE-Eval", "safety", ("safety_fact", "prompt"), sage_eval),
    ("jailbreak as the OPCT paper has it", "jailbreak", ("clean", "prompt"), paper_jailbreak),
    ("jailbreak as the OPCT paper has it", "jailbreak", ("clean", "wrapped", "system"),
     paper_jailbreak),
    ("consistency-training-methods", None, ("reference_messages", "variant_messages"),
     consistency_methods),
    ("own pairs", None, ("clean", "wrapped"), own)]

# for rows that bring no patterns of a warning: words that most warnings have. --judge can do better
WARNS = [r"\b(?:warn|caution|careful|danger|hazard|risk|unsafe|toxic|poison|fatal|deadly|injur|harm"
         r"|emergency|never|do not|don't|avoid|should ?n[o']t|not (?:safe|recommended))"]


def chat(value):
    """A prompt in any of the ways that are in use (text; messages; a JSON string of messages; a
    dict with a list of roles and one of contents) -> messages."""
    if isinstance(value, str):
        try:
            inside = json.loads(value)
            value = inside if isinstance(inside, (list, dict)) else value
        except (ValueError, RecursionError):
            pass  # a text
    if isinstance(value, dict) and isinstance(value.get("role"), list):
        value = [{"role": role, "content": content}
                 for role, content in zip(value["role"], value.get("content") or [])]
    return messages(value)


CHOICE = re.compile(r"^\W{0,3}([A-J])[).:]\W{0,2} +(\S.*?)\s*$", re.MULTILINE)


def lettered(prompt, answer, suggested):
    """The letters of the right and of the suggested choice -> facts. The choices are read from
    lines of the prompt such as "(B) Nairobi", "B. Nairobi", "B) Nairobi"."""
    if answer is None or suggested is None:
        return {}
    letters = dict(CHOICE.findall(chat(prompt)[-1]["content"]))
    a, s = (str(x).strip(" ().:") for x in (answer, suggested))
    against = s.startswith("NOT ")  # an answer is doubted, none is suggested
    check(a in letters and (against or s in letters),
          f"the choices {a!r} and {s!r} are not among those of its prompt: {', '.join(letters)}")
    facts = {"answer": letters[a], "letters": letters,
             "wrong": [text for letter, text in letters.items() if letter != a]}
    return facts if against else {**facts, "suggested": letters[s]}


# ---- the file

def read_file(path):
    """-> [(where, row)]"""
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as e:
            raise UserError(f"{path}: not a whole gzip file: {e}")
    text = as_text(path, data)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return [(f"{path}, line {n}", row) for n, row in parse_lines(path, data)]
    lists = [v for v in whole.values() if isinstance(v, list) and v and isinstance(v[0], dict)
             and "role" not in v[0]] if isinstance(whole, dict) else []
    if not isinstance(whole, list) and len(lists) != 1:
        return [(f"{path}, line 1", whole)]  # JSONL of one row
    rows = whole if isinstance(whole, list) else lists[0]
    return [(f"{path}, row {n}", row) for n, row in enumerate(rows, 1)]


def read_rows(path, task):
    """-> rows with clean and wrapped (messages) and the facts of their shape, where each is, the
    shape's name."""
    placed = read_file(path)
    check(placed, f"{path}: holds no rows")
    where, first = placed[0]
    known = [shape for shape in SHAPES if isinstance(first, dict)
             and all(field in first for field in shape[2])]
    check(known, f"{where}: has the fields of no shape known here: "
          + "; ".join(", ".join(fields) for _, _, fields, _ in SHAPES))
    fitting = [shape for shape in known if shape[1] in (None, task)]
    check(fitting, f"{path}: is of the shape {known[0][0]}, which goes with --task {known[0][1]}")
    name, _, fields, make = fitting[0]
    rows = []
    for where, row in placed:
        has(row, [f for f in fields if f != "system"], where)
        try:
            clean, wrapped, facts = make(row)
        except UserError as e:
            raise UserError(f"{where}: {e}")
        rows.append({**row, **facts, **{k: messages(v, f"{where}: {k!r}") for k, v in (
            ("clean", clean), ("wrapped", wrapped))}})
    return rows, [where for where, _ in placed], name


def read_pairs(path, task):
    """-> rows with clean, wrapped (messages), id, group and what the task's judge needs, and the
    name of the file's shape. Sycophancy takes answer, suggested and wrong where they are there;
    jailbreak takes a row for harmful unless it says otherwise; safety needs warning (regular
    expressions)."""
    rows, places, shape = read_rows(path, task)
    out = []
    for row, where in zip(rows, places):
        name = json.dumps(row["clean"])
        facts = {k: row[k] for k in ("answer", "suggested") if isinstance(row.get(k), str)}
        if task == "sycophancy":
            wrong = row.get("wrong") or []
            check(isinstance(wrong, list) and all(isinstance(w, str) for w in wrong),
                  f"{where}: 'wrong' is not a list of texts")
            letters = row["letters"] if isinstance(row.get("letters"), dict) else {}
            facts.update(letters=letters,
                         candidates=list(dict.fromkeys([*facts.values(), *wrong])))
        elif task == "jailbreak":
            facts = {"harmful": row.get("harmful", True), "request": row["clean"][-1]["content"]}
            check(isinstance(facts["harmful"], bool), f"{where}: 'harmful' is not a bool")
        else:
            has(row, ["warning"], where)
            facts = {"danger": row.get("danger", True), "warning": row["warning"],
                     "fact": str(row.get("fact", ""))}
            check(is_patterns(row["warning"]), f"{where}: 'warning' is not a list of regular "
                  "expressions")
        out.append({"clean": row["clean"], "wrapped": row["wrapped"], **facts, "id": name,
                    "group": str(row.get("group") or name)})
    check(len({row["group"] for row in out}) > 1,
          f"{path}: needs 2 different clean prompts at least, to hold one out")
    return out, shape


def is_patterns(value):
    try:
        return isinstance(value, list) and all(re.compile(p) for p in value)
    except (TypeError, re.error):
        return False


def own_rows(cfg, split):
    """The rows of a split. Every fifth group (clean prompt, or fact) is held out to evaluate on."""
    if split not in ("train", "eval"):
        return []
    rows, shape = read_pairs(cfg.data, cfg.task)
    if split == "train":
        print(plain(f"{cfg.data}: {len(rows)} rows, read as: {shape}"), file=sys.stderr)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    part = [g for n, g in enumerate(groups) if (n % 5 == 0) == (split != "train")]
    part = set(some_of(part, cfg, split)) if part else ()
    return [row for row in rows if row["group"] in part]
