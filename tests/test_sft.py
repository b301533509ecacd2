"""train_sft.py: the baseline differs from opct.py where the method differs, and nowhere else."""
import difflib
import inspect
import json
import sys

import pytest
import torch
from conftest import ROOT, logits_alone, prompt_of

import opct
import train_sft
from data import compare

SHORT = dict(steps=3, prompts=2, samples=2, max_new_tokens=8, eval_questions=8, save_every=2,
             train_questions=40, device="cpu")
BATCH = [(prompt_of(9, 1), prompt_of(6, 2)), (prompt_of(5, 3), prompt_of(8, 4))]
TARGETS = [prompt_of(4, 5) + [2], prompt_of(6, 6) + [2]]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_two_loops_differ_by_at_most_12_lines_each_marked_as_the_method():
    ours, theirs = (inspect.getsource(m.train).splitlines() for m in (opct, train_sft))
    changed = [d for d in difflib.ndiff(ours, theirs) if d[0] in "+-"]
    assert 0 < len(changed) <= 12
    assert all("# SFT: " in d for d in changed if d[0] == "+")


def test_token_nll_is_cross_entropy():
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 4
    target = torch.arange(7) * 3
    torch.testing.assert_close(train_sft.token_nll(x, target),
                               torch.nn.functional.cross_entropy(x, target, reduction="none"))


@pytest.mark.parametrize("change", [{}, {"token_budget": 1}, {"kl_chunk": 3}])
def test_loss_is_the_plain_one_token_mean(adapted, change):
    model, params = adapted
    loss, metrics = train_sft.sft_loss(model, BATCH, TARGETS, opct.Config(**change))
    loss.backward()
    nll, kl = [], []
    for (wrapped, clean), target in zip(BATCH, TARGETS):
        with opct.teacher(model), torch.no_grad():
            t = logits_alone(model, clean, target)
        s = logits_alone(model, wrapped, target)
        nll.append(torch.nn.functional.cross_entropy(s, torch.tensor(target), reduction="none"))
        kl.append(opct.token_kl(s, t))
    plain = torch.cat(nll).mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-4)
    assert metrics["kl"] == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert metrics["tokens"] == 12 and metrics["cut"] == (0 if 2 in opct.eos_tokens(model) else 1)
    for p, g in zip(params, torch.autograd.grad(plain, params)):
        torch.testing.assert_close(p.grad, g, atol=2e-5, rtol=1e-3)
        p.grad = None


def test_both_arms_see_the_same_number_of_answers_a_step():
    cfg = opct.parse_config(["--prompts", "8", "--samples", "4"], train_sft.Config)
    assert cfg.prompts * cfg.samples == 32 and cfg.samples == 1 and cfg.out == "out/sycophancy-sft"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "a"
    return out, train_sft.train(train_sft.Config(out=str(out), **SHORT))


def test_targets_are_the_base_model_s_clean_answers_with_their_end_token(run, tiny):
    model, tokenizer = tiny
    rows = lines(run[0] / "targets.jsonl")
    assert len(rows) == 40 and len({json.dumps(r["prompt"]) for r in rows}) == 40
    ends = opct.eos_tokens(model)
    assert sum(r["ids"][-1] in ends for r in rows) > 36
    with_end = [r for r in rows if r["ids"][-1] in ends]
    assert all(tokenizer.decode(r["ids"], skip_special_tokens=True) == r["target"]
               for r in with_end[:20])
    right = {json.dumps(p.clean): p.row["answer"]
             for p in opct.load_pairs(opct.Config(), "train")}
    assert sum(right[json.dumps(r["prompt"])] in r["target"] for r in rows) > 36


def test_its_files_and_log_compare_with_those_of_opct(run):
    out, results = run
    first, *steps = lines(out / "log.jsonl")
    assert [s["step"] for s in steps] == [1, 2, 3]
    assert all({"loss", "kl", "follow", "grad_norm", "answer_length"} <= set(s) for s in steps)
    assert set(results["after"]) == {"unseen", "seen", "control", "capability", "drift"}
    assert first["config"]["target_temperature"] == 1.0


def test_targets_can_be_brought_as_ids_or_as_text(run, tmp_path):
    rows = lines(run[0] / "targets.jsonl")
    for row in rows[::2]:
        row.pop("ids")
    path = tmp_path / "targets.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    train_sft.train(train_sft.Config(out=str(tmp_path / "b"), targets=str(path), **SHORT))
    same = (tmp_path / "b/adapter_model.safetensors").read_bytes()
    again = [r["ids"] for r in lines(tmp_path / "b/targets.jsonl")]
    kept = [r["ids"] for r in lines(run[0] / "targets.jsonl")]
    assert sum(a == b for a, b in zip(again, kept)) > 0.9 * len(kept)
    assert len(same) == len((run[0] / "adapter_model.safetensors").read_bytes())


def test_resumed_run_uses_the_same_targets_and_ends_the_same(run, tmp_path):
    cfg = train_sft.Config(out=str(tmp_path / "r"), **{**SHORT, "steps": 2})
    train_sft.train(cfg)
    cfg.steps, cfg.resume = 3, True
    assert train_sft.train(cfg)["after"] == run[1]["after"]
    assert (tmp_path / "r/adapter_model.safetensors").read_bytes() == \
        (run[0] / "adapter_model.safetensors").read_bytes()


def test_the_file_is_short():
    assert len((ROOT / "train_sft.py").read_text(encoding="utf-8").splitlines()) <= 170


def test_compare_runs_stage_by_stage_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    argv = ["compare.py", "--name", "trial", "--tasks", "safety", "--arms", "sft", "--seeds", "1",
            "--stages", "1", "2", "--eval-questions", "3", "--prompts", "2", "--train-questions",
            "4"]
    runs = []

    def here(argv, cwd, check, stdout):  # in this process, which has loaded everything
        assert argv[1] == "train_sft.py" and cwd == tmp_path and check
        runs.append(argv)
        assert opct.main(argv[2:], train_sft.train, train_sft.Config) == 0
    monkeypatch.setattr(compare.subprocess, "run", here)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/results").mkdir(parents=True)
    compare.main()
    compare.main()
    printed = capsys.readouterr().out
    assert len(runs) == 2 and "--resume" in runs[1]
    assert printed.count("seed0: done") == printed.count("seed0: there") == 1
    result = json.loads((tmp_path / "data/results/trial-safety-sft-seed0.json").read_text())
    assert list(result["curve"]) == ["1", "2"] and result["config"]["steps"] == 2
    assert result["after"] == result["curve"]["2"] and result["training_seconds"] > 0
