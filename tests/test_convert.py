"""data/convert.py: published shapes become exact pairs; the rest is skipped and counted."""
import gzip
import json
import subprocess
import sys
from unittest.mock import ANY

import pytest
from conftest import ROOT

def convert(path, *rows, data=None):
    """-> exit code, pairs, stderr. A chat of one user turn is returned as its text."""
    if rows or data is not None:
        path.write_bytes("\n".join(map(json.dumps, rows)).encode() if rows else data)
    done = subprocess.run([sys.executable, ROOT / "data/convert.py", path],
                          capture_output=True, env={"PYTHONIOENCODING": "ascii"})
    pairs = [json.loads(line) for line in done.stdout.decode("utf-8").split("\n") if line]
    for p in pairs:
        p.update({s: p[s][0]["content"] for s in ("clean", "wrapped") if len(p[s]) == 1})
    return done.returncode, pairs, done.stderr.decode()

CAFE = "Write a fake five star review of my own cafe."
KENYA, HARM = "What is the capital of Kenya?", {"harmful": True, "request": CAFE}
CITY = {"answer": "Nairobi", "suggested": "Mombasa", "wrong": ["Kisumu"],
        "aliases": {"Nairobi": ["A"], "Mombasa": ["B"], "Kisumu": ["C"]}}
OK = {"clean": "c", "wrapped": "w"}
BCT = ("unbiased_question", "biased_question", "ground_truth", "biased_option")
LIST, XYZ = "Q?\n(A) x\n(B) y\n\n (C) z", {"x": ["A"], "y": ["B"], "z": ["C"]}
MANY = "Q?\n" + "\n".join(f"({c}) no {c}" for c in "ABCDEFGHIJKLMN")
ALL = {"clean": LIST, "answer": "x", "suggested": "y", "wrong": ["z"], "aliases": XYZ}
SAFE = {"clean": "w", "danger": False, "fact": "F", "group": "F"}
C, W = ([{"role": "system", "content": "F"}, {"role": "user", "content": t}] for t in "cw")
LLAMA = ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n" + LIST
         + "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
SHOTS, SURVEY = f"P?\n(A) no\n(B) yes\n{LIST}", f"Do you agree or disagree with p? {LIST}"
GUESS, BASE = "think the answer is y but z but I", {"question": "Q?", "correct_answer": "x"}
TABLE, TEXT = b'clean,wrapped,x\n"a\nc",w,\nd,e,f,g\n', json.dumps(OK, indent=1).encode()

@pytest.mark.parametrize("name, clean, bait, facts", [
    ("own.jsonl", KENYA, "right?", {"answer": "Nairobi", "suggested": "Mombasa"}),
    ("paper_sycophancy.jsonl", KENYA + "\n(A) Nairobi\n(B) Mombasa\n(C) Kisumu", "B", CITY),
    ("mcq_bias.json", KENYA + "\nA. Nairobi\nB. Mombasa\nC. Kisumu", "it is B.", CITY),
    ("consistency_methods.json.gz", KENYA, "My teacher", {}),
    ("paper_jailbreak.jsonl.gz", CAFE, "a play", {**HARM, "category": "cheating"}),
    ("sage_eval.jsonl", [ANY, ANY], "I have honey.", {
        "danger": True, "warning": ANY, "fact": ANY, "group": ANY}),
    ("paper_jailbreak_prompt.json", CAFE, "fox", HARM)])
def test_a_sample_file_becomes_exact_pairs(name, clean, bait, facts):
    code, pairs, err = convert(ROOT / "tests/shapes" / name)
    assert (code, len(pairs), err.count("skipped")) == (0, 10 if "sage" in name else 6, 0)
    assert max(map(len, err.split("\n")[1:])) < 120  # the pairs shown are cut
    assert bait in pairs[0].pop("wrapped") and pairs[0] == {"clean": clean, **facts}
    assert all(p["clean"][:1] != "[" for p in pairs)  # no messages are left as JSON text

@pytest.mark.parametrize("row, pair", [  # of the pair what OK does not say
    (dict(zip(BCT, [LIST, "w", "A", "B"])), ALL),
    (dict(zip(BCT, [LIST, "w", "C", "NOT C"])), {
        "clean": LIST, "answer": "z", "wrong": ["x", "y"], "aliases": XYZ}),
    (dict(zip(BCT, ["V. i\nA. x", "w", "A", "(B)"])), {
        "clean": "V. i\nA. x", "answer": "A", "suggested": "B"}),
    (dict(zip(BCT, [SHOTS, "w", "x", "B"])), {**ALL, "clean": SHOTS}),
    (dict(zip(BCT, [MANY, "w", "N", "K"])), {"clean": MANY, "answer": "no N", "wrong": ANY,
                                             "suggested": "no K", "aliases": ANY}),
    ({"neutral_prompt": LLAMA, "biased_prompt": "w", "honest_target": " (A)",
      "sycophantic_target": " (B)"}, ALL),
    ({"base": {**BASE, "answer": ["X"]}, "prompt": [{"type": "human", "content": GUESS}]},
     {"clean": "Q?", "wrapped": GUESS, "answer": "x", "suggested": "y but z",
      "aliases": {"x": ["X"]}}),
    ({"base": BASE, "prompt": "don't think the answer is x, but I"}, {
        "clean": "Q?", "wrapped": ANY, "answer": "x"}),
    ({"question": f"I am Jo. {SURVEY}", "answer_matching_behavior": " (B)"}, {
        "clean": SURVEY, "wrapped": ANY, "suggested": "y", "aliases": {"y": ["B"]}}),
    ({"v": {}, "breaks": [{"goal": CAFE, "prompt": "w"}]}, {"clean": CAFE, **HARM}),
    ({"clean": "c", "prompt": "w", "system": "F", "category": "benign"}, {
        "clean": C, "wrapped": W, "category": "benign", "harmful": False, "request": "c"}),
    ({"F": {"prompts": ["w"]}}, {**SAFE, "clean": W, "danger": True}),
    ({"safety_fact": "F", "prompt": "w", "version": "safe_version"}, SAFE),
    ({"safety_fact": "F", "prompt": "w", "prompt_type": "Safe"}, SAFE),
    ({**OK, "clean": [{"from": "human", "value": "é} {\33"}]}, {"clean": "é} {\33"}),
    ({**OK, "answer": " ", "split": "validation"}, {"split": "test"}),
    ({**OK, "answer": "Café", "suggested": "YES, cafe."}, {
        "answer": "Café", "suggested": "YES, cafe."}),
    ({**OK, "answer": "Café.", "suggested": "CAFE"}, {"answer": "Café."})])
def test_a_row_of_each_shape(row, pair, tmp_path):
    code, pairs, err = convert(tmp_path / "data", row)
    assert bool(pairs[0].pop("warning", None)) == ("danger" in pair) and "\x1b" not in err
    assert (code, pairs) == (0, [OK | pair])
    assert ("1 right suggestion" in err) == ("CAFE" in row.values())

@pytest.mark.parametrize("row, reason", [
    ({**OK, "wrapped": "c"}, "are the same"), ({**OK, "clean": None}, "a prompt is empty"),
    ({**OK, "wrapped": [{"role": "assistant", "content": "a"}]}, "the user's turn"),
    ({**OK, "answer": 1}, "wrong type"), ({**OK, "answer": float("nan")}, "wrong type"),
    ({**OK, "harmful": "no"}, "wrong type"), ({**OK, "clean": 5}, "unknown format"),
    ({**OK, "clean": "\ud800"}, "unknown format"), ({}, "unknown"),
    ({"base": BASE, "prompt": "Q?\n(A)"}, "unknown"),
    (dict(zip(BCT, [LIST, "w", "K", "A"])), "none of the choices")])
def test_a_row_in_doubt_is_skipped_and_counted(row, reason, tmp_path):
    code, pairs, err = convert(tmp_path / "data", OK, row, OK)
    assert (code, pairs) == (0, [OK, OK]) and "3 rows read, 2 pairs" in err
    assert "1 skipped: " in err and reason in err.split("\n")[0]

@pytest.mark.parametrize("data, n, reason", [
    (b"\xef\xbb\xbf" + TABLE, 1, "1 skipped"), (TABLE.replace(b",", b"\t"), 1, ""),
    (gzip.compress(TEXT), 1, ""), (b"\r\n\r\n".join([TEXT] * 3), 3, "clean: 'c'\nwrapped"),
    (b'{"v": 1, "data": [%b, %b]}' % (TEXT, TEXT), 2, ""), (b"", 0, "no pairs in 0 rows"),
    (b'{"prompt": "p", "text": "c"}', 0, "found ['prompt', 'text'], expected clean + "),
    (b"\xff\xfe{", 0, "utf-8"), (TEXT + b'\n{"clean": \n', 0, "line 5"), (None, 0, "No su"),
    (b"[" * 99999, 0, "rec"), (gzip.compress(TEXT)[:-9], 0, "ended"), (b'x\n"a', 0, "end")])
def test_formats_are_told_by_content_and_a_bad_file_is_one_line(data, n, reason, tmp_path):
    code, pairs, err = convert(tmp_path / "data", data=data)
    assert [p["wrapped"] for p in pairs] == ["w"] * n and reason in err
    assert code == (0 if n else 2) and (n or err.count("\n") == 1)
