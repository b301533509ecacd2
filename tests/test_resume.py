"""Section 9: whatever ends a run, --resume continues it as if nothing had happened."""
import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import safetensors.torch as st
import torch
from test_cli import WEIGHTS, altered

import opct
import train_sft

SHORT = dict(category="capitals", prompts=4, samples=2, max_new_tokens=6, eval_questions=2,
             save_every=2)

def trained(out, script, steps):
    script.train(script.Config(out=str(out), steps=steps, **SHORT))
    return out

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 6 steps; beside it, in the folder 3, the same of 3."""
    folder = tmp_path_factory.mktemp("runs")
    return [trained(folder / f"{n}", opct, n) for n in (3, 6)][1]

@pytest.fixture
def half(run, tmp_path):
    """A copy of the 3 steps."""
    return shutil.copytree(run.parent / "3", tmp_path / "half")

def resume(out, *more, script=opct):
    return opct.main(["--resume", str(out), *more], script.train, script.Config)

def log_of(out):
    """The log without what a clock wrote."""
    steps = map(json.loads, (out / "log.jsonl").read_text().splitlines()[1:])
    return [{k: v for k, v in step.items() if k != "seconds"} for step in steps]

def same(a, b):
    """Bit for bit: adapter, Adam and log."""
    x, y = (torch.load(out / "checkpoint.pt") for out in (a, b))
    p, q = ((out / "adapter_model.safetensors").read_bytes() for out in (a, b))
    torch.testing.assert_close(x["adam"]["state"], y["adam"]["state"], rtol=0, atol=0)
    torch.testing.assert_close(x["adapter"], y["adapter"], rtol=0, atol=0)
    return log_of(a) == log_of(b) and p == q

def test_3_and_3_steps_are_6_and_the_settings_come_from_the_checkpoint(run, half):
    free = "--steps 6 --save-every 4 --eval-questions 3 --token-budget 400".split()
    (half / "log.jsonl").unlink()  # it is written anew from the checkpoint
    assert resume(half, *free) == 0 and same(half, run)
    was, now = (torch.load(out / "checkpoint.pt")["config"] for out in (run, half))
    assert {k for k in was if now[k] != was[k]} == {
        "out", "resume", "save_every", "eval_questions", "token_budget"}

def test_the_baseline_resumes_too_but_not_by_the_other_script(tmp_path, half, capsys):
    whole, parts = (trained(tmp_path / f"{n}", train_sft, n) for n in (4, 2))
    refused(parts, "other script", capsys, "--steps", "4")
    assert resume(parts, "--steps", "4", script=train_sft) == 0 and same(parts, whole)

def refused(out, words, capsys, *more):
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert resume(out, *more) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and words in line
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}

@pytest.mark.parametrize("flag", ["lr 1e-4", "seed 7", "task safety", "prompts 2",
                                  "kl sampled", "out x", "category animals", "steps 2"])
def test_what_would_change_the_run_is_refused_beside_resume(flag, half, capsys):
    refused(half, flag.split()[0], capsys, *f"--{flag}".split())

def test_a_notebook_cannot_resume_with_other_settings_either(half):
    saved = opct.parse_config(["--resume", str(half)])
    with pytest.raises(opct.UserError, match="other lr"):
        replace(saved, lr=1.0)

def test_other_data_are_refused(tmp_path, capsys):
    own, out = tmp_path / "own.jsonl", tmp_path / "o"
    for text in ("2 + 2", "2 + 3"):
        rows = [{"clean": f"{n}, {text}?", "wrapped": "4?"} for n in range(9)]
        own.write_text("\n".join(map(json.dumps, rows)))
        if not out.exists():
            opct.train(opct.Config(**SHORT | {"category": "", "data": str(own), "out": str(out),
                                              "steps": 2, "prompts": 2}))
    refused(out, "training data", capsys, "--steps", "4")

def test_a_model_may_move_but_not_change(half, tmp_path, capsys):
    assert resume(half, "--steps", "4", "--model", altered(tmp_path / "moved", {})) == 0
    other = altered(tmp_path / "other", {WEIGHTS: lambda old: st.save(
        {name: w * 1.001 for name, w in st.load(old).items()}, {"format": "pt"})})
    refused(half, "other weights", capsys, "--steps", "5", "--model", other)

def test_a_damaged_or_missing_checkpoint_is_one_line(half, capsys):
    whole = (half / "checkpoint.pt").read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", b"x"):
        (half / "checkpoint.pt").write_bytes(damaged)
        refused(half, "--resume", capsys)
    (half / "checkpoint.pt").unlink()
    refused(half, "--resume", capsys)

def interrupted(monkeypatch, half, after, error):
    """Resume towards step 6; `error` is raised when Adam has made step `after` + 1."""
    adam = torch.optim.Adam.step

    def breaks(self):
        adam(self)
        if len(log_of(half)) == after:
            raise error
    monkeypatch.setattr(torch.optim.Adam, "step", breaks)

@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError("disk")])
def test_whatever_ends_a_run_its_last_checkpoint_is_whole(error, half, run, monkeypatch, capsys):
    interrupted(monkeypatch, half, 5, error)
    assert resume(half, "--steps", "6") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert torch.load(half / "checkpoint.pt")["step"] == 4  # saved every 2 steps
    monkeypatch.undo()
    assert resume(half, "--steps", "6") == 0 and same(half, run)

def test_a_bug_keeps_its_traceback(half, monkeypatch):
    interrupted(monkeypatch, half, 5, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        resume(half, "--steps", "6")

def test_a_gradient_that_is_not_finite_reaches_no_weight(half, monkeypatch, capsys):
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda params, most: (
        params[0].grad.fill_(math.nan if len(log_of(half)) == 5 else 1), clip(params, most))[1])
    assert resume(half, "--steps", "9") == 2
    assert "NaN or infinite: lower --lr" in capsys.readouterr().err
    state = torch.load(half / "checkpoint.pt")
    assert state["step"] == 4 and all(x.isfinite().all() for x in state["adapter"].values())

@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(call, half, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")
    before = (half / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(os, call, full)
    assert resume(half, "--steps", "6") == 2
    assert (half / "checkpoint.pt").read_bytes() == before
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "No space left" in last

def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    prepare, log = opct.prepare, tmp_path / "log.jsonl"
    monkeypatch.setattr(opct, "prepare", lambda cfg: (
        prepare(cfg), log.write_text("the first's"))[0])
    with pytest.raises(FileExistsError, match="log.jsonl"):
        opct.train(opct.Config(out=str(tmp_path), **SHORT))
    assert log.read_text() == "the first's"
