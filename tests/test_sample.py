"""Section 4: the cached, forked, ragged sampler says what the model alone would say."""
import pytest
import torch
from conftest import Countdown, gen, greedy_alone, prompt_of, read_alone
from families import PROMPTS, sampled

import opct

def test_cached_logits_equal_uncached_ones_with_ragged_prompts(model):
    answers, cached = sampled(model)  # cached: (N, V)
    alone = read_alone(model, PROMPTS, answers)
    torch.testing.assert_close(cached, alone, atol=2e-4, rtol=1e-4)

@pytest.mark.parametrize("pad", [0, 2])
def test_greedy_answers_are_those_of_the_model_alone_also_if_pad_is_an_end(model, pad):
    model.config.pad_token_id = pad
    prompts = [prompt_of(n, n) for n in (3, 11, 6)]
    eos = set(range(2, 30))  # many end tokens, so that answers end at different times
    got = opct.sample(model, prompts, 1, 12, 0.0, eos)
    assert [g[0] for g in got] == [greedy_alone(model, p, 12, eos) for p in prompts]

@pytest.mark.parametrize("name", ["past_key_values", "cache"])  # as of transformers 5.24
def test_answers_that_end_at_different_times_keep_their_end_token_and_their_row(name):
    """Rows that have ended are dropped."""
    model = Countdown()
    forward, prompts = model.forward, [[first, 10] for first in (9, 5, 1, 15, 9)]
    if name == "cache":
        model.forward = lambda cache, **inputs: forward(past_key_values=cache, **inputs)
    answers = opct.sample(model, prompts, 2, 6, 0.0, {0, 7})
    right = [8, 7], [4, 3, 2, 1, 0], [0], [14, 13, 12, 11, 10, 9], [8, 7]
    assert answers == [[y, y] for y in right]
    assert model.rows_run == [5, 10, 8, 4, 4, 4, 2]  # first the prompts

def test_forked_answers_differ_and_the_seed_decides_but_not_at_temperature_0(llama):
    def answers(temperature, seed):
        return opct.sample(llama, [prompt_of(6, 0)], 16, 5, temperature, {2}, gen(seed))[0]
    a = answers(1.0, seed=0)
    assert a == answers(1.0, seed=0) != answers(1.0, seed=1)
    assert len({answer[0] for answer in a}) > 1  # not one first token for all
    likeliest = answers(0.0, seed=0)
    assert likeliest == answers(0.0, seed=1) == likeliest[:1] * 16

def test_every_token_of_an_answer_has_a_chance_of_its_own():
    answers = opct.sample(Countdown(sure=False), [[3, 10]], 50, 8, 1.0, {-1}, gen(0))[0]
    assert all(len(set(answer)) > 2 for answer in answers)  # else: 1 in 2,800 seeds

def test_an_answer_does_not_depend_on_when_others_end():
    """With end tokens rows are dropped; up to its end each answer is what it is without."""
    model, prompts, eos = Countdown(sure=False), [[3, 10], [4, 10]], {7, 9, 12}
    whole = opct.sample(model, prompts, 10, 8, 1.0, {-1}, gen(0))
    ended = opct.sample(model, prompts, 10, 8, 1.0, eos, gen(0))
    assert len({len(a) for group in ended for a in group}) > 4
    for a, b in zip(sum(whole, []), sum(ended, [])):
        assert b == a[:len(b)] and (b[-1] in eos or len(b) == 8) and not eos & {*b[:-1]}

@pytest.mark.parametrize("logits, temperature, draws", [
    ([1.0, 0.0, -1.0, 2.0], 1, 20000), ([4.0, 0.0], 1, 4000), ([4.0, 0.0], 2, 4000)])
def test_sampled_frequencies_match_the_softmax(logits, temperature, draws):
    """A right sampler fails this chi-square for one seed in 800; this seed is fixed."""
    logits, chance = torch.tensor(logits), torch.rand(draws, generator=gen(0))
    got = opct.pick(logits.expand(draws, -1), temperature, chance).bincount()
    expected = (logits / temperature).softmax(0) * draws
    assert ((got - expected) ** 2 / expected).sum() < 16

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
