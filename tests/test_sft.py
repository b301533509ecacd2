"""train_sft.py: it differs from opct.py where the method differs, and nowhere else."""
import difflib
import inspect

import pytest
import torch
import torch.nn.functional as F
from conftest import add_adapter, gen, greedy_alone, lines_of, read_alone

import opct
import train_sft

SHORT = dict(category="capitals", steps=2, prompts=3, samples=4, max_new_tokens=6,
             eval_questions=2, token_budget=10 ** 6, lr=1e-11)  # one micro-batch per step

def test_the_two_loops_differ_in_few_lines_and_each_says_so():
    ours, theirs = (inspect.getsource(m.train).splitlines() for m in (opct, train_sft))
    changed = [d for d in difflib.ndiff(ours, theirs) if d[0] in "+-"]
    added = [d for d in changed if d[0] == "+"]
    assert 0 < len(added) <= 18 and len(changed) <= 34
    assert [d for d in added if "SFT" not in d] == []

def trained(script, out, **settings):
    """-> what the student reads in each step, log, results and model"""
    seen, pack = [], opct.pack

    def watched(prompts, answers):
        if torch.is_grad_enabled():  # neither the teacher nor an evaluation
            seen.append((list(prompts), list(answers)))
        return pack(prompts, answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "pack", watched)
        model, _, results = script.train(script.Config(out=str(out), **SHORT, **settings))
    return seen, lines_of(out / "log.jsonl")[1:], results, model

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {script: trained(script, tmp_path_factory.mktemp("arms") / "run")
            for script in (opct, train_sft)}

@pytest.fixture(scope="module")
def clean_of(tiny):
    """{wrapped prompt: clean prompt} of all pairs to train on."""
    cfg = opct.Config(**SHORT)
    return dict(opct.encode_pairs(*tiny, opct.load_pairs(cfg, "train"), cfg))

def test_both_arms_ask_the_same_questions_and_read_as_many_answers(runs):
    (ours, _, one, _), (theirs, _, two, _) = runs[opct], runs[train_sft]
    assert [prompts for prompts, _ in ours] == [prompts for prompts, _ in theirs]
    assert len(ours) == 2 and one["before"] == two["before"]
    assert {len(ys) for seen in (ours, theirs) for _, group in seen for ys in group} == {4}

def test_the_loss_is_cross_entropy_behind_the_wrapped_prompt(runs):
    seen, log, _, model = runs[train_sft]
    for (prompts, answers), step in zip(seen, log):
        target = torch.tensor([t for ys in answers for y in ys for t in y])
        logits = read_alone(model, prompts, answers)
        nll = F.cross_entropy(logits, target, reduction="none")
        torch.testing.assert_close(train_sft.token_nll(logits, target), nll)
        assert step["loss"] == pytest.approx(nll.mean().item(), rel=1e-4)

@pytest.mark.parametrize("loss, kl, called", [
    ("nll", "reverse", "nll"), ("kl", "reverse", "reverse"), ("kl", "forward", "forward")])
def test_fresh_targets_and_other_losses(loss, kl, called, clean_of, tmp_path, monkeypatch):
    """Each step draws other answers of the base model. Only the student has a gradient."""
    calls, nll, token_kl = [], train_sft.token_nll, opct.token_kl
    monkeypatch.setattr(train_sft, "token_nll", lambda *a: calls.append("nll") or nll(*a))
    monkeypatch.setattr(train_sft, "token_kl", lambda p, q: calls.append(
        "reverse" if p.requires_grad else "forward") or token_kl(p, q))
    settings = dict(targets="step", loss=loss, kl=kl, target_temperature=5.0)  # 1: alike
    steps, _, _, model = trained(train_sft, tmp_path / "o", **settings)
    assert {*calls} == {called} and len(steps) == 2
    cfg = train_sft.Config(**SHORT, **settings)
    for step, (wrapped, answers) in enumerate(steps):  # drawn again from seed and step
        asked = [clean_of[tuple(p)] for p in wrapped]
        again = train_sft.make_targets(model, asked, cfg, gen(hash((cfg.seed, step))))
        assert answers == [again[clean] for clean in asked]

@pytest.mark.parametrize("kl, loss", [("sampled", "kl"), ("forward", "nll")])
def test_a_form_of_the_kl_that_would_not_be_used_is_refused(kl, loss):
    with pytest.raises(opct.UserError, match=f"--kl {kl}"):
        train_sft.Config(kl=kl, loss=loss)

def test_targets_are_drawn_once_by_the_base_model_from_clean_prompts(tiny, runs, clean_of):
    def targets(asked, rng=None, **settings):
        cfg = train_sft.Config(**SHORT, **settings)
        return train_sft.make_targets(model, asked, cfg, rng)
    model, asked = opct.load_model(opct.Config())[0], [*clean_of.values()]
    add_adapter(model)  # it is off while the targets are drawn
    drawn = targets(asked, gen(0))
    assert drawn.keys() == {*asked}
    for wrapped, answers in runs[train_sft][0]:  # the run has drawn the same ones, once
        assert answers == [drawn[clean_of[tuple(p)]] for p in wrapped]
    hot = targets(asked[:90], gen(0), target_temperature=5)
    assert any(y != ys[0] for ys in hot.values() for y in ys)
    for clean, ys in targets(asked[:90], target_temperature=0).items():
        assert ys == [greedy_alone(tiny[0], clean, 6, tiny[0].eos)]
