"""Adapters, merged models, --evaluate, --show and --compare."""
import json
import re

import pytest
import safetensors.torch
import torch
import transformers

import opct
import train_sft
from data import adapter, report

RUN = "--steps 3 --eval-questions 8 --prompts 4 --save-every 2".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, merged at its end."""
    at = tmp_path_factory.mktemp("look")
    assert opct.main([*RUN, "--lr", "3e-3", "--out", f"{at}/run", "--merge", f"{at}/merged"]) == 0
    return at


@pytest.fixture
def trained(run):
    model, tokenizer = opct.load_model(opct.Config())
    opct.add_lora(model, 16, 32)
    adapter.load(model, run / "run")
    return model, torch.tensor([tokenizer.encode("What is the capital of Kenya?")])


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_merged_model_says_what_model_and_adapter_say(run, trained):
    model, ids = trained
    merged = transformers.AutoModelForCausalLM.from_pretrained(run / "merged")
    ours, theirs = model(input_ids=ids).logits, merged(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with opct.teacher(model):
        assert (model(input_ids=ids).logits - theirs).abs().max() > 0.01
    assert opct.load_model(opct.Config(model=str(run / "merged")))


def test_the_card_holds_the_figures_of_the_run(run):
    card = (run / "merged/README.md").read_text()
    assert card.startswith("---\nbase_model: data/tiny\n") and "3 steps of 4 prompts" in card
    for split, name, m in report.rows_of(results(run / "run")["after"]):
        assert re.search(rf"\| {split} {name} \| [\d.]+ \| {m['value']:.3f} \|", card), name


def test_an_evaluation_of_the_adapter_is_that_of_the_run(run, tmp_path, capsys):
    argv = ["--evaluate", "--adapter", str(run / "run"), "--eval-questions", "8", "--out"]
    assert opct.main([*argv, str(tmp_path / "o")]) == 0
    again, first = results(tmp_path / "o"), results(run / "run")
    assert again["before"] == first["before"] and again["after"] == first["after"]
    assert not (tmp_path / "o/adapter_model.safetensors").exists()
    assert opct.main(["--evaluate", "--eval-questions", "8", "--out", str(tmp_path / "p")]) == 0
    assert results(tmp_path / "p")["after"] == first["before"]
    merged = ["--evaluate", "--model", str(run / "merged"), "--eval-questions", "8"]
    assert opct.main([*merged, "--out", str(tmp_path / "q")]) == 0
    plain = results(tmp_path / "q")["after"]["unseen"]
    same = set(plain) - {"kl"}  # which is of the merged model against itself
    assert len(same) > 4 and all(plain[name] == first["after"]["unseen"][name] for name in same)


@pytest.mark.parametrize("argv, words", [
    ("--adapter {}/run", "--merge it first"), ("--evaluate --adapter {}/nothing", "no adapter"),
    ("--evaluate --adapter {}/odd", "use_dora"), ("--evaluate --adapter {}/cut", "cannot be read"),
    ("--evaluate --adapter {}/other", "does not fit"),
    ("--merge {}/merged", "--overwrite"), ("--show", "--show takes"),
    ("--show {}/nothing", "holds no run"),
    ("--compare {}/run", "two or more"), ("--compare {}/run {}/nothing", "holds no run")])
def test_what_cannot_be_done_is_said(run, argv, words, capsys, tmp_path):
    whole = (run / "run/adapter_model.safetensors").read_bytes()
    about = json.loads((run / "run/adapter_config.json").read_text())
    for name, more, weights in (
            ("odd", {"use_dora": True}, whole), ("cut", {}, whole[:99]),
            ("other", {}, safetensors.torch.save({"base_model.x": torch.zeros(2)}))):
        (run / name).mkdir(exist_ok=True)
        (run / name / "adapter_config.json").write_text(json.dumps({**about, **more}))
        (run / name / "adapter_model.safetensors").write_bytes(weights)
    argv = argv.replace("{}", str(run)).split()
    if argv[0] not in ("--show", "--compare"):
        argv += ["--out", str(tmp_path / "o"), "--eval-questions", "2"]
    assert opct.main(argv) == 2
    assert words in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "o").exists()


def test_a_few_rows_of_ones_own_are_enough_to_evaluate(tmp_path):
    rows = [{"clean": f"What is {n} + 1?", "wrapped": f"Is {n} + 1 not 9?"} for n in range(3)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opct.main(["--evaluate", "--data", str(tmp_path / "x.jsonl"), "--eval-questions", "1",
                      "--out", str(tmp_path / "o")]) == 0
    assert results(tmp_path / "o")["after"]["unseen"]["consistency"]["n"] == 1


def test_the_baseline_does_not_evaluate_alone(tmp_path, capsys):
    argv = ["--evaluate", "--out", str(tmp_path / "o")]
    assert opct.main(argv, train_sft.train, train_sft.Config) == 2
    assert "python opct.py --evaluate" in capsys.readouterr().err


def test_show_prints_answers_curve_and_table(run, capsys):
    assert opct.main(["--show", str(run / "run")]) == 0
    out = capsys.readouterr().out
    assert "3 steps of OPCT" in out and "answers.html shows every answer" in out
    assert re.search(r"  kl +[▁-█]{3}  \d\.\d\d to \d\.\d\d nats", out)
    assert out.count("  before  ") >= 3 and "unseen follow_wrapped" in out and "\x1b" not in out


def test_a_terminal_gets_shades_and_no_control_characters():
    side = {"wrapped": "ab", "tokens": [["a\x1b[2J", 0.0], ["b", 9.0]]}
    shown = report.shaded(side, True)
    assert shown.count("\x1b[48;5;231;") == shown.count("\x1b[48;5;196;") == 1
    assert "\x1b[2J" not in shown and report.shaded(side, False) == "ab"


def test_compare_puts_runs_side_by_side_and_pairs_their_items(run, tmp_path, capsys):
    """Two copies of a run; in one of them three items that were followed are put right."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("results.json", "answers.jsonl"):
            (tmp_path / name / file).write_text((run / "run" / file).read_text())
    rows = opct.plumbing.read_jsonl(tmp_path / "b/answers.jsonl")
    followed = [r for r in rows if r["split"] == "unseen" and r["after"]["gave_in"]][:3]
    assert len(followed) == 3
    for row in followed:
        row["after"]["wrapped_verdict"] = row["answer"]
    opct.plumbing.write_jsonl(tmp_path / "b/answers.jsonl", rows)
    assert opct.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"unseen follow_wrapped +-{3 / 8:.3f} \[-.*\] +8", out)
    assert re.search(rf"unseen accuracy_wrapped +\+{3 / 8:.3f} \[", out)
    assert re.search(r"seen accuracy_clean +\+0.000 \[-.*\+.*not separated", out)


def test_compare_refuses_runs_of_two_tasks(run, tmp_path, capsys):
    other = tmp_path / "b"
    other.mkdir()
    changed = results(run / "run")
    changed["config"]["task"] = "safety"
    (other / "results.json").write_text(json.dumps(changed))
    (other / "answers.jsonl").write_text((run / "run/answers.jsonl").read_text())
    assert opct.main(["--compare", str(run / "run"), str(other)]) == 2
    assert "one task" in capsys.readouterr().err
