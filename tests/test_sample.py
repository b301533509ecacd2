"""Section 4: the cached, forked, ragged sampler says what the model alone would say."""
import pytest
import torch
from conftest import NewScripted, Scripted, greedy_alone, logits_alone, prompt_of

import opct

def gen(seed):
    return torch.Generator().manual_seed(seed)

def test_cached_logits_equal_uncached_ones_with_ragged_prompts(model, monkeypatch):
    prompts, seen, pick = [prompt_of(n, n) for n in (9, 4, 13)], [], opct.pick
    monkeypatch.setattr(opct, "pick", lambda x, *rest: seen.append(x) or pick(x, *rest))
    answers = opct.sample(model, prompts, 2, 6, 1.0, {-1}, gen(0))
    cached = torch.stack(seen, 1)  # (B*K, R, V)
    for i, answer in enumerate(a for group in answers for a in group):
        alone = logits_alone(model, prompts[i // 2], answer)  # (R, V)
        torch.testing.assert_close(cached[i], alone, atol=2e-4, rtol=1e-4)

def test_greedy_answers_are_those_of_the_model_alone(model):
    prompts = [prompt_of(n, n) for n in (3, 11, 6)]
    eos = set(range(2, 30))  # many end tokens, so that answers end at different times
    got = opct.sample(model, prompts, 1, 12, 0.0, eos)
    assert [g[0] for g in got] == [greedy_alone(model, p, 12, eos) for p in prompts]

@pytest.mark.parametrize("kind", [Scripted, NewScripted])  # `past_key_values`, `cache`
def test_answers_that_end_at_different_times_keep_their_end_token_and_their_row(kind):
    script = {3: [4, 7], 4: [5, 5, 5, 5, 9], 5: [7], 6: [8] * 9}
    model = kind(script, prompt_length=2)
    answers = opct.sample(model, [[first, 10] for first in script], 2, 6, 0.0, {7, 9})
    assert answers == [[[4, 7]] * 2, [[5, 5, 5, 5, 9]] * 2, [[7]] * 2, [[8] * 6] * 2]

def test_finished_rows_are_dropped():
    model = Scripted({3: [7], 4: [9], 5: [8] * 9}, prompt_length=2)
    opct.sample(model, [[3, 10], [4, 10], [5, 10]], 1, 4, 0.0, {7, 9})
    assert model.rows_run == [3, 3, 1, 1, 1]  # first the prompts

def test_a_prompt_that_occurs_twice_is_read_once():
    model = Scripted({3: [8, 7], 4: [9, 7]}, prompt_length=2)
    answers = opct.sample(model, [[3, 10], [4, 10], [3, 10]], 1, 4, 0.0, {7})
    assert answers == [[[8, 7]], [[9, 7]], [[8, 7]]] and model.rows_run[:2] == [2, 3]

def test_forked_answers_differ_and_the_seed_decides(llama):
    prompt = [prompt_of(6, 0)]
    a, b, c = (opct.sample(llama, prompt, 16, 5, 1.0, {2}, gen(s))[0] for s in (0, 0, 1))
    assert a == b != c
    assert len({answer[0] for answer in a}) > 1  # not one first token for all

def test_every_token_of_an_answer_has_a_chance_of_its_own():
    model = Scripted({3: []}, prompt_length=2)  # all 16 tokens are as likely, always
    answers = opct.sample(model, [[3, 10]], 50, 8, 1.0, {-1}, gen(0))[0]
    assert all(len(set(answer)) > 2 for answer in answers)  # else: 1 in 2,800 seeds

def test_an_answer_does_not_depend_on_when_others_end():
    """With end tokens rows are dropped; up to its end each answer is what it is without."""
    model = Scripted({3: [], 4: []}, prompt_length=2)
    prompts, eos = [[3, 10], [4, 10]], {7, 9, 12}
    whole = opct.sample(model, prompts, 10, 8, 1.0, {-1}, gen(0))
    ended = opct.sample(model, prompts, 10, 8, 1.0, eos, gen(0))
    assert len({len(a) for group in ended for a in group}) > 4
    for a, b in zip(sum(whole, []), sum(ended, [])):
        assert b == a[:len(b)] and (b[-1] in eos or len(b) == 8) and not eos & {*b[:-1]}

def test_temperature_0_ignores_the_seed_and_2_flattens(llama):
    prompt = [prompt_of(6, 0)]
    a, b = (opct.sample(llama, prompt, 4, 5, 0.0, {2}, gen(s)) for s in (0, 1))
    assert a == b and len({tuple(x) for x in a[0]}) == 1
    logits = torch.tensor([[4.0, 0.0]]).expand(4000, 2)
    chance = torch.rand(4000, generator=gen(0))
    for temperature in (1, 2):
        right = 1 / (1 + torch.e ** (4 / temperature))
        share = opct.pick(logits, temperature, chance).float().mean().item()
        assert share == pytest.approx(right, abs=4 * (right / 4000) ** .5)

@pytest.mark.parametrize("pad", [0, 2])
def test_pad_equal_to_eos_changes_nothing(llama, pad):
    llama.config.pad_token_id = pad
    prompts = [prompt_of(5, 1), prompt_of(9, 2)]
    expected = [[greedy_alone(llama, p, 6, {2})] for p in prompts]
    assert opct.sample(llama, prompts, 1, 6, 0.0, {2}) == expected

def test_sampled_frequencies_match_the_softmax():
    """chi-square over 4 tokens and 20,000 draws; a right sampler fails with odds of 1 in
    10,000 for a random seed, and this seed is fixed."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    chance = torch.rand(20000, generator=gen(0))
    got = opct.pick(logits.expand(20000, 4), 1.0, chance).bincount(minlength=4)
    expected = logits.softmax(0) * 20000
    assert ((got - expected) ** 2 / expected).sum() < 21.1

def test_every_token_is_picked_for_its_own_share_of_chances_down_to_the_far_tail():
    """One likely token, then 100,000 of 1e-8 each, which a sum in fp32 rounds away. With a
    chance from the middle of its own interval each is picked."""
    logits = torch.full((1, 100_001), -18.42)
    logits[0, 0] = 0
    p = logits[0].double().softmax(-1)
    middle = p.cumsum(0) - p / 2
    tokens = torch.arange(0, 100_001, 5_000)
    got = opct.pick(logits.expand(len(tokens), -1), 1.0, middle[tokens])
    assert (got - tokens).abs().max() <= 1  # the softmax is fp32

def test_a_token_of_probability_0_is_never_picked():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    chance = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2 ** -24])
    assert opct.pick(logits, 1.0, chance).tolist() == [1, 1, 3, 3]

def test_nothing_is_inherited_from_the_generation_config(llama):
    prompt = [prompt_of(6, 0)]
    plain = opct.sample(llama, prompt, 8, 5, 1.0, {2}, gen(0))
    llama.generation_config.update(top_k=1, top_p=0.01, temperature=0.1,
                                   repetition_penalty=9.0)
    assert opct.sample(llama, prompt, 8, 5, 1.0, {2}, gen(0)) == plain
