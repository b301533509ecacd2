"""Sections 7 and 9: the files of a run; whatever ends it, --resume continues it as if
nothing had happened. What a step computes: test_loss.py."""
import json
import math
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch as st
import torch
from conftest import ROOT, lines_of
from kills import outcome
from test_cli import WEIGHTS, altered, error_of

import opct
import train_sft

SHORT = dict(category="capitals", prompts=4, samples=2, max_new_tokens=6, eval_questions=4,
             save_every=2, lr=1e-2)

def trained(out, steps, script=opct, **settings):
    return script.train(script.Config(out=str(out), steps=steps, **SHORT | settings))

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 6 steps: its folder, what train() returns. Beside it, in 3, one of 3."""
    out = tmp_path_factory.mktemp("runs") / "6"
    trained(out.with_name("3"), 3)
    return out, *trained(out, 6)

@pytest.fixture
def half(run, tmp_path):
    """A copy of the 3 steps."""
    return shutil.copytree(run[0].with_name("3"), tmp_path / "half")

def test_a_run_leaves_its_files_with_ordinary_permissions(run):
    assert {p.name for p in run[0].iterdir()} == {
        "log.jsonl", "results.json", "answers.jsonl", "checkpoint.pt",
        "adapter_model.safetensors", "adapter_config.json"}
    os.umask(umask := os.umask(0))
    assert {p.stat().st_mode & 0o777 for p in run[0].iterdir()} == {0o666 & ~umask}

def test_results_hold_every_figure_with_its_interval_and_are_what_train_returns(run):
    out, _, _, results = run
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {"config", "versions", "hardware", "seconds"} < results.keys()
    for found in (results["before"], results["after"]):
        shares = {**found["unseen"], "capability": found["capability"]}
        assert {"accuracy_wrapped", "follow_wrapped", "unparsed", "kl"} < shares.keys()
        assert all(m["low"] <= m["value"] <= m["high"] and m["n"] for m in shares.values())
        assert {"seen", "control", "drift"} < found.keys()

def test_what_fell_is_noted_and_what_the_base_model_lacks_left_out(run, tmp_path, capsys):
    a, b = ({**run[3][when], "answers": []} for when in ("before", "after"))
    a["unseen"] = {k: m | {"value": 2} for k, m in a["unseen"].items() if k != "held"}
    there = SimpleNamespace(cfg=opct.Config(), out=tmp_path, began=0, model=run[1])
    opct.Run.results(there, [], a, b)
    assert "accuracy_clean fell" in (out := capsys.readouterr().out) and "\nheld" not in out

def test_log_and_answers_hold_every_step_and_answer(run):
    first, *steps = lines_of(run[0] / "log.jsonl")
    assert first["config"]["steps"] == 6 and "torch" in first["versions"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "truncated", "seconds"} < step.keys() and 8 <= step["tokens"] <= 48
               and step["grad_norm"] > 0 for step in steps)
    answers = lines_of(run[0] / "answers.jsonl")
    assert [a["split"] for a in answers[::4]] == ["unseen", "seen", "control", "transfer",
                                                  "capability"]
    assert all({"clean", "wrapped", "wrapped_verdict"} < a[when].keys()
               for a in answers for when in ("before", "after"))

@torch.no_grad()
def test_the_adapter_is_peft_s_and_merging_it_gives_the_trained_model(run):
    out, model, tokenizer, _ = run
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(ROOT / "data/tiny")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 32)
    tensors = st.load_file(out / "adapter_model.safetensors")
    merged, _ = opct.load_model(opct.Config())
    for name in config["target_modules"]:
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
        merged.get_submodule(name).weight += config["lora_alpha"] / config["r"] * b @ a
    assert not tensors and "model.layers.0.mlp.up_proj" in config["target_modules"]
    ids = torch.tensor([opct.encode(tokenizer, opct.chat("What is the capital of Peru?"))])
    student = model(ids).logits
    torch.testing.assert_close(merged(ids).logits, student, atol=1e-4, rtol=1e-4)
    with opct.teacher(model):
        assert (model(ids).logits - student).abs().max() > 0.1

def argv(out, *more):
    return ["--resume", str(out), *more]

def test_3_and_3_steps_are_6_and_the_settings_come_from_the_checkpoint(run, half):
    free = "--steps 6 --save-every 4 --eval-questions 3 --token-budget 400".split()
    (half / "log.jsonl").unlink()  # it is written again from the checkpoint
    assert opct.main(argv(half, *free)) == 0 and outcome(half) == outcome(run[0])
    was, now = (torch.load(out / "checkpoint.pt")["config"] for out in (run[0], half))
    assert {k for k in was if now[k] != was[k]} == {
        "out", "resume", "save_every", "eval_questions", "token_budget"}

def refused(out, words, capsys, *more):
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert words in error_of(argv(out, *more), capsys)
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}

def test_the_baseline_resumes_too_but_not_by_the_other_script(tmp_path, capsys):
    whole, parts = tmp_path / "4", tmp_path / "2"
    for out, steps in ((whole, 4), (parts, 2)):
        trained(out, steps, train_sft)
    refused(parts, "keeps script", capsys, "--steps", "4")
    assert opct.main(argv(parts, "--steps", "4"), train_sft.train, train_sft.Config) == 0
    assert outcome(parts) == outcome(whole)

@pytest.mark.parametrize("flag", ["lr 1e-4", "seed 7", "task safety", "prompts 2",
                                  "kl sampled", "out x", "category animals", "steps 2"])
def test_what_would_change_the_run_is_refused_beside_resume(flag, half, capsys):
    refused(half, flag.split()[0], capsys, *f"--{flag}".split())

def test_a_notebook_cannot_resume_with_other_settings_either(half):
    saved = opct.parse_config(argv(half))
    with pytest.raises(opct.UserError, match="other lr"):
        replace(saved, lr=1.0)

def test_other_data_are_refused(tmp_path, capsys):
    own, out = tmp_path / "own.jsonl", tmp_path / "o"
    rows = [{"clean": f"{n}, 2 + 2?", "wrapped": "4?"} for n in range(9)]
    own.write_text("\n".join(map(json.dumps, rows)))
    trained(out, 2, data=str(own), category="", prompts=2, eval_questions=2)
    own.write_text(own.read_text().replace("2 + 2", "2 + 3"))
    refused(out, "training data", capsys, "--steps", "4")

def test_a_model_may_move_but_not_change(half, tmp_path, capsys):
    moved = altered(tmp_path / "moved", {})
    assert opct.main(argv(half, "--steps", "4", "--model", moved)) == 0
    other = altered(tmp_path / "other", {WEIGHTS: lambda old: st.save(
        {name: w * 1.001 for name, w in st.load(old).items()}, {"format": "pt"})})
    refused(half, "other training data, weights", capsys, "--steps", "5", "--model", other)

def test_a_damaged_or_missing_checkpoint_is_one_line(half, capsys):
    whole = (half / "checkpoint.pt").read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", b"x"):
        (half / "checkpoint.pt").write_bytes(damaged)
        refused(half, "--resume", capsys)
    (half / "checkpoint.pt").unlink()
    refused(half, "--resume", capsys)

def interrupted(monkeypatch, half, error):
    """Raise the error in step 6, when Adam has made it; saved are steps 2 and 4."""
    adam = torch.optim.Adam.step

    def breaks(self):
        adam(self)
        if len(lines_of(half / "log.jsonl")) == 6:  # the first is no step
            raise error
    monkeypatch.setattr(torch.optim.Adam, "step", breaks)

@pytest.mark.parametrize("error, words", [
    (KeyboardInterrupt, "KeyboardInterrupt"), (MemoryError, "MemoryError"),
    (OSError("disk"), "disk"), (RuntimeError("can't allocate memory"), "--samples"),
    (torch.OutOfMemoryError("CUDA out of memory"), "--token-budget")])
def test_what_ends_a_run_leaves_a_checkpoint(error, words, half, run, monkeypatch, capsys):
    interrupted(monkeypatch, half, error)
    assert words in error_of(argv(half, "--steps", "6"), capsys)
    assert torch.load(half / "checkpoint.pt")["step"] == 4
    monkeypatch.undo()
    if words == "disk":  # the checkpoints are the same
        assert opct.main(argv(half, "--steps", "6")) == 0 and outcome(half) == outcome(run[0])

def test_a_bug_keeps_its_traceback(half, monkeypatch):
    interrupted(monkeypatch, half, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        opct.main(argv(half, "--steps", "6"))

def test_a_gradient_that_is_not_finite_reaches_no_weight(half, monkeypatch, capsys):
    clip = torch.nn.utils.clip_grad_norm_

    def spoiled(params, most):
        params[0].grad.fill_(math.nan if len(lines_of(half / "log.jsonl")) == 6 else 1)
        return clip(params, most)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoiled)
    line = error_of(argv(half, "--steps", "9"), capsys)
    assert "NaN or infinite: lower --lr" in line
    state = torch.load(half / "checkpoint.pt")
    assert state["step"] == 4 and all(x.isfinite().all() for x in state["adapter"].values())

@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(call, half, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")
    before = (half / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(os, call, full)
    assert "No space left" in error_of(argv(half, "--steps", "6"), capsys)
    assert (half / "checkpoint.pt").read_bytes() == before

def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    prepare, log = opct.prepare, tmp_path / "log.jsonl"
    monkeypatch.setattr(opct, "prepare", lambda cfg: (
        prepare(cfg), log.write_text("the first's"))[0])
    with pytest.raises(FileExistsError, match="log.jsonl"):
        trained(tmp_path, 1)
    assert log.read_text() == "the first's"
