"""Section 5: the token tree reads as each answer would be read alone."""
import pytest
import torch
import transformers
from conftest import SIZES, logits_alone, make_model, prompt_of

import opct

PROMPTS = [prompt_of(7, 1), prompt_of(12, 2)]
ANSWERS = [[prompt_of(n, n) for n in (5, 1, 8)], [prompt_of(n, n + 50) for n in (3, 6)]]

def alone(model):
    return torch.cat([logits_alone(model, p, y)
                      for p, ys in zip(PROMPTS, ANSWERS) for y in ys])

def test_tree_logits_equal_row_by_row(model):
    tree = opct.read(model, opct.pack(PROMPTS, ANSWERS))
    torch.testing.assert_close(tree, alone(model), atol=2e-4, rtol=1e-4)

def test_tree_gradients_equal_row_by_row(model):
    model.requires_grad_(True)
    weight = torch.randn(23, 97, generator=torch.Generator().manual_seed(0))  # (N, V)
    tree, params = opct.read(model, opct.pack(PROMPTS, ANSWERS)), list(model.parameters())
    ours, theirs = (torch.autograd.grad((x.log_softmax(-1) * weight).sum(), params,
                                        allow_unused=True) for x in (tree, alone(model)))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)

def test_logits_kept_at_a_place_twice_are_those_of_the_whole_row(model):
    """The first token of every answer is predicted at the prompt's end: indices repeat."""
    ids, n = torch.tensor([PROMPTS[1]]), 12
    at = torch.arange(n)
    distance = (at[:, None] - at)[None]
    keep = torch.tensor([11, 3, 3, 11, 0])
    some = opct.run_model(model, ids, at[None], distance >= 0, distance, keep)
    torch.testing.assert_close(some[0], model(input_ids=ids).logits[0, keep])

def test_targets_are_all_answer_tokens_in_order_end_token_included():
    packed = opct.pack(PROMPTS, ANSWERS)
    assert packed.target.tolist() == [t for group in ANSWERS for a in group for t in a]
    assert packed.ids.shape == (1, 7 + 4 + 0 + 7 + 12 + 2 + 5)  # last tokens are no input
    assert packed.positions.max() == 12 + 5 - 1

def test_answers_longer_than_the_prompt_do_not_see_each_other(llama):
    first, other = (opct.read(llama, opct.pack(PROMPTS[:1], [[y, prompt_of(20, 4)]]))
                    for y in (prompt_of(20, 3), prompt_of(20, 5)))
    torch.testing.assert_close(first[20:], other[20:])

@pytest.mark.parametrize("budget", [1, 20, 30, 10 ** 6])
def test_rows_keep_every_answer_once_in_order_and_the_budget(budget):
    batch = [(p, p[:5]) for p in PROMPTS]
    rows = [list(zip(*row)) for row in opct.micro_batches(batch, ANSWERS, budget)]
    assert [a for row in rows for *_, g in row for a in g] == sum(ANSWERS, [])
    sizes = [sum(len(w) + sum(map(len, g)) for w, _, g in row) for row in rows]
    for row, size, after in zip(rows, sizes, [*rows[1:], None]):
        assert size <= budget or sum(len(g) for *_, g in row) == 1
        if after:  # its first answer did not fit
            wrapped, _, (answer, *_) = after[0]
            new = len(wrapped) if wrapped != row[-1][0] else 0
            assert size + len(answer) + new > budget
    owners = [(w, c) for row in rows for w, c, g in row for _ in g]
    assert owners == [batch[0]] * 3 + [batch[1]] * 2

def check(model):
    prompts = [(PROMPTS[0], PROMPTS[1]), (prompt_of(3, 0), prompt_of(9, 0))]
    opct.check_reading(model, prompts, opct.Config(max_new_tokens=5))

@pytest.mark.parametrize("kind", ["rotary", "nested"])
def test_a_model_that_is_misread_at_the_run_s_lengths_is_refused(kind, monkeypatch):
    model = make_model(kind)
    check(model)
    right = opct.run_model

    def beyond_8(model, ids, positions, visible, distance, *rest):
        return right(model, ids, positions, visible & (distance < 8), distance, *rest)
    monkeypatch.setattr(opct, "run_model", beyond_8)
    with pytest.raises(opct.UserError, match="masks and cache"):
        check(model)

def rope(**kind):
    return transformers.Phi3Config(**SIZES, original_max_position_embeddings=32,
                                   rope_parameters={"rope_theta": 1e4, **kind})

@pytest.mark.parametrize("config", [
    rope(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 4.0, 8.0],
         factor=4.0, original_max_position_embeddings=32),
    transformers.XGLMConfig(vocab_size=97, d_model=32, ffn_dim=48, num_layers=2,
                            attention_heads=4, max_position_embeddings=128)])
def test_rotations_that_depend_on_the_length_and_masks_of_two_values_are_refused(config):
    prompts = [(prompt_of(15, 1), prompt_of(40, 2))]  # shorter and longer than 32
    with pytest.raises(opct.UserError, match="masks and cache"):
        opct.check_reading(make_model(config), prompts, opct.Config())
