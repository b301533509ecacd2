"""Section 5: the token tree reads as each answer on its own does. Every model family is
sampled and read as the library does it slowly, or refused by name before training."""
import re

import pytest
import torch
import transformers
from configs import FAMILIES, REFUSED, SIZES
from conftest import gen, lines_of, make_model, prompt_of, read_alone
from families import checks, refusal, run_of

import opct

BOUNDS = {"sampling": 1e-4, "reading": 1e-4, "gradients": 1e-4, "adapter off": 0}
PROMPTS = [prompt_of(7, 1), prompt_of(12, 2)]
ANSWERS = [[prompt_of(n, n) for n in (5, 1, 8, 20, 21)],  # longer than the prompt, too
           [prompt_of(n, n + 50) for n in (3, 6)]]

def test_tree_logits_and_gradients_equal_row_by_row(model):
    """The first token of every answer is predicted at the prompt's end: indices repeat."""
    model.requires_grad_(True)
    tree = opct.read(model, opct.pack(PROMPTS, ANSWERS))  # (N, V)
    alone, params = read_alone(model, PROMPTS, ANSWERS), list(model.parameters())
    torch.testing.assert_close(tree, alone, atol=2e-4, rtol=1e-4)
    weight = torch.randn(tree.shape, generator=gen(0))  # (N, V)
    ours, theirs = (torch.autograd.grad((x.log_softmax(-1) * weight).sum(), params,
                                        allow_unused=True) for x in (tree, alone))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)

def test_targets_are_all_answer_tokens_in_order_end_token_included():
    packed = opct.pack(PROMPTS, ANSWERS)
    assert packed.target.tolist() == [t for group in ANSWERS for a in group for t in a]
    inputs = 7 + (4 + 0 + 7 + 19 + 20) + 12 + (2 + 5)  # last tokens are no input
    assert packed.ids.shape == (1, inputs) and packed.positions.max() == 7 + 20 - 1

@pytest.mark.parametrize("budget", [1, 62, 82, 83, 10 ** 6])
def test_rows_keep_every_prompt_once_in_order_with_its_answers_and_the_budget(budget):
    batch = [(p, p[:5]) for p in PROMPTS]
    rows = [list(zip(*row)) for row in opct.micro_batches(batch, ANSWERS, budget)]
    assert [a for row in rows for *_, g in row for a in g] == sum(ANSWERS, [])
    sizes = [sum(len(w) + sum(map(len, g)) for w, _, g in row) for row in rows]
    assert all(size <= budget or len(row) == 1 for row, size in zip(rows, sizes))
    assert len(rows) == (1 if sum(sizes) <= budget else 2)
    assert [(w, c) for row in rows for w, c, _ in row] == batch

@pytest.mark.parametrize("kind", ["rotary", "nested"])
def test_a_model_that_is_misread_at_the_run_s_lengths_is_refused(kind, monkeypatch):
    model, cfg, right = make_model(kind), opct.Config(max_new_tokens=5), opct.run_model
    prompts = [(PROMPTS[0], PROMPTS[1]), (prompt_of(3, 0), prompt_of(9, 0))]
    opct.check_reading(model, prompts, cfg)

    def beyond_8(model, ids, positions, distance, *rest):
        return right(model, ids, positions, distance.masked_fill(distance > 7, -1), *rest)
    monkeypatch.setattr(opct, "run_model", beyond_8)
    with pytest.raises(opct.UserError, match="masks and cache"):
        opct.check_reading(model, prompts, cfg)

@pytest.mark.parametrize("config", [
    transformers.Phi3Config(**SIZES, original_max_position_embeddings=32, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "factor": 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 32}),
    transformers.XGLMConfig(vocab_size=97, d_model=32, ffn_dim=48, num_layers=2,
                            attention_heads=4, max_position_embeddings=128)])
def test_rotations_that_depend_on_the_length_and_masks_of_two_values_are_refused(config):
    prompts = [(prompt_of(15, 1), prompt_of(40, 2))]  # shorter and longer than 32
    with pytest.raises(opct.UserError, match="masks and cache"):
        opct.check_reading(make_model(config), prompts, opct.Config())

@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_the_library_reads_it(family):
    got = checks(family)
    assert {name: got[name] for name in BOUNDS if not got[name] <= BOUNDS[name]} == {}

@pytest.mark.parametrize("family", REFUSED)
def test_what_would_be_misread_or_not_adapted_is_refused_by_name(family, tmp_path, tiny):
    reasons = {**dict.fromkeys(["Llama 4", "LFM2", "MPT", "GPT-Neo"], "masks and cache"),
               "RecurrentGemma": "recurrent state|masks and cache",  # by the version
               "GPT-2": "linear", "T5": "T5Config", "ModernBERT": "ModernBertConfig"}
    line = refusal(family, tmp_path, tiny[1])
    assert re.search(reasons.get(family, "recurrent state"), line)

@pytest.mark.parametrize("family", ["Gemma 2", "Qwen3-MoE", "Gemma 3, with images"])
def test_a_folder_of_another_family_is_trained_by_the_same_path(family, tmp_path, tiny):
    opct.train(run_of(FAMILIES[family](), tmp_path, tiny[1]))
    steps = lines_of(tmp_path / "out/log.jsonl")[1:]
    assert [s["step"] for s in steps] == [1, 2] and all(s["loss"] > 0 for s in steps)
