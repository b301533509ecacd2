"""Sections 2 and 9: what a pair is, and which data are refused."""
import json

import pytest
from conftest import ROOT

import opct

SPLITS = {"sycophancy": ("train", "unseen", "seen", "control"),
          "jailbreak": ("train", "unseen", "seen"), "safety": ("train", "unseen")}

def rows_of(name):
    return [row for _, row in opct.read_jsonl(ROOT / f"data/{name}.jsonl")]

def splits_of(task, **settings):
    cfg = opct.Config(task=task, eval_questions=0, **settings)
    return {s: opct.load_pairs(cfg, s) for s in SPLITS[task]}

def test_candidates_cannot_be_confused_and_a_safety_prompt_does_not_warn_of_itself():
    for row in rows_of("sycophancy"):
        for c in [row["answer"], *row["wrong"]]:
            assert opct.named(row["question"].rstrip("?"), {"answer": c}) is None, row
            assert opct.named(f"It is {c}.", row) == c, row
    for row in rows_of("safety"):
        assert opct.verdict("safety", row["fact"], row) == "warned", row["id"]
        assert {opct.verdict("safety", p, row) for p in row["prompts"] + row["safe"]} == {
            "silent"}, row["id"]

@pytest.mark.parametrize("task", SPLITS)
def test_no_group_and_no_wording_of_training_is_evaluated(task):
    splits = splits_of(task)
    group = {s: {p.example["group"] for p in pairs} for s, pairs in splits.items()}
    wording = {s: {p.wrapper for p in pairs} for s, pairs in splits.items()}
    assert all(group.values()) and all(p.split == s for s in splits for p in splits[s])
    for split in SPLITS[task][1:]:
        assert not group["train"] & group[split]
        if task != "safety":
            assert (wording[split] == wording["train"]) == (split == "seen")
            assert split == "seen" or not wording["train"] & wording[split]
    assert splits == splits_of(task, seed=1)  # what is measured does not depend on it

def test_the_student_reads_the_bait_the_teacher_does_not_and_all_else_is_alike():
    wordings = {w["id"]: w["text"] for w in rows_of("sycophancy_wrappers")}
    for split, pairs in splits_of("sycophancy").items():
        for p in pairs[::7]:
            [clean], [wrapped], row = p.clean, p.wrapped, p.example
            bait = wordings[p.wrapper].format(suggested=row["suggested"])
            assert wrapped["content"].replace(bait, "").split() == clean["content"].split()
            assert row["suggested"] in {"control": [row["answer"]]}.get(split, row["wrong"])
    for p in splits_of("jailbreak")["unseen"]:
        assert p.clean[0]["content"] == p.example["request"] in p.wrapped[0]["content"]
        assert len(p.wrapped[0]["content"]) > len(p.example["request"]) + 50
    hint = rows_of("safety_wrappers")[0]["text"]
    for p in splits_of("safety")["train"]:  # no hint belongs to a safe prompt
        shown = hint.format(fact=p.example["fact"]) if p.example["danger"] else ""
        assert p.clean == opct.chat(p.wrapped[0]["content"], shown) and "{fact}" in hint

@pytest.fixture
def own(tmp_path):
    """Write lines (rows or bytes) to a file. -> the Config that reads it"""
    def config(*lines, **settings):
        lines = [json.dumps(x).encode() if isinstance(x, dict) else x for x in lines]
        (tmp_path / "own.jsonl").write_bytes(b"\n".join(lines))
        return opct.Config(data=str(tmp_path / "own.jsonl"), out=str(tmp_path / "out"),
                           **{"prompts": 1, "eval_questions": 0, **settings})
    return config

def good(n, **more):
    return {"clean": f"What is {n}?", "wrapped": f"Surely 4. What is {n}?", **more}

def said_by(*roles):
    return {"clean": [{"role": r, "content": "x"} for r in roles], "wrapped": "a"}

def test_own_pairs_are_text_or_chats_and_the_split_is_theirs_or_a_fifth_of_groups(own):
    talk = said_by("system", "user", "assistant", "user")
    rows = [good(n, group=str(n // 2)) for n in range(12)]
    rows += {**talk, "split": "train"}, b""
    train, held = (opct.load_pairs(own(*rows), s) for s in ("train", "unseen"))
    again = opct.load_pairs(own(*rows[::-1]), "train")
    groups = [{p.example["group"] for p in pairs} for pairs in (train, held, again)]
    assert len(held) == 4 and len(groups[1]) == 2 and groups[0] == groups[2]
    assert train[-1].clean == talk["clean"] and train[-1].wrapped == opct.chat("a")
    with_mark = b"\xef\xbb\xbf" + json.dumps(good(0, split="test")).encode()
    cfg = own(with_mark, good(1, split="train"), good(2, split="test"))
    assert [p.clean for p in opct.load_pairs(cfg, "unseen")] == [
        opct.chat("What is 0?"), opct.chat("What is 2?")]

WRONG = [(good(1, suggestd="4"), "suggestd"), (good(1, answer=4), "answer"),
    ({"prompt": "a", "completion": "b"}, "has prompt, completion"),
    ({"clean": "a"}, "wrapped"), (good(1, suggested=float("nan")), "suggested"),
    (good(1, wrong="5"), "wrong"), (good(1, aliases={"4": "four"}), "aliases"),
    (good(1, group=7), "group"), (good(1, clean=[{"role": "user"}]), "content"),
    ({"clean": " ", "wrapped": "a"}, "clean"), ({"clean": [], "wrapped": "a"}, "clean"),
    (good(1, answer="Köln", suggested="KÖLN!"), "suggested"),
    (said_by("user", "assistant"), "chat"), (said_by("user", "user"), "chat"),
    (said_by("developer", "user"), "chat"), (b'{"clean": "a\\ud800", "wrapped": "b"}', ""),
    (b'{"clean": "a", "wrap', "JSON"), (b'{"clean": ' + b"9" * 5000 + b"}", "JSON"),
    (b"[1, 2]", "object"), (b"clean,wrapped", "data/convert.py"), (b"[" * 50_000, "JSON")]

@pytest.mark.parametrize("task, row, words", [("sycophancy", *case) for case in WRONG] + [
    ("jailbreak", good(1), "harmful"), ("jailbreak", good(1, harmful="yes"), "harmful"),
    ("safety", good(1, danger=True), "warning"),
    ("safety", good(1, danger=1, warning=["x"]), "danger"),
    ("safety", good(1, danger=True, warning=["(", ")"]), "missing )")])
def test_a_wrong_row_is_refused_with_file_line_and_field(task, row, words, own):
    right = {"jailbreak": {"harmful": True}, "safety": {"danger": True, "warning": ["x"]}}
    with pytest.raises(opct.UserError) as e:
        opct.prepare(own(good(8, **right.get(task, {})), b"", row, task=task))
    assert "own.jsonl, line 3" in str(e.value) and words in str(e.value)

@pytest.mark.parametrize("lines, words", [
    ([b'{"clean": "\xe9", "wrapped": "b"}'], "own.jsonl"), ([b" "], "own.jsonl"),
    ([good(1, split="eval"), good(2, split="eval")], "split"),
    ([good(1, split="train", group="a"), good(2, split="test", group="a")], "group"),
    ([{"clean": f"{n}", "wrapped": f"{n}"} for n in range(3)], "wrapped and clean"),
    ([good(n) for n in range(4)], "--prompts 4: .*3 ")])
def test_a_file_that_cannot_be_trained_on_is_refused(lines, words, own):
    with pytest.raises(opct.UserError, match=words):
        opct.prepare(own(*lines, prompts=4 if "prompts" in words else 1))

def test_training_is_on_the_named_categories_and_transfer_on_all_others():
    cfg = opct.Config(category="capitals, colors", eval_questions=0)
    train, unseen, transfer = ({p.example["category"] for p in opct.load_pairs(cfg, split)}
                               for split in ("train", "unseen", "transfer"))
    assert train == unseen == {"capitals", "colors"} and len(transfer - train) == 15
