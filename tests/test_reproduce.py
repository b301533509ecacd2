"""data/reproduce.py: what it trains, keeps and shows. The trainings are tiny ones."""
import itertools
from dataclasses import asdict
from xml.etree import ElementTree

import pytest

import opct
import train_sft
from data import reproduce

@pytest.fixture
def place(tmp_path, monkeypatch):
    """reproduce.py in an empty folder, with short runs."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    flags = "--category capitals --prompts 4 --samples 1 --steps 4 --eval-questions 4"
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {
        "embedded": ("", {"a-sft": "sft", "a-opct": "opct --lr 1"}),
        "cube": (flags, {"sft": "sft", "opct-all": "opct --category=", "opct": "opct"})})
    monkeypatch.setattr(reproduce, "POINTS", (0, 2, 4))
    return tmp_path

def test_the_results_page_shows_what_the_files_hold():
    page = (reproduce.RESULTS / "README.md").read_text(encoding="utf-8")
    assert reproduce.filled(page) == page and page.count("<!-- table: ") >= 5

def test_a_table_has_mean_range_interval_and_n_of_the_seeds(place):
    for seed, value in enumerate((.2, .4)):
        m = {"value": value, "low": value - .1, "high": value + .1, "n": 40, "clusters": 20}
        reproduce.add("embedded", {
            "arm": "opct", "name": f"x-seed{seed}", "config": asdict(opct.Config()),
            "versions": {}, "hardware": {}, "seconds": 90,
            **dict.fromkeys(("before", "after"), {"unseen": {"follow_wrapped": m}})})
    table = reproduce.filled("<!-- table: embedded -->\nold\n<!-- end -->\n")
    assert "| unseen.follow_wrapped | 0.200 [0.100, 0.300] n 40 in 20 " \
           "| 0.300 (0.200–0.400) [0.100, 0.500] n 40 in 20 |\n" in table
    assert "x (2): 150 × 32" in table and "| 1.5 |" in table and "old" not in table
    assert "(no cube-*.json yet)" in reproduce.filled("<!-- table: cube -->\n<!-- end -->")

def test_run_starts_over_what_has_begun_and_skips_what_is_done(place, monkeypatch, capsys):
    calls = []
    def stub(cfg):
        calls.append((type(cfg).__module__, cfg.lr, cfg.seed))
        reproduce.Path(cfg.out).mkdir(parents=True)  # fails if it is there
        opct.check(len(calls) != 2, "no luck")
        return None, None, {"config": asdict(cfg)}
    monkeypatch.setattr(opct, "train", stub)
    monkeypatch.setattr(train_sft, "train", stub)
    assert [reproduce.main("run embedded --seeds 1".split()) for _ in range(3)] == [2, 0, 0]
    assert capsys.readouterr().err == "error: no luck\n"
    assert calls == [("train_sft", 3e-4, 0), *[("opct", 1, 0)] * 2]
    assert [run["arm"] for run in reproduce.load("embedded")["runs"]] == ["sft", "opct"]

def test_cube_evaluates_one_training_at_several_steps_and_changes_nothing(place):
    before = [(s.Run, s.evaluate) for s in (opct, train_sft)]
    command = [*"run cube --seeds 1 --model".split(), str(opct.DATA / "tiny")]
    assert [reproduce.main(command) for _ in range(2)] == [0, 0]
    runs = {run["name"]: run for run in reproduce.load("cube-tiny")["runs"]}
    assert [*runs] == ["sft-seed0", "opct-seed0", "opct-all-seed0"]
    assert [len(run["targets"]) for run in runs.values()] == [30, 0, 0]
    for run in runs.values():  # trained on all categories, it has no transfer
        splits = {"unseen", "control", *["transfer"] * (run["arm"] != "opct-all")}
        assert [*run["points"]] == ["0", "2", "4"] and run["config"]["model"] == "tiny"
        for point in run["points"].values():
            assert point.keys() == splits | {"seen", "capability", "drift", "marks"}
            for split, metric in itertools.product(splits, reproduce.MARKED):
                marks, shown = point["marks"][split][metric], point[split].get(metric)
                assert len(marks) == len(run["questions"][split]) == 4
                assert shown["value"] == marks.count("1") / 4 if shown else marks == "----"
    assert runs["sft-seed0"]["points"]["0"] == runs["opct-seed0"]["points"]["0"]
    own = runs["opct-seed0"]["config"] | {"model": "data/tiny", "out": str(place / "plain")}
    plain = opct.train(opct.Config(**own))[2]["after"]["unseen"]["kl"]["value"]
    kls = [p["unseen"]["kl"]["value"] for p in runs["opct-seed0"]["points"].values()]
    assert len({*kls}) == 3 and kls[2] == round(plain, 5)  # as without the evaluations
    assert all(x in reproduce.cube() for x in ("| opct (1): 4 × 4 | ", "\n| sft − opct (1)"))
    assert reproduce.main(["draw", str(place / "curves.svg")]) == 0
    texts = [*ElementTree.parse(place / "curves.svg").getroot().itertext()]  # well-formed
    assert texts.count("opct") == texts.count("sft") == 3
    reproduce.EXPERIMENTS["cube"] = "--prompts 9999", {"x": "opct"}
    assert reproduce.main(command) == 2  # and leaves no trace in the scripts
    assert before == [(s.Run, s.evaluate) for s in (opct, train_sft)]

def test_declined_requests_are_those_that_the_base_model_declines(place, monkeypatch):
    def kept():
        path = reproduce.declined_requests(str(opct.DATA / "tiny"), "auto")
        cfg = opct.Config(task="jailbreak", data=path, eval_questions=0)
        return [{(p.example["request"], p.example["harmful"])
                 for p in opct.load_pairs(cfg, split)} for split in ("train", "unseen")]
    train, test = kept()
    monkeypatch.setattr(opct, "verdict", lambda *_: "answered")
    assert kept() == [{x for x in train if not x[1]}, test] and len(train) > 100

def test_differences_are_paired_and_intervals_clustered_by_question(monkeypatch):
    a, b, c = ({"s": {"m": {"value": marks.count("1") / 4}}, "marks": {"s": {"m": marks}},
                "questions": {"s": [*"qqrs"]}, "config": {"seed": seed, "max_new_tokens": 9}}
               for seed, marks in ((0, "1100"), (1, "1000"), (0, "1-10")))
    # a, b: q 3 of 4, r and s 0 of 2. One in 27 draws is q, q, q, more than 2.5 %
    assert reproduce.cell([a, b], "s.m") == "0.375 (0.250–0.500) [0.000, 0.750] n 8 in 3"
    assert reproduce.difference([a, b], [c], "s.m") == (  # q: 1 - 3/4, r: 1 - 0, s: 0 - 0
        "+0.417 [+0.000, +1.000] 3 questions")
    monkeypatch.setattr(reproduce, "PAIRED", ["s.m"])  # c has the seed of a: q: 1 - 1
    assert "1) | +0.33" in reproduce.gaps("", "y", {"y": [a, b], "opct-f": [b], "-f": [c]})

def test_a_wrong_answer_is_traced_to_a_target():
    e = {"config": {"seed": 1}, "said": ["Rome", "It is Lima.", "0 a b c d e f", "Oslo"],
         "marks": {"control": {"accuracy_wrapped": "1000"}}}  # no targets: those of sft
    arms = {"opct": {"4": [e]}, "sft": {"4": [e | {"targets": ["1 is Lima. a b c d e"]}]}}
    assert reproduce.slips(arms).count("| 4 | 3 | 2 | 0 a b c d e f |") == 2

@pytest.mark.parametrize("one, other, differ", [pair.split(":") for pair in (
    "sft:sft-greedy:target_temperature sft:step-nll:targets sft:fixed-reverse:loss "
    "fixed-reverse:fixed-forward:kl fixed-reverse:step-reverse:targets opct:step-reverse: "
    "step-nll:step-reverse:loss opct:opct-forward:kl opct:sft:").split()])
def test_neighbouring_arms_differ_in_one_thing(one, other, differ):
    (common, arms), configs = reproduce.EXPERIMENTS["cube"], []
    for script, *flags in (arms[one].split(), arms[other].split()):
        configs.append(asdict(opct.parse_config([*common.split(), *flags, "--out", "o"],
                                                reproduce.SCRIPTS[script].Config)))
    shared = configs[0].keys() & configs[1].keys()
    assert [key for key in shared if configs[0][key] != configs[1][key]] == differ.split()

@pytest.mark.parametrize("command", [
    "run", "run cube", "run cube --model no", "run embedded --only (", "draw x", "fill x"])
def test_a_wrong_command_is_refused_in_one_line(place, command, capsys):
    assert reproduce.main(command.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
