"""Section 6: the loss, against its definition and against figures worked out by hand."""
import math

import pytest
import torch
from conftest import prompt_of

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
    ((.5, .3, .2), (.6, .38, .02), 0.2984396), ((.5, .5), (.8, .2), 0.2231435513)])
def test_kl_has_the_pinned_figures(p, q, nats):
    assert opct.token_kl(logs(*p), logs(*q)).item() == pytest.approx(nats, abs=1e-6)


def test_kl_is_the_reverse_one():
    p, q = logs(.8, .2), logs(.5, .5)
    assert opct.token_kl(p, q).item() == pytest.approx(0.1927447, abs=1e-6)
    assert opct.token_kl(q, p).item() == pytest.approx(0.2231436, abs=1e-6)


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


def test_kl_of_the_same_logits_is_exactly_zero_with_zero_gradient():
    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kl = opct.token_kl(x, x.detach())
    kl.sum().backward()
    assert kl.tolist() == [0.0] * 5 and x.grad.abs().max() == 0


def test_sampled_form_gives_the_log_ratios():
    student = torch.tensor([[-1.0, math.log(1 - math.exp(-1))], [-2.0, math.log(1 - math.exp(-2))]])
    target = torch.tensor([0, 0])
    value = opct.token_kl_sampled(student, student.flip(0), target)
    assert value.tolist() == pytest.approx([1, -1], abs=1e-5)


def test_sampled_value_and_gradient_average_to_the_exact_ones():
    """In exact expectation: every token in turn, weighted by the student's probability."""
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(1, 12, generator=g, dtype=torch.float32) for _ in range(2))
    exact = s.clone().requires_grad_()
    opct.token_kl(exact, t).sum().backward()
    probs, sampled = s.softmax(-1)[0], s.clone().requires_grad_()
    values = opct.token_kl_sampled(sampled.expand(12, 12), t.expand(12, 12), torch.arange(12))
    (values * probs).sum().backward()
    assert (values * probs).sum().item() == pytest.approx(opct.token_kl(s, t).item(), abs=1e-6)
    torch.testing.assert_close(sampled.grad, exact.grad, atol=1e-6, rtol=1e-5)


# ---- the loss of a step

def settings(**more):
    return opct.Config(**{"samples": 2, "max_new_tokens": 6, **more})


BATCH = [(prompt_of(9, 1), prompt_of(6, 2)), (prompt_of(5, 3), prompt_of(8, 4))]


def gradients(model, params, cfg, batch=BATCH):
    for p in params:
        p.grad = None
    loss, metrics = opct.opct_loss(model, batch, cfg, torch.Generator().manual_seed(0))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in params], metrics


def test_loss_is_the_plain_one_token_mean(adapted):
    """Against each answer read alone, the whole (N, V) logits at once, one mean."""
    from conftest import logits_alone
    model, params = adapted
    value, grads, metrics = gradients(model, params, settings())
    kls = []
    for (wrapped, clean), group in zip(BATCH, metrics["answers"]):
        for a in group:
            with opct.teacher(model), torch.no_grad():
                t = logits_alone(model, clean, a).log_softmax(-1)
            s = logits_alone(model, wrapped, a).log_softmax(-1)
            kls.append((s.exp() * (s - t)).sum(-1))
    plain = torch.cat(kls).mean()
    assert value == pytest.approx(plain.item(), rel=1e-4) and value > 0.01
    for a, b in zip(grads, torch.autograd.grad(plain, params)):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("change", [{"token_budget": 1}, {"token_budget": 25}, {"kl_chunk": 1},
                                    {"kl_chunk": 7}])
def test_rows_and_chunks_change_neither_loss_nor_gradient(adapted, change):
    model, params = adapted
    value, grads, _ = gradients(model, params, settings())
    other, others, _ = gradients(model, params, settings(**change))
    assert other == pytest.approx(value, abs=1e-6)
    for a, b in zip(grads, others):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_same_prompt_twice_is_exactly_zero_with_zero_gradient_before_the_first_step(llama):
    params = opct.add_lora(llama, 4, 8)
    value, grads, _ = gradients(llama, params, settings(), [(BATCH[0][0],) * 2, (BATCH[1][1],) * 2])
    assert value == 0.0 and max(g.abs().max() for g in grads) == 0


def test_sampled_kl_trains_towards_the_same_gradient(adapted):
    """The mean over many draws of the one-sample gradient points where the exact one does."""
    model, params = adapted
    cfg = {"samples": 1500, "max_new_tokens": 1}
    _, exact, _ = gradients(model, params, settings(**cfg))
    _, drawn, _ = gradients(model, params, settings(kl="sampled", **cfg))
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (exact, drawn))
    assert torch.cosine_similarity(a, b, dim=0) > 0.9


def test_cut_answers_are_counted_and_carry_no_end_token(adapted):
    model, _ = adapted
    model.generation_config.eos_token_id = 96
    _, metrics = opct.opct_loss(model, BATCH, settings(), torch.Generator().manual_seed(0))
    flat = [a for g in metrics["answers"] for a in g]
    assert metrics["cut"] == sum(a[-1] != 96 for a in flat) / 4
    assert metrics["tokens"] == sum(map(len, flat)) == 4 * metrics["answer_length"]
