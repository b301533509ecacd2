"""Published data sets -> pairs for opct.py:  python data/convert.py FILE > pairs.jsonl

FILE is JSON, JSONL, CSV or TSV, and may be gzipped. A row is recognised by the first two
fields of a line below; the two after a colon hold the right and the suggested answer. Where
the prompt lists choices, a letter becomes its choice's text. Ambiguous rows are skipped.

    clean, wrapped                        your own pairs; jailbreaks of OPCT (2605.21834)
    clean, prompt                         jailbreaks of OPCT
    prompt_unbiased, prompt_biased: answer, sycophantic_option         OPCT
    unbiased_question, biased_question: ground_truth, biased_option    BCT (2403.05518)
    unbiased_messages, biased_messages: ground_truth, biased_option    mcq-bias
    reference_messages, variant_messages  consistency-training-methods
    neutral_prompt, biased_prompt: honest_target, sycophantic_target   rendered for Llama 3
    base, prompt                          SycophancyEval's answer.jsonl (2310.13548)
    question, answer_matching_behavior    Anthropic's survey of NLP (2212.09251)
    goal, prompt                          artifacts of JailbreakBench (2404.01318)
    safety_fact, prompt                   SAGE-Eval, also as {fact: {"prompts": [...]}}"""
import csv
import gzip
import json
import re
import sys
import unicodedata
from collections import Counter

SHAPES = re.findall(r"^    (\w+), (\w+)(?:: (\w+), (\w+))?  ", __doc__, re.M)  # see above
FIELDS = dict.fromkeys("group category split answer suggested request fact".split(), str)
FIELDS.update(wrong=list, warning=list, hazard=list, aliases=dict, harmful=bool, danger=bool)
ROLES = {"human": "user", "gpt": "assistant", "ai": "assistant", "developer": "system"}
LLAMA = r"(?s)^<.begin_of_text.><.\w+.>user<.\w+.>\s+(\S(?:(?!<\|).)*)<.eot_id.>\S*\s*$"
CHOICE = r"(?m:^[^\w\n]{0,3}([A-Z])[).:][^\w\n]{0,2}[ \t]+(\S.*?)[ \t\r]*$[\r\n]*)"
WARNING = [r"\b(warn|caution|careful|danger|hazard|risk|unsafe|toxic|poison|harm|injur|"
           r"never|avoid|(do|should|must|can) ?not|(do|should|must|ca)n.t)"]  # for SAGE

def chat(value, system=""):
    """A prompt in any published form -> [{"role", "content"}]"""
    if isinstance(value, dict):  # {"role": [...], "content": [...]}
        value = [{"role": r, "content": c} for r, c in zip(value["role"], value["content"])]
    if isinstance(value, str) and re.match(r"\s*\[\s*\{\s*[\"'](role|content)\b", value):
        value = json.loads(value)
    if not isinstance(value, list):
        value = [{"role": "user", "content": re.sub(LLAMA, r"\1", value or "")}]
    messages = [{"role": "system", "content": system}] if system else []
    for m in value:
        role = m.get("role") or m.get("from") or m["type"]
        text = m.get("content", m.get("value")) or ""
        messages.append({"role": ROLES.get(role, role), "content": text})
    turns = " ".join(m["role"] if m["content"].strip() else "empty" for m in messages)
    if not re.fullmatch("(system )?(user assistant )*user", turns):
        raise ValueError("a prompt is empty or does not end with the user's turn")
    return messages

def plain(text):
    """What opct.py compares: no case, no accents, no punctuation."""
    return re.findall(r"[^\W\u0300-\u036f]+", unicodedata.normalize("NFKD", text.casefold()))

def lettered(prompt, right, bait):
    """-> answer, suggested, wrong and aliases, as far as they are known."""
    runs = [dict(re.findall(CHOICE, m[0])) for m in re.finditer(f"({CHOICE})+", prompt)]
    letters = next((r for r in runs[-1:] if 1 < len(r) == ord(max(r)) - 64), {})  # A, B ...
    facts = {}
    for field, value in (("answer", right), ("suggested", bait)):
        if value and not value.startswith("NOT "):  # "NOT B" doubts B, no suggestion
            key = value.strip(" ().:")
            facts[field] = letters.get(key, key if len(key) == 1 else value.strip())
            if letters and facts[field] not in letters.values():
                raise ValueError("an answer is none of the choices in its prompt")
    wrong = [t for t in letters.values() if right and t not in facts.values()]
    names = {t: [x for x in letters if letters[x] == t] for t in [*facts.values(), *wrong]}
    return {**facts, "wrong": [*dict.fromkeys(wrong)], "aliases": names if letters else {}}

def convert(row, counts):
    """A row -> a pair in opct.py's format."""
    kind, side, right, bait = next(s for s in SHAPES  # None: more cells than the header has
                                   if {*s[:2]} <= {*row} and None not in row)
    clean, wrapped, system = row[kind], row[side], row.get("system") or ""
    keep = FIELDS if kind == "clean" else ("category", "split")
    pair = {f: row[f] for f in keep if row.get(f) is not None and str(row[f]).strip()}
    pair |= {"split": "test"} if pair.get("split", "train") != "train" else {}  # dev ...
    if right:
        pair.update(lettered(chat(clean)[-1]["content"], row.get(right), row.get(bait)))
    elif kind == "base":
        clean, right, also = clean["question"], clean["correct_answer"], clean.get("answer")
        m = re.search("(n.t )?think the answer is (.+) but I", chat(wrapped)[-1]["content"])
        pair.update(lettered("", right, not m[1] and m[2]),  # doubt is no suggestion
                    aliases={right: also} if also else {})
    elif kind == "question":  # every question of the survey begins alike
        pair.update(lettered(clean, None, wrapped))
        clean, wrapped = re.search("(?s)Do you agree or disagree with .*", clean)[0], clean
    elif kind == "safety_fact":
        safe = re.search("(?i)(?<!un)safe", f"{row.get('prompt_type')} {row.get('version')}")
        pair.update(danger=not safe, warning=WARNING, fact=clean, group=clean)
        clean = chat(wrapped, "" if safe else clean)  # a safe prompt runs into no danger
    elif "harmful" not in pair and {"system", "prompt", "target_full"} & {*row}:
        request = chat(clean)[-1]["content"]
        pair.update(harmful=row.get("category") != "benign", request=request)
    pair = {"clean": chat(clean, system), "wrapped": chat(wrapped, system), **pair}
    if pair["clean"] == pair["wrapped"] and pair.get("danger") is not False:
        raise ValueError("clean and wrapped are the same")
    if not all(isinstance(value, FIELDS.get(f, list)) for f, value in pair.items()):
        raise ValueError("a field is of the wrong type")
    json.dumps(pair, ensure_ascii=False).encode()  # raises if a text is not valid Unicode
    if "suggested" in pair and plain(pair["suggested"]) == plain(pair.get("answer", "")):
        counts["right suggestions left out"] += 1
        del pair["suggested"]
    return {f: value for f, value in pair.items() if value not in ([], {})}

def read_rows(path):
    """The rows of a file, whichever format it has."""
    with open(path, "rb") as file:
        data = file.read()
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    text = data.decode("utf-8-sig").strip()
    if not text.startswith(("{", "[")):
        tab = "\t" if "\t" in text.partition("\n")[0] else ","
        return [*csv.DictReader(re.split(r"(?<=\n)", text), delimiter=tab, strict=True)]
    rows = json.loads("[" + re.sub(r"\}\s*[\r\n]\s*\{", "},\n{", text) + "]")  # or JSONL
    top = rows[0] if len(rows) == 1 else rows
    if isinstance(top, dict) and not any({*s[:2]} <= {*top} for s in SHAPES):
        lists = [v for v in top.values() if isinstance(v, list)]
        facts = [{"safety_fact": f, "prompt": p} for f, v in top.items()
                 if isinstance(v, dict) for p in v.get("prompts", [])]
        top = facts or (lists[0] if len(lists) == 1 else top)
    return top if isinstance(top, list) else [top]

def main(path):
    rows, pairs, counts = read_rows(path), [], Counter()
    for row in rows:
        try:
            pairs.append(convert(row, counts))
        except Exception as e:  # third-party rows can be wrong in any way
            counts[f"skipped: {e if type(e) is ValueError else 'unknown format'}"] += 1
    note = "".join(f"; {n} {what}" for what, n in counts.items())
    if not pairs:
        found = [*rows[0]] if rows and isinstance(rows[0], dict) else rows[:1]
        raise ValueError(f"no pairs in {len(rows)} rows{note}; found {str(found)[:300]}, "
                         f"expected {', '.join(f'{s[0]} + {s[1]}' for s in SHAPES)}")
    with open(1, "wb", closefd=False) as out:  # UTF-8 on any terminal
        out.writelines(json.dumps(p, ensure_ascii=False).encode() + b"\n" for p in pairs)
    has = dict(Counter(f for pair in pairs for f, value in pair.items() if value))
    print(f"{len(rows)} rows read, {len(pairs)} pairs written {has}{note}", file=sys.stderr)
    for s, chats in [(s, pair[s]) for pair in pairs[:2] for s in ("clean", "wrapped")]:
        print(f"{s}: {' | '.join(m['content'] for m in chats)[:100]!r}", file=sys.stderr)

if __name__ == "__main__":
    try:
        main(sys.argv[1]) if sys.argv[1:] and sys.argv[1] != "--help" else print(__doc__)
    except Exception as e:  # one line, whatever is wrong with the file
        print(f"error: {' '.join(sys.argv[1:])!r}: {e}", file=sys.stderr)
        sys.exit(2)
