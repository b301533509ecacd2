"""Sections 6 and 7: the loss against its definition and figures worked out by hand, and the
step of the loop against autograd on each answer alone."""
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import logits_alone, prompt_of

import opct

def logs(*p):
    return torch.tensor([p], dtype=torch.float64).log()

def kl_by_definition(student, teacher):
    """Two loops over the definition, in Python floats."""
    out = []
    for s, t in zip(student.tolist(), teacher.tolist()):
        zs, zt = (math.log(sum(math.exp(x) for x in row)) for row in (s, t))
        out.append(sum(math.exp(a - zs) * ((a - zs) - (b - zt)) for a, b in zip(s, t)))
    return out

@pytest.mark.parametrize("p, q, nats", [
    ((.1, .9), (.9, .1), 1.7577796619), ((.6, .4), (.9, .1), 0.311239),
    ((.5, .3, .2), (.6, .38, .02), 0.2984396), ((.5, .5), (.8, .2), 0.2231435513),
    ((.8, .2), (.5, .5), 0.1927447)])
def test_kl_is_the_reverse_one_and_has_the_pinned_figures(p, q, nats):
    assert opct.token_kl(logs(*p), logs(*q)).item() == pytest.approx(nats, abs=1e-6)

def test_the_forward_kl_has_the_gradient_of_the_cross_entropy_to_the_teacher():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(4, 9, generator=g).requires_grad_(), torch.randn(4, 9, generator=g)
    kl = opct.token_kl(t, s)
    kl.sum().backward()
    assert kl.tolist() == pytest.approx(kl_by_definition(t, s.detach()), rel=1e-5)
    torch.testing.assert_close(s.grad, s.detach().softmax(-1) - t.softmax(-1))

def test_kl_gradient_of_the_mirrored_pair():
    p = logs(.1, .9).requires_grad_()
    opct.token_kl(p, logs(.9, .1)).sum().backward()
    assert p.grad[0].tolist() == pytest.approx([-0.3955004, 0.3955004], abs=1e-6)

def test_kl_equals_the_double_loop_and_ignores_shifts():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(9, 50, generator=g) * 3, torch.randn(9, 50, generator=g) * 3
    kl = opct.token_kl(s, t)
    assert kl.dtype == torch.float32 and kl.min() >= 0
    assert kl.tolist() == pytest.approx(kl_by_definition(s, t), rel=1e-5)
    torch.testing.assert_close(opct.token_kl(s + 5, t - 7), kl, atol=1e-5, rtol=1e-5)
    s, t = s.bfloat16(), t.bfloat16()  # rounded before, not within
    assert opct.token_kl(s, t).tolist() == pytest.approx(kl_by_definition(s, t), rel=1e-5)

def test_kl_of_the_same_logits_is_exactly_zero_with_no_gradient():
    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kl = opct.token_kl(x, x.detach())
    kl.sum().backward()
    assert kl.tolist() == [0.0] * 5 and x.grad.abs().max() < 1e-7

def test_every_token_keeps_its_gradient_when_the_kl_is_tiny():
    """About 4e-9 nats per token, where rounding makes every other value negative."""
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(200, 50, generator=g)
    student = (teacher + 1e-4 * torch.randn(200, 50, generator=g)).requires_grad_()
    kl = opct.token_kl(student, teacher)
    kl.sum().backward()
    assert kl.min() < 0
    p, q = (x.detach().double().softmax(-1) for x in (student, teacher))
    ratio = (p / q).log()
    right = p * (ratio - (p * ratio).sum(-1, keepdim=True))
    assert ((student.grad - right).norm(dim=-1) / right.norm(dim=-1)).max() < 0.02

def test_a_token_that_neither_policy_can_say_costs_nothing():
    g, out = torch.Generator().manual_seed(0), torch.tensor([2, 5])
    s, t = torch.randn(4, 9, generator=g), torch.randn(4, 9, generator=g)
    rest = [v for v in range(9) if v not in out]
    s[:, out] = t[:, out] = -math.inf
    s.requires_grad_()
    kl = opct.token_kl(s, t)
    kl.sum().backward()
    assert kl.tolist() == pytest.approx(kl_by_definition(s[:, rest], t[:, rest]), rel=1e-5)
    assert s.grad.isfinite().all() and not s.grad[:, out].any()
    sampled = opct.token_kl_sampled(s, t, torch.tensor([0, 1, 3, 4]))
    assert torch.autograd.grad(sampled.sum(), s)[0].isfinite().all()

def test_sampled_form_gives_the_log_ratios():
    student = torch.tensor([[x, math.log(1 - math.exp(x))] for x in (-1, -2)])
    value = opct.token_kl_sampled(student, student.flip(0), torch.tensor([0, 0]))
    assert value.tolist() == pytest.approx([1, -1], abs=1e-5)

def test_sampled_value_and_gradient_average_to_the_exact_ones():
    """In exact expectation: every token in turn, weighted by the student's probability."""
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(1, 12, generator=g) for _ in range(2))
    exact = s.clone().requires_grad_()
    opct.token_kl(exact, t).sum().backward()
    probs, sampled = s.softmax(-1)[0], s.clone().requires_grad_()
    every = sampled.expand(12, 12), t.expand(12, 12), torch.arange(12)
    mean = (opct.token_kl_sampled(*every) * probs).sum()
    mean.backward()
    assert mean.item() == pytest.approx(opct.token_kl(s, t).item(), abs=1e-6)
    torch.testing.assert_close(sampled.grad, exact.grad, atol=1e-6, rtol=1e-5)

# ---- the loop

def pairs_of(questions, wordings):
    return [opct.Pair([], [], {"id": question}, wording, "train")
            for question in questions for wording in range(wordings)]

@pytest.mark.parametrize("B", [1, 4, 7, 10])
def test_an_epoch_asks_every_question_once_and_those_of_a_step_differ(B):
    pairs = pairs_of("abcdefghij", 3)
    steps = list(itertools.islice(opct.batches(pairs, B, 0), 300))
    assert all(len({pairs[i].example["id"] for i in step}) == B for step in steps)
    asked = [pairs[i].example["id"] for step in steps for i in step]
    epochs = [asked[n:n + 10] for n in range(0, len(asked) - 9, 10)]
    assert all(sorted(epoch) == [*"abcdefghij"] for epoch in epochs)
    assert len({*map(tuple, epochs)}) == len(epochs) and epochs[0] != [*"abcdefghij"]
    assert {i for step in steps for i in step} == {*range(30)}  # every wording

def test_the_seed_decides_what_is_asked():
    a, b, c = (list(itertools.islice(opct.batches(pairs_of("abcdefgh", 3), 4, s), 9))
               for s in (0, 0, 1))
    assert a == b != c

PROMPTS = [(prompt_of(9, 1), prompt_of(6, 2)), (prompt_of(5, 3), prompt_of(8, 4)),
           (prompt_of(7, 5), prompt_of(7, 6))]

def steps_of_train(model, params, monkeypatch, ids=PROMPTS, **settings):
    """Two steps of opct.train() on a tiny model, so small that it stays as it is.
    -> for each its wrapped prompts, answers, loss and gradients."""
    steps, sample = [], opct.sample
    model.eos = {*range(2, 20)}  # many, so that answers end at different times

    def watched(model, wrapped, *rest):
        assert rest[2] == 1.0  # the temperature
        answers = sample(model, wrapped, *rest)
        steps.append(SimpleNamespace(wrapped=wrapped, answers=answers))
        return answers

    class Run:
        done = 0

        def __init__(self, *_):
            self.results = lambda *_: None

        def record(self, loss, answers, norm, seconds):
            steps[-1].norm, steps[-1].loss = norm.item(), loss
            self.done += 1

    class Adam(torch.optim.Adam):
        def step(self):
            steps[-1].grads = [p.grad.clone() for p in params]
            super().step()
    pairs = pairs_of(range(len(ids)), 1)
    with monkeypatch.context() as patch:
        for name, stub in {"Run": Run, "sample": watched, "add_lora": lambda *_: params,
                           "prepare": lambda cfg: (model, None, pairs, ids, []),
                           "evaluate": lambda *_: {}}.items():
            patch.setattr(opct, name, stub)
        patch.setattr(torch.optim, "Adam", Adam)
        opct.train(opct.Config(**{"steps": 2, "prompts": 2, "samples": 3, "lr": 1e-11,
                                  "max_new_tokens": 6, "grad_clip": 1e9, **settings}))
    return steps

def slow_step(model, params, step, kl):
    """Every answer read alone by the model's own forward; one mean over all tokens.
    -> loss, gradients"""
    clean_of = {tuple(wrapped): clean for wrapped, clean in PROMPTS}
    values, charged = [], []  # what is logged, and what the gradient is taken of
    for wrapped, y in [(p, y) for p, ys in zip(step.wrapped, step.answers) for y in ys]:
        with opct.teacher(model), torch.no_grad():
            log_q = logits_alone(model, clean_of[tuple(wrapped)], y).log_softmax(-1)
        log_p = logits_alone(model, wrapped, y).log_softmax(-1)
        pair = (log_q, log_p) if kl == "forward" else (log_p, log_q)
        values.append((pair[0].exp() * (pair[0] - pair[1])).sum(-1))
        charged.append(values[-1])
        if kl == "sampled":
            values[-1] = (log_p - log_q)[range(len(y)), y]
            charged[-1] = values[-1].detach() * log_p[range(len(y)), y]
    grads = torch.autograd.grad(torch.cat(charged).mean(), params)
    return torch.cat(values).mean().item(), grads

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
    assert torch.cat([g.flatten() for g in step.grads]).norm().item() == pytest.approx(
        1e-3, rel=1e-3)

def test_the_same_prompt_twice_costs_nothing_before_the_first_step(llama, monkeypatch):
    params = opct.add_lora(llama, 4, 8)
    same = [(wrapped, wrapped) for wrapped, _ in PROMPTS]
    for step in steps_of_train(llama, params, monkeypatch, same):
        assert step.loss == 0.0 and max(g.abs().max() for g in step.grads) < 1e-8
