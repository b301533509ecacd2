"""train_sft.py: it differs from opct.py where the method differs, and nowhere else."""
import difflib
import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import greedy_alone, logits_alone

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

def test_token_nll_is_cross_entropy():
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 4
    target = torch.arange(7) * 3
    torch.testing.assert_close(train_sft.token_nll(x, target),
                               F.cross_entropy(x, target, reduction="none"))

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each script: what the student reads in each step, log, results and model."""
    out, pack = {}, opct.pack
    for script in (opct, train_sft):
        folder, seen = tmp_path_factory.mktemp("arms") / "run", []

        def watched(prompts, answers):
            if torch.is_grad_enabled():  # neither the teacher nor an evaluation
                seen.append((list(prompts), list(answers)))
            return pack(prompts, answers)
        script.pack = watched
        model, _, results = script.train(script.Config(out=str(folder), **SHORT))
        script.pack = pack
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        out[script] = seen, log[1:], results, model
    return out

def test_both_arms_ask_the_same_questions_and_read_as_many_answers(runs):
    (ours, _, one, _), (theirs, _, two, _) = runs[opct], runs[train_sft]
    assert [prompts for prompts, _ in ours] == [prompts for prompts, _ in theirs]
    assert len(ours) == 2 and one["before"] == two["before"]
    assert {len(ys) for seen in (ours, theirs) for _, group in seen for ys in group} == {4}

def test_the_loss_is_cross_entropy_behind_the_wrapped_prompt(runs):
    seen, log, _, model = runs[train_sft]
    for (prompts, answers), step in zip(seen, log):
        pairs = [(prompt, y) for prompt, ys in zip(prompts, answers) for y in ys]
        logits = torch.cat([logits_alone(model, *pair) for pair in pairs])
        nll = F.cross_entropy(logits, torch.tensor(sum((y for _, y in pairs), [])))
        assert step["loss"] == pytest.approx(nll.item(), rel=1e-4)

@pytest.mark.parametrize("how, kl", [("nll", ""), ("kl", "reverse"), ("kl", "forward")])
def test_fresh_targets_and_the_other_losses_change_that_alone(how, kl, tmp_path, monkeypatch):
    """--targets step: other answers in each step, of the base model to the clean prompts;
    --loss kl: the loss is the KL of one policy to the other on them."""
    steps, kls, pack = [], [], opct.pack

    def watched(prompts, answers):
        if torch.is_grad_enabled():
            steps.append((list(prompts), list(answers)))
        return pack(prompts, answers)
    monkeypatch.setattr(train_sft, "pack", watched)
    nll, token_kl = train_sft.token_nll, opct.token_kl
    monkeypatch.setattr(train_sft, "token_nll", lambda *a: (kls.append("nll"), nll(*a))[1])
    monkeypatch.setattr(train_sft, "token_kl", lambda p, q: (  # the student has a gradient
        kls.append("reverse" if p.requires_grad else "forward"), token_kl(p, q))[1])
    hot = dict(target_temperature=5.0)  # at 1 the embedded model hardly varies
    settings = {**SHORT, **hot, "targets": "step", "loss": how, **({"kl": kl} if kl else {})}
    model, tokenizer, _ = train_sft.train(train_sft.Config(out=str(tmp_path / "o"), **settings))
    assert {*kls} == {kl or how} and len(steps) == 2
    cfg = train_sft.Config(**SHORT, **hot)
    prompts = opct.encode_pairs(model, tokenizer, opct.load_pairs(cfg, "train"), cfg)
    clean_of = {tuple(wrapped): clean for wrapped, clean in prompts}
    for step, (wrapped, answers) in enumerate(steps):  # drawn again from the seed and the step
        rng = torch.Generator().manual_seed(hash((cfg.seed, step)))
        asked = [clean_of[tuple(p)] for p in wrapped]
        again = train_sft.make_targets(model, asked, cfg, rng)
        assert answers == [again[clean] for clean in asked]

def test_the_sampled_form_needs_the_student_s_own_answers():
    with pytest.raises(opct.UserError, match="--kl sampled"):
        train_sft.Config(kl="sampled")

def test_targets_are_drawn_once_from_the_base_model_behind_the_clean_prompt(tiny, runs):
    model, tokenizer = tiny
    cfg, greedy = train_sft.Config(**SHORT), train_sft.Config(**SHORT, target_temperature=0)
    prompts = opct.encode_pairs(model, tokenizer, opct.load_pairs(cfg, "train"), cfg)
    asked = [clean for _, clean in prompts]
    targets = train_sft.make_targets(model, asked, cfg, torch.Generator().manual_seed(0))
    assert targets.keys() == {*asked}
    clean_of = {tuple(wrapped): clean for wrapped, clean in prompts}
    for asked, answers in runs[train_sft][0]:  # the run has drawn the same ones, once
        assert answers == [targets[clean_of[tuple(wrapped)]] for wrapped in asked]
    hot = train_sft.Config(**SHORT, target_temperature=5)
    drawn = train_sft.make_targets(model, asked[:90], hot, torch.Generator().manual_seed(0))
    assert any(y != ys[0] for ys in drawn.values() for y in ys)
    for clean, ys in train_sft.make_targets(model, asked[:90], greedy, None).items():
        assert ys == [greedy_alone(model, clean, 6, model.eos)]
