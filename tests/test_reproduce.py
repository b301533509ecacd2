"""data/reproduce.py, without any training."""
import json
from types import SimpleNamespace

import pytest

from data import reproduce

@pytest.fixture
def place(tmp_path, monkeypatch):
    """reproduce.py in an empty folder, with an experiment of two runs."""
    runs = [("a-sft", "train_sft.py", ""), ("a-opct", "opct.py", "--lr 1")]
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"embedded": runs, "chat-model": runs})
    return tmp_path

def results(value):
    """What results.json of a run holds."""
    m = {"value": value, "low": value - .1, "high": value + .1, "n": 40, "clusters": 20}
    config = dict(task="sycophancy", steps=100, prompts=8, samples=4, eval_questions=0,
                  max_new_tokens=24)
    return {"config": config, "versions": {}, "hardware": {}, "seconds": 90,
            "before": {"unseen": {"follow_wrapped": m}},
            "after": {"unseen": {"follow_wrapped": m}}}

def test_the_results_page_shows_what_the_files_hold():
    page = (reproduce.RESULTS / "README.md").read_text(encoding="utf-8")
    assert reproduce.filled(page) == page and page.count("<!-- table: ") >= 10

def test_a_table_has_mean_range_interval_and_n_of_the_seeds(place):
    for seed, value in enumerate((.2, .4)):
        reproduce.add("embedded", {"arm": "opct", "name": f"x-seed{seed}"} | results(value))
    table = reproduce.filled("<!-- table: embedded-long -->\nold\n<!-- end -->\n")
    assert "| unseen.follow_wrapped | 0.200 [0.100, 0.300] n 40 in 20 " \
           "| 0.300 (0.200–0.400) [0.100, 0.500] n 40 in 20 |\n" in table
    assert "x (2): 100 × 32" in table and "| 1.5 |" in table and "old" not in table

def test_run_resumes_what_has_begun_and_skips_what_is_done(place, monkeypatch, capsys):
    calls = []

    def stub(argv, **_):
        calls.append(" ".join(argv[1:]))
        folder = place / argv[-1]  # of --out or --resume
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").touch()
        if "--lr" not in argv:
            (folder / "results.json").write_text(json.dumps(results(.5)))
        return SimpleNamespace(returncode=9 if "--lr" in argv else 0)
    monkeypatch.setattr(reproduce.subprocess, "run", stub)
    command = "run embedded --seeds 1".split()
    assert [reproduce.main(command) for _ in range(3)] == [2, 0, 0]
    assert "a-opct-seed0 failed with exit code 9" in capsys.readouterr().err
    assert calls == ["train_sft.py --seed 0 --out out/reproduce/embedded-a-sft-seed0",
                     "opct.py --lr 1 --seed 0 --out out/reproduce/embedded-a-opct-seed0",
                     "opct.py --resume out/reproduce/embedded-a-opct-seed0"]
    assert [run["arm"] for run in reproduce.load("embedded")["runs"]] == ["sft", "opct"]

@pytest.mark.parametrize("command", ["run", "run chat-model", "run chat-model --model none",
                                     "run embedded --only (", "fill none.md"])
def test_a_wrong_command_is_refused_in_one_line(place, command, capsys):
    assert reproduce.main(command.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
