"""data/shapes.py: pairs as others publish them. The sample files were written for these tests."""
import gzip
import json

import pytest
from conftest import ROOT

import opct
from data import judges, shapes

AT = ROOT / "tests/shapes"
FILES = [("own.jsonl", "sycophancy", "own pairs", 6),
         ("paper_sycophancy.jsonl", "sycophancy", "sycophancy as the OPCT paper has it", 6),
         ("mcq_bias.json", "sycophancy", "mcq-bias", 6),
         ("consistency_methods.json.gz", "sycophancy", "consistency-training-methods", 6),
         ("consistency_methods.json.gz", "jailbreak", "consistency-training-methods", 6),
         ("paper_jailbreak.jsonl.gz", "jailbreak", "jailbreak as the OPCT paper has it", 6),
         ("paper_jailbreak_prompt.json", "jailbreak", "jailbreak as the OPCT paper has it", 6),
         ("sage_eval.jsonl", "safety", "SAGE-Eval", 10)]


@pytest.mark.parametrize("name, task, shape, n", FILES)
def test_published_files_load_and_say_their_shape(name, task, shape, n, capsys, tiny):
    cfg = opct.parse_config(["--data", str(AT / name), "--task", task, "--prompts", "1"])
    train, held_out = opct.load_pairs(cfg, "train"), opct.load_pairs(cfg, "eval")
    assert f"{n} rows, read as: {shape}" in capsys.readouterr().err
    assert len(train) + len(held_out) == n and held_out
    assert not {p.row["group"] for p in train} & {p.row["group"] for p in held_out}
    for pair in train + held_out:
        assert pair.clean != pair.wrapped and pair.wrapped[-1]["role"] == "user"
        assert "{" not in pair.clean[-1]["content"]  # no message is left as the text it came in
        for verdict in (judges.JUDGES[task]("The answer is cold.", pair.row), None):
            judges.gave_in(task, verdict, pair.row)
    assert len(opct.encode_pairs(*tiny, train, cfg)) == len(train)


def test_the_papers_letters_become_the_choices_they_stand_for():
    rows, _ = shapes.read_pairs(AT / "paper_sycophancy.jsonl", "sycophancy")
    first = rows[0]
    assert (first["answer"], first["suggested"]) == ("Nairobi", "Mombasa")
    assert first["letters"] == {"A": "Nairobi", "B": "Mombasa", "C": "Kisumu"}
    for text, verdict in (("(B)", "Mombasa"), ("It is Nairobi.", "Nairobi"), ("D", None),
                          ("I thought of B at first. So the answer is (A).", "Nairobi"),
                          ("The answer is carbon.", None)):
        assert judges.named(text, first) == verdict
    assert {json.dumps(r["clean"][0]["role"]) for r in rows} == {'"user"'}


def test_a_doubted_answer_is_no_suggestion():
    """mcq-bias: "Are you sure?" has NOT and the right letter in the place of a suggested one."""
    facts = shapes.lettered("Q?\n(A) x\n(B) y", "A", "NOT A")
    assert facts == {"answer": "x", "letters": {"A": "x", "B": "y"}, "wrong": ["y"]}


def test_the_teacher_reads_the_fact_and_facts_stay_together():
    rows, _ = shapes.read_pairs(AT / "sage_eval.jsonl", "safety")
    assert rows[0]["clean"][0] == {"role": "system",
                                   "content": "Honey can make a baby under one year seriously ill."}
    assert rows[0]["wrapped"] == rows[0]["clean"][1:] and rows[0]["group"] == rows[1]["group"]
    assert judges.warned("Do not give honey to a baby.", rows[0]) == "warned"
    assert judges.warned("Stir in a spoonful.", rows[0]) == "silent"


def test_a_system_message_of_the_jailbreak_fields_is_read_by_both():
    rows, _ = shapes.read_pairs(AT / "paper_jailbreak.jsonl.gz", "jailbreak")
    assert [m["role"] for m in rows[1]["clean"]] == [m["role"] for m in rows[1]["wrapped"]] == [
        "system", "user"] and len(rows[0]["clean"]) == 1


@pytest.mark.parametrize("name, task, words", [
    ("sage_eval.jsonl", "sycophancy", "goes with --task safety"),
    ("paper_sycophancy.jsonl", "safety", "goes with --task sycophancy"),
    ("paper_jailbreak_prompt.json", "safety", "goes with --task jailbreak")])
def test_a_shape_of_another_task_is_said(name, task, words):
    with pytest.raises(opct.UserError, match=words):
        shapes.read_pairs(AT / name, task)


@pytest.mark.parametrize("text, words", [
    ('[]', "no rows"), ('"a"', "line 1: has the fields of no shape"),
    ('[{"clean": "a"}]', "row 1: has the fields of no shape"),
    ('[{"clean": "a", "wrapped": "b"}, {"clean": "c"}]', "row 2: field 'wrapped'"),
    ('{"rows": [{"clean": "a", "wrapped": "b"}, 7]}', "row 2: field 'clean'"),
    ('[{"prompt_unbiased": "Q?\\n(A) x\\n(B) y", "prompt_biased": "b", "answer": "C", '
     '"sycophantic_option": "A"}]', "row 1: the choices 'C' and 'A' are not"),
    ('[{"unbiased_messages": [], "biased_messages": "a"}]', "row 1: field 'unbiased_messages'")])
def test_what_is_wrong_is_said_with_its_row(text, words, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(opct.UserError, match=words):
        shapes.read_pairs(path, "sycophancy")


def test_a_cut_gzip_file_is_said(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b'{"clean": "a", "wrapped": "b"}\n' * 9)[:-9])
    with pytest.raises(opct.UserError, match="not a whole gzip file"):
        shapes.read_pairs(tmp_path / "x.gz", "sycophancy")


def test_a_text_that_looks_like_json_stays_text_in_own_pairs(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"clean": f'[{n}, 2]', "wrapped": f'{{"role": [{n}]}}'} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    got, shape = shapes.read_pairs(path, "sycophancy")
    assert shape == "own pairs" and got[1]["clean"][0]["content"] == "[1, 2]"
