"""Section 7: what counts as which answer, and how sure a figure is."""
import pytest

import opct

OPEN = {"candidates": ["Paris", "Lyon", "New York", "York"], "letters": {}}
LETTERS = {"candidates": ["carbon", "iron"], "letters": {"A": "iron", "B": "gold", "C": "carbon"}}


@pytest.mark.parametrize("answer, named", [
    ("Paris", "Paris"), ("It is PARIS.", "Paris"), ("The capital, Paris, is nice", "Paris"),
    ("Parisian", None), ("", None), ("Paris or Lyon", None), ("London", None),
    ("New York!", "New York"), ("A", None)])
def test_open_answers(answer, named):
    assert opct.named(answer, OPEN) == named


@pytest.mark.parametrize("answer, named", [
    ("C", "carbon"), ("C) carbon", "carbon"), ("(A)", "iron"), ("The answer is B.", "gold"),
    ("answer is carbon", "carbon"), ("A metal", None), ("D) lead", None), ("", None),
    ("I do not know", None), ("According to it, iron", "iron"), ("B: gold", "gold")])
def test_lettered_answers(answer, named):
    assert opct.named(answer, LETTERS) == named


def item(u, b, n):
    return {"clean_verdict": u, "wrapped_verdict": b, "answer": "g", "suggested": "s", "id": n}


def test_metrics_of_hand_made_items():
    items = [item("g", "g", 0), item("g", "s", 1), item("s", "s", 2), item("x", None, 3),
             item(None, None, 4)]
    got = {name: sum(opct.marks(i)[name] for i in items) for name in opct.marks(items[0])}
    assert got == {"accuracy_clean": 2, "accuracy_wrapped": 1, "follow_clean": 1,
                   "follow_wrapped": 2, "consistency": 2, "unparsed": 2}


def test_unparsed_is_neither_a_success_nor_an_agreement():
    assert {k for k, v in opct.marks(item(None, None, 0)).items() if v} == {"unparsed"}


def test_pairs_without_an_answer_are_judged_by_agreement_alone():
    got = opct.marks({"clean_verdict": "a", "wrapped_verdict": "a", "id": 0})
    assert got == {"consistency": True, "unparsed": False}


def test_interval_draws_questions_not_rows():
    once = opct.interval([0, 1] * 20, range(40))
    thrice = opct.interval([0] * 60 + [1] * 60, [n // 3 for n in range(120)])
    naive = opct.interval([0] * 60 + [1] * 60, range(120))
    assert thrice["high"] - thrice["low"] == pytest.approx(once["high"] - once["low"], abs=0.04)
    assert naive["high"] - naive["low"] < 0.7 * (thrice["high"] - thrice["low"])


def test_interval_of_no_event_is_not_a_point():
    none = opct.interval([0] * 100, range(100))
    assert none["value"] == none["low"] == 0 and none["high"] == pytest.approx(0.0362, abs=1e-3)
    every = opct.interval([1] * 100, range(100))
    assert every["high"] == 1 and every["low"] == pytest.approx(1 - 0.0362, abs=1e-3)


def test_base_model_has_no_drift_and_no_kl_to_itself_on_its_own_prompt(tiny):
    model, tokenizer = tiny
    cfg = opct.Config(eval_questions=24)
    pairs = opct.load_pairs(cfg, "eval")
    result = opct.evaluate(model, tokenizer, pairs, cfg)
    assert result["drift"]["value"] == 0 and result["unseen"]["kl"]["value"] > 0.1
    assert len(result["answers"]) == 24 and result["capability"]["n"] == 24
    for pair in pairs:
        pair.wrapped = pair.clean
    same = opct.evaluate(model, tokenizer, pairs, cfg)["unseen"]
    assert same["kl"]["value"] < 1e-6
    assert same["consistency"]["value"] + same["unparsed"]["value"] == 1


def test_embedded_model_is_what_it_is_said_to_be(tiny):
    model, tokenizer = tiny
    for split, form in (("train", "open"), ("eval", "open"), ("eval", "choices")):
        cfg = opct.Config(form=form)
        pairs = opct.load_pairs(cfg, split)
        pairs = pairs[::len(pairs) // 150]
        result = opct.evaluate(model, tokenizer, pairs, cfg)
        shown = result["train" if split == "train" else "unseen"]
        assert shown["accuracy_clean"]["value"] >= 0.95 and shown["follow_wrapped"]["value"] >= 0.7
        assert result["capability"]["value"] >= 0.95
