"""Section 5: the token tree reads as each answer would be read alone."""
import pytest
import torch
from conftest import logits_alone, prompt_of

import opct
from data import loading

PROMPTS = [prompt_of(7, 1), prompt_of(12, 2)]
ANSWERS = [[prompt_of(n, n) for n in (5, 1, 8)], [prompt_of(n, n + 50) for n in (3, 6)]]


def alone(model):
    return torch.cat([logits_alone(model, p, a) for p, g in zip(PROMPTS, ANSWERS) for a in g])


def test_tree_logits_equal_row_by_row(model):
    tree = opct.head(model, opct.read(model, opct.pack(PROMPTS, ANSWERS)))
    torch.testing.assert_close(tree, alone(model), atol=2e-4, rtol=1e-4)


def test_tree_gradients_equal_row_by_row(model):
    model.requires_grad_(True)
    weight = torch.randn(23, 97, generator=torch.Generator().manual_seed(0))  # (N, V)
    tree = opct.head(model, opct.read(model, opct.pack(PROMPTS, ANSWERS)))
    params = [p for p in model.parameters()]
    ours = torch.autograd.grad((tree.log_softmax(-1) * weight).sum(), params, allow_unused=True)
    theirs = torch.autograd.grad((alone(model).log_softmax(-1) * weight).sum(), params,
                                 allow_unused=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


def test_targets_are_all_answer_tokens_in_order_end_token_included():
    packed = opct.pack(PROMPTS, ANSWERS)
    assert packed.target.tolist() == [t for group in ANSWERS for a in group for t in a]
    assert packed.ids.shape == (1, 7 + 4 + 0 + 7 + 12 + 2 + 5)  # prompts once, last tokens no input
    assert packed.positions.max() == 12 + 5 - 1


def test_answers_longer_than_the_prompt_do_not_see_each_other(llama):
    first = opct.read(llama, opct.pack([PROMPTS[0]], [[prompt_of(20, 3), prompt_of(20, 4)]]))
    other = opct.read(llama, opct.pack([PROMPTS[0]], [[prompt_of(20, 5), prompt_of(20, 4)]]))
    torch.testing.assert_close(first[20:], other[20:])


@pytest.mark.parametrize("budget", [1, 20, 30, 10 ** 6])
def test_rows_keep_every_answer_once_in_order_and_the_budget(budget):
    batch = [(p, p[:5]) for p in PROMPTS]
    rows = list(opct.micro_batches(batch, ANSWERS, budget))
    assert [a for row in rows for _, g in row for a in g] == [a for g in ANSWERS for a in g]
    for row in rows:
        size = sum(max(map(len, pair)) + sum(map(len, g)) for pair, g in row)
        assert size <= budget or sum(len(g) for _, g in row) == 1
    owners = [pair[0] for row in rows for pair, g in row for _ in g]
    assert owners == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 2


def check(model, name):
    loading.check_reading(model, name, opct.sample,
                          lambda *tree: opct.head(model, opct.read(model, opct.pack(*tree))))


def test_a_model_the_tree_would_misread_is_refused(llama):
    check(llama, "fine")
    llama.get_output_embeddings().forward = lambda hidden: hidden.cumsum(0)[:, :97]
    with pytest.raises(opct.UserError, match="side by side"):
        check(llama, "odd")
