"""Sections 6 and 7: the loss by its definition, the step by autograd, answer by answer."""
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import gen, prompt_of, read_alone

import opct

def policies(rows, vocab, scale=1):
    """Random logits of a student, with a gradient, and of a teacher."""
    rng = gen()
    s, t = (torch.randn(rows, vocab, generator=rng) * scale for _ in range(2))
    return s.requires_grad_(), t

def kl_by_definition(student, teacher):
    """Two loops over the definition, in Python floats."""
    out = []
    for s, t in zip(student.tolist(), teacher.tolist()):
        zs, zt = (math.log(sum(math.exp(x) for x in row)) for row in (s, t))
        out.append(sum(math.exp(a - zs) * ((a - zs) - (b - zt)) for a, b in zip(s, t)))
    return out

@pytest.mark.parametrize("p, q, nats, slope", [  # slope: of the first logit
    ((.1, .9), (.9, .1), 1.7577796619, -0.3955004),
    ((.6, .4), (.9, .1), 0.311239, -0.4300223),
    ((.5, .3, .2), (.6, .38, .02), 0.2984396, -0.2403806),
    ((.5, .5), (.8, .2), 0.2231435513, -0.3465736),
    ((.8, .2), (.5, .5), 0.1927447, 0.2218071)])
def test_kl_is_the_reverse_one_and_has_the_pinned_figures(p, q, nats, slope):
    p, q = (torch.tensor([x], dtype=torch.float64).log() for x in (p, q))
    kl = opct.token_kl(p.requires_grad_(), q)
    [grad] = torch.autograd.grad(kl.sum(), p)
    assert (kl.item(), grad[0, 0].item()) == pytest.approx((nats, slope), abs=1e-6)
    assert grad.sum().item() == pytest.approx(0, abs=1e-6)

def test_the_forward_kl_has_the_gradient_of_the_cross_entropy_to_the_teacher():
    s, t = policies(4, 9)
    kl = opct.token_kl(t, s)
    assert kl.tolist() == pytest.approx(kl_by_definition(t, s), rel=1e-5)
    [grad] = torch.autograd.grad(kl.sum(), s)
    torch.testing.assert_close(grad, s.softmax(-1) - t.softmax(-1))

def test_kl_equals_the_double_loop_and_ignores_shifts():
    s, t = policies(9, 50, scale=3)
    kl = opct.token_kl(s, t)
    assert kl.dtype == torch.float32 and kl.min() >= 0
    assert kl.tolist() == pytest.approx(kl_by_definition(s, t), rel=1e-5)
    torch.testing.assert_close(opct.token_kl(s + 5, t - 7), kl, atol=1e-5, rtol=1e-5)
    s, t = s.bfloat16(), t.bfloat16()  # rounded before, not within
    assert opct.token_kl(s, t).tolist() == pytest.approx(kl_by_definition(s, t), rel=1e-5)

def test_every_token_keeps_its_gradient_when_the_kl_is_tiny():
    """About 4e-9 nats per token, where rounding makes every other value negative."""
    teacher, noise = (x.detach() for x in policies(200, 50))
    student = (teacher + 1e-4 * noise).requires_grad_()
    kl = opct.token_kl(student, teacher)
    kl.sum().backward()
    assert kl.min() < 0
    p, q = (x.detach().double().softmax(-1) for x in (student, teacher))
    ratio = (p / q).log()
    right = p * (ratio - (p * ratio).sum(-1, keepdim=True))
    assert ((student.grad - right).norm(dim=-1) / right.norm(dim=-1)).max() < 0.02

def test_a_token_that_neither_policy_can_say_costs_nothing():
    (s, t), out = policies(4, 9), torch.tensor([2, 5])
    rest = [v for v in range(9) if v not in out]
    s.data[:, out] = t[:, out] = -math.inf
    kl = opct.token_kl(s, t)
    kl.sum().backward()
    assert kl.tolist() == pytest.approx(kl_by_definition(s[:, rest], t[:, rest]), rel=1e-5)
    assert s.grad.isfinite().all() and not s.grad[:, out].any()
    sampled = opct.token_kl_sampled(s, t, torch.tensor([0, 1, 3, 4]))
    assert torch.autograd.grad(sampled.sum(), s)[0].isfinite().all()

def test_sampled_values_are_log_ratios_and_average_to_the_exact_kl_and_gradient():
    """In exact expectation: every token in turn, weighted by the student's probability."""
    s, t = policies(1, 12)
    exact, (log_p, log_q) = opct.token_kl(s, t).sum(), torch.cat([s, t]).log_softmax(-1)
    sampled = opct.token_kl_sampled(s.expand(12, 12), t.expand(12, 12), torch.arange(12))
    torch.testing.assert_close(sampled, log_p - log_q)
    mean = (sampled * log_p.exp().detach()).sum()
    assert mean.item() == pytest.approx(exact.item(), abs=1e-6)
    ours, right = (torch.autograd.grad(x, s, retain_graph=True)[0] for x in (mean, exact))
    torch.testing.assert_close(ours, right, atol=1e-6, rtol=1e-5)

def pairs_of(questions, wordings):
    return [opct.Pair([], [], {"id": question}, wording, "train")
            for question in questions for wording in range(wordings)]

@pytest.mark.parametrize("B", [1, 4, 7, 10])
def test_an_epoch_asks_all_questions_once_those_of_a_step_differ_the_seed_decides(B):
    pairs = pairs_of("abcdefghij", 3)
    steps, again, other = (list(opct.batches(pairs, B, 300, seed)) for seed in (0, 0, 1))
    assert steps == again != other
    assert all(len({pairs[i].example["id"] for i in step}) == B for step in steps)
    asked = [pairs[i].example["id"] for step in steps for i in step]
    epochs = [asked[n:n + 10] for n in range(0, len(asked) - 9, 10)]
    assert all(sorted(epoch) == [*"abcdefghij"] for epoch in epochs)
    assert len({*map(tuple, epochs)}) == len(epochs) and epochs[0] != [*"abcdefghij"]
    assert {i for step in steps for i in step} == {*range(30)}  # every wording

PROMPTS = [(prompt_of(9, 1), prompt_of(6, 2)), (prompt_of(5, 3), prompt_of(8, 4)),
           (prompt_of(7, 5), prompt_of(7, 6))]

def steps_of_train(model, params, monkeypatch, ids=PROMPTS, **settings):
    """Two steps of opct.train() on a tiny model, so small that it stays as it is.
    -> for each its wrapped prompts, answers, loss, gradients and their norm"""
    steps, sample = [], opct.sample
    model.eos = {*range(2, 20)}  # many, so that answers end at different times

    def watched(model, wrapped, *rest):
        assert rest[2] == 1.0  # the temperature
        answers = sample(model, wrapped, *rest)
        steps.append(SimpleNamespace(wrapped=wrapped, answers=answers))
        return answers

    def record(loss, answers, norm, seconds):
        steps[-1].norm, steps[-1].loss = norm.item(), loss
        run.done += 1
    run = SimpleNamespace(done=0, record=record, results=lambda *_: None)

    class Adam(torch.optim.Adam):
        def step(self):
            steps[-1].grads = [p.grad.clone() for p in params]
            super().step()
    pairs = pairs_of(range(len(ids)), 1)
    with monkeypatch.context() as patch:
        for name, stub in {"Run": lambda *_: run, "sample": watched,
                           "add_lora": lambda *_: params, "evaluate": lambda *_: {},
                           "prepare": lambda cfg: (model, None, pairs, ids, [])}.items():
            patch.setattr(opct, name, stub)
        patch.setattr(torch.optim, "Adam", Adam)
        opct.train(opct.Config(**{"steps": 2, "prompts": 2, "samples": 3, "lr": 1e-11,
                                  "max_new_tokens": 6, "grad_clip": 1e9, **settings}))
    return steps

def slow_step(model, params, step, kl):
    """Every answer read on its own by the model's own forward; one mean over all tokens.
    -> loss, gradients"""
    clean = [c for wrapped in step.wrapped for w, c in PROMPTS if w == wrapped]
    log_p = read_alone(model, step.wrapped, step.answers).log_softmax(-1)  # (N, V)
    with opct.teacher(model), torch.no_grad():
        log_q = read_alone(model, clean, step.answers).log_softmax(-1)  # (N, V)
    if kl == "sampled":
        said = torch.tensor([[t] for ys in step.answers for y in ys for t in y])  # (N, 1)
        log_p, log_q = log_p.gather(1, said), log_q.gather(1, said)
        logged = log_p - log_q
        charged = logged.detach() * log_p  # what the gradient is taken of
    else:
        a, b = (log_q, log_p) if kl == "forward" else (log_p, log_q)
        logged = charged = (a.exp() * (a - b)).sum(-1)
    return logged.mean().item(), torch.autograd.grad(charged.mean(), params)

@pytest.mark.parametrize("kl", ["reverse", "forward", "sampled"])
@pytest.mark.parametrize("budget", [1, 40, 512, 10 ** 6])
def test_a_step_is_the_plain_mean_over_the_tokens_of_answers_read_alone(
        adapted, monkeypatch, budget, kl):
    first, second = steps_of_train(*adapted, monkeypatch, token_budget=budget, kl=kl)
    assert first.answers != second.answers
    assert len({len(y) for ys in first.answers for y in ys}) > 1
    for step in (first, second):
        loss, grads = slow_step(*adapted, step, kl)
        assert step.loss == pytest.approx(loss, rel=1e-5) and abs(loss) > 0.01
        for ours, plain in zip(step.grads, grads):
            assert (ours - plain).abs().max() < 1e-5 * plain.abs().max()

def test_every_step_draws_its_own_answers_and_the_seed_decides_them(adapted, monkeypatch):
    a, b, c = ([step.answers for step in steps_of_train(
        *adapted, monkeypatch, PROMPTS[:1], prompts=1, steps=3, seed=s)] for s in (0, 0, 1))
    assert a == b and all(x != y for x, y in zip(a + c, a[1:] + c))

def test_a_long_gradient_is_scaled_down_to_grad_clip(adapted, monkeypatch):
    step, _ = steps_of_train(*adapted, monkeypatch, grad_clip=1e-3)
    assert step.norm > 0.01
    assert torch.cat([g.flatten() for g in step.grads]).norm() == pytest.approx(1e-3, 1e-3)
