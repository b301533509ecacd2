"""Section 2, and the data that section 9 reads: what a pair is, and what is refused."""
import json
from collections import Counter

import pytest
from conftest import ROOT

import opct

SPLITS = {"sycophancy": ("train", "unseen", "seen", "control"),
          "jailbreak": ("train", "unseen", "seen"), "safety": ("train", "unseen")}


def rows_of(name):
    return [row for _, row in opct.read_jsonl(ROOT / f"data/{name}.jsonl")]


def splits_of(task="sycophancy", **settings):
    cfg = opct.Config(task=task, eval_questions=0, **settings)
    return {s: opct.load_pairs(cfg, s) for s in SPLITS[task]}


def texts(messages):
    return [m["content"] for m in messages]


def test_there_is_enough_data_and_every_question_is_asked_once():
    rows, frames = rows_of("sycophancy"), rows_of("jailbreak_wrappers")
    assert len({r["question"].lower() for r in rows}) == len({r["id"] for r in rows}) >= 600
    assert min(Counter(r["category"] for r in rows).values()) >= 20
    asked = Counter(r["harmful"] for r in rows_of("jailbreak"))
    assert min(asked.values()) >= 120 and len(frames) >= 28
    assert len(rows_of("safety")) >= 60 and len(rows_of("capability")) >= 400
    kinds = {s: {f["kind"] for f in frames if f["split"] == s} for s in ("train", "eval")}
    assert not kinds["train"] & kinds["eval"]


def test_the_candidates_of_a_question_cannot_be_confused():
    for row in rows_of("sycophancy"):
        candidates = [row["answer"], *row["wrong"]]
        for c in candidates:
            assert not opct.says(row["question"], c), row
            assert [d for d in candidates if opct.says(d, c)] == [c], row


def test_a_safety_prompt_does_not_warn_of_itself_and_its_fact_does():
    for row in rows_of("safety"):
        assert opct.verdict("safety", row["fact"], row) == "warned", row["id"]
        for prompt in row["prompts"] + row["safe"]:
            assert opct.verdict("safety", prompt, row) == "silent", prompt


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


def test_sycophancy_suggests_a_wrong_answer_in_control_the_right_one_and_nothing_else():
    wordings = {w["id"]: w for w in rows_of("sycophancy_wrappers")}
    for split, pairs in splits_of().items():
        for p in pairs[::7]:
            clean, wrapped, row = p.clean[0]["content"], p.wrapped[0]["content"], p.example
            right = row["suggested"] == row["answer"]
            assert right if split == "control" else row["suggested"] in row["wrong"]
            bait = wordings[p.wrapper]["text"].format(suggested=row["suggested"])
            assert wrapped.replace(bait, "").split() == clean.split()


def test_jailbreak_student_reads_the_frame_teacher_the_request_and_twins_stay_together():
    for split, pairs in splits_of("jailbreak").items():
        for p in pairs[::7]:
            (clean,), (wrapped,) = texts(p.clean), texts(p.wrapped)
            assert clean == p.example["request"] in wrapped
            assert len(wrapped) > len(clean) + 50
    twins = {}
    for row in rows_of("jailbreak"):
        twins.setdefault(row["id"].rpartition("-")[0], []).append(row)
    for two in twins.values():
        assert {r["harmful"] for r in two} == {True, False} and len(two) == 2
        assert two[0]["split"] == two[1]["split"]


def test_safety_teacher_reads_the_fact_unless_the_prompt_is_safe():
    for p in splits_of("safety")["train"]:
        assert p.wrapped == p.clean[-1:] and texts(p.clean[:-1]) == (
            [p.example["fact"]] if p.example["danger"] else [])


@pytest.fixture
def own(tmp_path):
    """Write lines (dicts, text or bytes) to a file. -> the Config that reads it."""
    def config(*lines, **settings):
        lines = [json.dumps(x) if isinstance(x, dict) else x for x in lines]
        whole = b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines)
        (tmp_path / "own.jsonl").write_bytes(whole)
        return opct.Config(data=str(tmp_path / "own.jsonl"), out=str(tmp_path / "out"),
                           **{"prompts": 1, "eval_questions": 1, **settings})
    return config


def good(n, **more):
    return {"clean": f"What is {n}?", "wrapped": f"Surely 4. What is {n}?", **more}


def test_own_pairs_are_text_or_chats_and_every_fifth_group_is_held_out(own):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "7"}]
    lines = [good(n, id=str(n), group=str(n // 2)) for n in range(11)] + [
        {"clean": talk, "wrapped": talk}]
    cfg = own(*lines, "", eval_questions=0)
    train, held = (opct.load_pairs(cfg, s) for s in ("train", "unseen"))
    assert [p.example["group"] for p in held] == ["0", "0", "5"]
    assert len(train) == 9 and train[-1].clean == train[-1].wrapped == talk
    assert held[0].clean == [{"role": "user", "content": "What is 0?"}]


def test_a_split_that_own_rows_name_is_kept_and_a_byte_order_mark_is_none_of_the_text(own):
    first = b"\xef\xbb\xbf" + json.dumps(good(0, split="test")).encode()
    cfg = own(first, good(1, split="train"), good(2, split="test"), eval_questions=0)
    assert [p.clean[0]["content"] for p in opct.load_pairs(cfg, "unseen")] == [
        "What is 0?", "What is 2?"]


def said_by(*roles):
    return [{"role": r, "content": "x"} for r in roles]


@pytest.mark.parametrize("line, words, task", [
    (good(1, suggestd="4"), "suggestd", "sycophancy"),
    (good(1, anwser="4"), "anwser", "sycophancy"),
    ({"prompt": "a", "completion": "b"}, "has prompt, completion", "sycophancy"),
    ({"clean": "a"}, "wrapped", "sycophancy"),
    (good(1), "harmful", "jailbreak"), (good(1, danger=True), "warning", "safety"),
    (good(1, answer=4), "answer", "sycophancy"),
    (good(1, suggested=float("nan")), "suggested", "sycophancy"),
    (good(1, wrong="5"), "wrong", "sycophancy"), (good(1, id=7), "id", "sycophancy"),
    (good(1, aliases={"4": "four"}), "aliases", "sycophancy"),
    ({"clean": " ", "wrapped": "a"}, "clean", "sycophancy"),
    ({"clean": 7, "wrapped": "a"}, "clean", "sycophancy"),
    ({"clean": [], "wrapped": "a"}, "clean", "sycophancy"),
    (good(1, harmful="yes"), "harmful", "jailbreak"),
    (good(1, danger=1, warning=["x"]), "danger", "safety"),
    (good(1, danger=True, warning=["("]), "missing )", "safety"),
    (good(1, answer="Lyon", suggested="LYON"), "suggested", "sycophancy"),
    (good(1, answer="Köln", suggested="köln!"), "suggested", "sycophancy"),
    ({"clean": said_by("user", "assistant"), "wrapped": "a"}, "chat", "sycophancy"),
    ({"clean": "a", "wrapped": said_by("user", "user")}, "chat", "sycophancy"),
    ({"clean": said_by("developer", "user"), "wrapped": "a"}, "chat", "sycophancy"),
    ({"clean": [{"role": "user"}], "wrapped": "a"}, "content", "sycophancy"),
    ('{"clean": "a\\ud800", "wrapped": "b"}', "", "sycophancy"),
    ('{"clean": "a", "wrapped"', "JSON", "sycophancy"), ("[1, 2]", "object", "sycophancy"),
    ("clean,wrapped", "data/convert.py", "sycophancy"),
    ("[" * 50_000, "JSON", "sycophancy"),
    ('{"a": ' + "9" * 5000 + "}", "JSON", "sycophancy")])
def test_a_wrong_row_is_refused_with_file_line_and_field(line, words, task, own, tiny):
    right = {"jailbreak": {"harmful": True}, "safety": {"danger": True, "warning": ["x"]}}
    cfg = own(good(8, **right.get(task, {})), "", line, task=task)
    with pytest.raises(opct.UserError) as e:
        pairs = [p for s in ("train", "unseen") for p in opct.load_pairs(cfg, s)]
        opct.encode_pairs(*tiny, pairs, cfg)
    assert "own.jsonl, line 3" in str(e.value) and words in str(e.value)


@pytest.mark.parametrize("lines, words", [
    ([b'{"clean": "\xe9", "wrapped": "b"}'], "own.jsonl"), ([], "own.jsonl"),
    (["", " "], "own.jsonl"), (["\x00PAR1"], "own.jsonl"),
    ([good(1, split="train"), good(2)], "split"),
    ([good(1), good(2, split="test")], "split"),
    ([good(1, split="eval"), good(2, split="eval")], "split"),
    ([good(1, split="train", group="a"), good(2, split="test", group="a")], "group"),
    ([{"clean": f"{n}", "wrapped": f"{n}"} for n in range(3)], "wrapped and clean"),
    ([good(n) for n in range(4)], "--prompts 4: .*3 "),
    ([good(n, category="golf") for n in range(4)], "--category chess: .*golf")])
def test_a_file_that_cannot_be_trained_on_is_refused(lines, words, own):
    settings = {"prompts": 4} if "--prompts" in words else (
        {"category": "chess"} if "--category" in words else {})
    with pytest.raises(opct.UserError, match=words):
        opct.prepare(own(*lines, **settings))


def test_an_unknown_category_lists_those_there_are():
    with pytest.raises(opct.UserError, match="--category golf: .*animals.*capitals"):
        opct.load_pairs(opct.Config(category="golf"), "train")
