"""data/checkpoint.py and the log: a run goes on as if nothing had happened, or says why not."""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from conftest import ROOT

import opct
import train_sft
from data import checkpoint, report

SHORT = dict(steps=6, prompts=4, samples=2, max_new_tokens=6, eval_questions=4, save_every=2,
             train_questions=8, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, which tests copy."""
    out = tmp_path_factory.mktemp("run") / "a"
    opct.train(opct.Config(out=str(out), **SHORT))
    return out


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The same at step 4 of 6, with the checkpoint of step 2 before it."""
    out = tmp_path_factory.mktemp("half") / "b"
    opct.train(opct.Config(out=str(out), **{**SHORT, "steps": 4}))
    return out


@pytest.fixture
def copy(half, tmp_path):
    return shutil.copytree(half, tmp_path / "b")


def go_on(out, **changes):
    return opct.train(opct.Config(out=str(out), resume=True, **{**SHORT, **changes}))


def log_of(out):
    """The log without what a clock wrote."""
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
    return [{k: v for k, v in s.items() if k not in ("seconds", "tokens_per_second")}
            for s in steps]


def same(out, run):
    name = "adapter_model.safetensors"
    return (out / name).read_bytes() == (run / name).read_bytes() and log_of(out) == log_of(run)


def test_a_run_that_goes_on_ends_as_the_uninterrupted_one(run, copy):
    go_on(copy)
    assert same(copy, run)


def test_two_checkpoints_are_kept(run):
    assert [f.name for f in checkpoint.files(run)] == [
        "step-00000006.safetensors", "step-00000004.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(run, copy, damage, capsys):
    newest = checkpoint.files(copy)[0]
    whole = newest.read_bytes()
    newest.write_bytes({"cut": whole[:len(whole) // 2], "empty": b"",
                        "altered": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]}[damage])
    go_on(copy)
    assert "is damaged" in capsys.readouterr().err and same(copy, run)


def test_no_whole_checkpoint_is_said(copy):
    for file in checkpoint.files(copy):
        file.write_bytes(b"x")
    with pytest.raises(opct.UserError, match="no checkpoint in .* is whole"):
        go_on(copy)


@pytest.mark.parametrize("changes, words", [
    ({"lr": 1e-4}, "begun with --lr 0.0003, not 0.0001"), ({"seed": 1}, "--seed 0, not 1"),
    ({"prompts": 2}, "--prompts"), ({"kl": "sampled"}, "--kl exact, not sampled"),
    ({"lora_alpha": 64}, "--lora-alpha"), ({"task": "safety"}, "--task"),
    ({"token_budget": 100}, "--token-budget")])
def test_another_setting_is_refused_by_name(copy, changes, words):
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()}
    with pytest.raises(opct.UserError, match=words):
        go_on(copy, **changes)
    assert before == {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()}


def test_what_does_not_change_the_run_may_change(copy):
    assert go_on(copy, steps=5, save_every=3, eval_questions=5)["config"]["steps"] == 5


def test_an_altered_model_is_refused(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "data/tiny", model)
    out = tmp_path / "c"
    opct.train(opct.Config(out=str(out), model=str(model), **{**SHORT, "steps": 1}))
    weights = safetensors.torch.load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    safetensors.torch.save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(opct.UserError, match="weights of the model are not those"):
        go_on(out, model=str(model))


def test_altered_data_is_refused(tmp_path):
    rows = [{"clean": f"What is {n}?", "wrapped": f"Is {n} not 4?"} for n in range(9)]
    data, out = tmp_path / "own.jsonl", tmp_path / "d"
    data.write_text("\n".join(map(json.dumps, rows)))
    opct.train(opct.Config(out=str(out), data=str(data), **{
        **SHORT, "steps": 1, "eval_questions": 1, "train_questions": 0}))
    data.write_text("\n".join(map(json.dumps, rows)).replace("What is 3", "What was 3"))
    with pytest.raises(opct.UserError, match="prompts to train on are not those"):
        go_on(out, data=str(data), eval_questions=1, train_questions=0)


def test_a_log_cut_in_the_middle_of_a_line_is_mended_as_far_as_it_goes(copy, capsys):
    text = (copy / "log.jsonl").read_text()
    (copy / "log.jsonl").write_text(text[:-40])
    go_on(copy)
    assert "without 1 of the steps done, the first 4" in capsys.readouterr().err
    go_on(copy, steps=7)  # what the log has lost does not take more of it along
    assert [s["step"] for s in log_of(copy)] == [1, 2, 3, 5, 6, 7]


def test_a_run_that_is_overwritten_leaves_no_checkpoint_to_go_on_from(copy):
    opct.train(opct.Config(out=str(copy), overwrite=True, **{**SHORT, "steps": 1}))
    assert [f.name for f in checkpoint.files(copy)] == ["step-00000001.safetensors"]


def test_fewer_steps_than_are_done_are_refused(copy):
    with pytest.raises(opct.UserError, match="--steps 3: .* already at step 4"):
        go_on(copy, steps=3)


def test_an_error_in_the_midst_of_an_optimizer_step_is_not_saved(copy, run, monkeypatch):
    step, calls = torch.optim.Adam.step, []

    def breaks(self, *args, **kwargs):
        calls.append(1)
        step(self, *args, **kwargs)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
    monkeypatch.setattr(torch.optim.Adam, "step", breaks)
    with pytest.raises(RuntimeError):
        go_on(copy)
    assert checkpoint.files(copy)[0].name == "step-00000004.safetensors"
    monkeypatch.undo()
    go_on(copy)
    assert same(copy, run)


def test_an_interrupt_while_the_teacher_reads_does_not_save_its_weights(tmp_path, monkeypatch):
    out, all_weights = tmp_path / "o", {**SHORT, "lora_rank": 0, "lr": 1e-3}
    opct.train(opct.Config(out=str(out), **{**all_weights, "steps": 2}))
    kl, calls = opct.token_kl, []

    def stops(student, teacher, target=None):  # the base's weights are put in their place, as if
        calls.append(1)                        # an interrupt kept teacher() from taking them out
        if len(calls) == 20:
            for name, p in base[0].named_parameters():
                p.data = base[0].frozen[name]
            raise KeyboardInterrupt
        return kl(student, teacher, target)
    base, add = [], opct.add_lora
    monkeypatch.setattr(opct, "add_lora", lambda m, *a: base.append(m) or add(m, *a))
    monkeypatch.setattr(opct, "token_kl", stops)
    with pytest.raises((opct.UserError, KeyboardInterrupt)):
        opct.train(opct.Config(out=str(out), resume=True, **{**all_weights, "steps": 40}))
    saved, _ = checkpoint.read(checkpoint.files(out)[0])
    frozen = base[0].frozen
    assert max((saved[n] - frozen[n]).abs().max() for n in frozen) > 1e-4


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_there_is(how, tmp_path, run):
    argv = [sys.executable, str(ROOT / "opct.py"), "--out", "o", "--steps", "100000"]
    for name, value in SHORT.items():
        argv += [] if name == "steps" else ["--" + name.replace("_", "-"), str(value)]
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "o/log.jsonl", time.time() + 60
    while time.time() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    done = len(log_of(tmp_path / "o"))
    assert process.returncode == 2 and f"stopped after step {done}; all is in o" in err
    assert "Traceback" not in err and (tmp_path / "o/adapter_model.safetensors").exists()
    assert log_of(tmp_path / "o")[:6] == log_of(run)[:done]
    assert checkpoint.files(tmp_path / "o")[0].name == f"step-{done:08}.safetensors"


def test_a_full_disk_is_said_and_the_last_whole_files_are_kept(copy):
    """A limit on the size of files stands for the full disk: the checkpoint is over it."""
    before = {f.name: f.read_bytes() for f in copy.glob("checkpoint/*")}
    argv = [sys.executable, str(ROOT / "opct.py"), "--out", str(copy), "--resume"]
    for name, value in {**SHORT, "steps": 5}.items():
        argv += ["--" + name.replace("_", "-"), str(value)]
    size = min(len(v) for v in before.values()) // 2
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=lambda:
                          resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot read or write")
    assert before == {f.name: f.read_bytes() for f in checkpoint.files(copy)}


def test_a_folder_that_cannot_be_written_to_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(opct.UserError, match="not a folder that can be written to"):
        opct.train(opct.Config(out=str(tmp_path / "o"), **SHORT))


def test_nan_stops_with_the_answers_that_led_to_it(tmp_path, monkeypatch):
    loss = opct.opct_loss

    def breaks(*args):
        value, metrics = loss(*args)
        return value * float("nan"), metrics
    monkeypatch.setattr(opct, "opct_loss", breaks)
    with pytest.raises(opct.UserError, match="step 1: loss nan.*broken_step.json"):
        opct.train(opct.Config(out=str(tmp_path / "n"), **SHORT))
    kept = json.loads((tmp_path / "n/broken_step.json").read_text())
    assert kept["step"] == 1 and len(kept["answers"]) == 4 and len(kept["answers"][0]) == 2
    tensors, _ = checkpoint.read(checkpoint.files(tmp_path / "n")[0])
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


@pytest.mark.parametrize("kl, cut, words", [
    ([.5] * 40, [0] * 40, None), ([.5] * 40, [1] * 40, None), ([.5] * 10, [0] * 10, None),
    ([.5] * 20 + [2.] * 20, [0] * 40, "kl has risen from 0.50 to 2.00"),
    ([.1] * 40, [.1] * 20 + [1] * 20, "100% of the answers hit --max-new-tokens")])
def test_a_collapse_is_noticed(kl, cut, words):
    got = report.collapse([{"kl": k, "cut": c} for k, c in zip(kl, cut)])
    assert got is None if words is None else words in got


def test_the_baseline_goes_on_too(tmp_path):
    whole = train_sft.Config(out=str(tmp_path / "w"), **SHORT)
    train_sft.train(whole)
    train_sft.train(train_sft.Config(out=str(tmp_path / "r"), **{**SHORT, "steps": 3}))
    train_sft.train(train_sft.Config(out=str(tmp_path / "r"), resume=True, **SHORT))
    assert same(tmp_path / "r", tmp_path / "w")
