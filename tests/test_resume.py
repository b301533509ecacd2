"""Section 9: whatever ends a run, --resume continues it as if nothing had happened."""
import json
import os
import shutil
import signal

import pytest
import safetensors.torch as st
import torch
from conftest import ROOT

import opct
import train_sft

SHORT = dict(category="capitals", steps=6, prompts=4, samples=2, max_new_tokens=6,
             eval_questions=2, save_every=2, device="cpu")


def trained(tmp_path_factory, script, steps):
    out = tmp_path_factory.mktemp(f"{script.__name__}-{steps}") / "run"
    script.train(script.Config(out=str(out), **{**SHORT, "steps": steps}))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory, opct, 6)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    return trained(tmp_path_factory, opct, 3)


@pytest.fixture
def half(three_steps, tmp_path):
    """A run of 3 steps, to do with as one likes."""
    return shutil.copytree(three_steps, tmp_path / "half")


@pytest.fixture(autouse=True)
def signals():
    """main() sets handlers; the next test finds those that pytest had."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in opct.SIGNALS}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def resume(out, *more, script=opct):
    return opct.main(["--resume", str(out), *more], script.train, script.Config)


def log_of(out):
    """The log without what a clock wrote."""
    steps = map(json.loads, (out / "log.jsonl").read_text().splitlines()[1:])
    return [{k: v for k, v in step.items() if k != "seconds"} for step in steps]


def same(a, b):
    """Bit for bit: adapter, Adam and log."""
    x, y = (torch.load(out / "checkpoint.pt") for out in (a, b))
    assert x["adapter"].keys() == y["adapter"].keys() and log_of(a) == log_of(b)
    pairs = [(x["adapter"][n], y["adapter"][n]) for n in x["adapter"]]
    for n, state in x["adam"]["state"].items():
        pairs += [(state[k], y["adam"]["state"][n][k]) for k in state]
    name = "adapter_model.safetensors"
    return all(torch.equal(p, q) for p, q in pairs) and len(pairs) > 100 and (
        a / name).read_bytes() == (b / name).read_bytes()


def test_3_and_3_steps_are_6_and_the_settings_come_from_the_checkpoint(run, half):
    free = "--steps 6 --save-every 4 --eval-questions 3 --model data/tiny/".split()
    assert resume(half, *free) == 0 and same(half, run)
    was, now = (json.loads((out / "results.json").read_text()) for out in (run, half))
    changed = {k for k, v in was["config"].items() if now["config"][k] != v}
    assert changed == {"out", "resume", "save_every", "eval_questions", "model"}


def test_the_baseline_resumes_too_but_not_by_the_other_script(tmp_path_factory, capsys):
    whole, parts = (trained(tmp_path_factory, train_sft, n) for n in (4, 2))
    assert resume(parts, "--steps", "4") == 2
    assert "other script" in capsys.readouterr().err
    assert resume(parts, "--steps", "4", script=train_sft) == 0 and same(parts, whole)


def refused(half, words, capsys, *more):
    before = {f.name: f.read_bytes() for f in half.iterdir()}
    assert resume(half, *more) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and words in line
    assert before == {f.name: f.read_bytes() for f in half.iterdir()}


@pytest.mark.parametrize("flag", ["--lr 1e-4", "--seed 0", "--task safety", "--prompts 2",
                                  "--kl sampled", "--out x", "--category animals"])
def test_what_would_change_the_run_is_refused_beside_resume(flag, half, capsys):
    refused(half, flag[2:].split()[0], capsys, *flag.split())


def test_other_data_and_other_weights_are_refused(half, tmp_path, capsys):
    rows = [{"clean": f"{n}?", "wrapped": f"4. {n}?", "category": "capitals"} for n in range(9)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(half, "training data", capsys, "--data", str(tmp_path / "own.jsonl"))
    model = shutil.copytree(ROOT / "data/tiny", tmp_path / "model")
    weights = st.load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    st.save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused(half, "base weights", capsys, "--model", str(model))


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"x"])
def test_a_damaged_checkpoint_is_one_line(half, damage, capsys):
    (half / "checkpoint.pt").write_bytes(damage((half / "checkpoint.pt").read_bytes()))
    refused(half, "--resume", capsys)


def test_a_log_that_is_none_of_ours_is_one_line(tmp_path, capsys):
    for text in ("", "[1]", '{"loss": 1}'):
        (tmp_path / "log.jsonl").write_text(text)
        refused(tmp_path, "--resume", capsys)


def test_a_run_killed_before_its_first_checkpoint_starts_over(run, half):
    (half / "checkpoint.pt").unlink()
    assert resume(half, "--steps", "6") == 0 and same(half, run)


@pytest.mark.parametrize("name", opct.SIGNALS)
def test_a_signal_saves_the_steps_that_are_done(name, half, run, monkeypatch, capsys):
    kill, write, done = getattr(signal, name), opct.write, opct.Run.step_done
    monkeypatch.setattr(opct.Run, "step_done", lambda self, *a: (
        done(self, *a), self.done == 5 and os.kill(os.getpid(), kill)))
    monkeypatch.setattr(opct, "write", lambda *a: (
        log_of(half)[4:] and os.kill(os.getpid(), kill), write(*a)))  # once more, while saving
    assert resume(half, "--steps", "6") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "after step 5 of 6" in lines[-2] and lines[-1].startswith("error: ")
    assert torch.load(half / "checkpoint.pt")["step"] == len(log_of(half)) == 5
    monkeypatch.undo()
    assert resume(half) == 0 and same(half, run)


def test_half_an_optimizer_step_is_not_saved(half, run, monkeypatch):
    step, calls = torch.optim.Adam.step, []

    def breaks(self, *args):
        step(self, *args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(torch.optim.Adam, "step", breaks)
    assert resume(half, "--steps", "6") == 2
    assert torch.load(half / "checkpoint.pt")["step"] == 4
    monkeypatch.undo()
    assert resume(half, "--steps", "6") == 0 and same(half, run)


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_last_good_step(
        half, monkeypatch, capsys):
    kl, calls = opct.token_kl, []

    def breaks(student, teacher):
        calls.append(student.requires_grad)
        return kl(student, teacher) * (math_nan if sum(calls) == 3 else 1)
    math_nan = float("nan")
    monkeypatch.setattr(opct, "token_kl", breaks)
    assert resume(half, "--steps", "9", "--token-budget", "99999") == 2
    assert "error: step 6: " in capsys.readouterr().err
    state = torch.load(half / "checkpoint.pt")
    assert state["step"] == 5 and all(x.isfinite().all() for x in state["adapter"].values())


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(call, half, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")
    before = (half / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(os, call, full)
    assert resume(half, "--steps", "6") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "No space left" in last
    assert (half / "checkpoint.pt").read_bytes() == before


def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    prepare, out = opct.prepare, tmp_path / "o"

    def meanwhile(cfg):
        ready = prepare(cfg)
        out.mkdir()
        (out / "log.jsonl").write_text("the first's")
        return ready
    monkeypatch.setattr(opct, "prepare", meanwhile)
    with pytest.raises(opct.UserError, match="--out"):
        opct.train(opct.Config(out=str(out), **SHORT))
    assert (out / "log.jsonl").read_text() == "the first's"


def test_files_have_ordinary_permissions_and_no_scraps_are_left(run):
    umask = os.umask(0)
    os.umask(umask)
    assert {f.stat().st_mode & 0o777 for f in run.iterdir()} == {0o666 & ~umask}
    assert not [f for f in run.iterdir() if f.suffix == ".new"]
