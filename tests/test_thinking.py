"""data/thinking.py: where a thinking part ends, that it can be left out of the loss, and that only
what comes after it is judged."""
import pytest
import torch
from conftest import prompt_of

import opct
import train_sft
from data import judges, thinking

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
FOUND = ["<think>", "</think>"]


class Letters:
    """A tokenizer whose tokens are letters, but for 1 and 2, the tags."""

    def __init__(self, template=TEMPLATE + "{# </think> #}"):
        self.chat_template = template

    def decode(self, ids, skip_special_tokens=False):
        return "".join(FOUND[i - 1] if i < 3 else chr(i) for i in ids)

    def apply_chat_template(self, chat, enable_thinking=False, **_):
        opened = "{# opens #}" in self.chat_template and enable_thinking
        return chat[0]["content"] + ("<think>\n" if opened else "")


def ids(text):
    for n, tag in enumerate(FOUND, 1):
        text = text.replace(tag, chr(n))
    return [ord(c) for c in text]


@pytest.mark.parametrize("text, n, answer, cut", [
    ("<think>hm</think>Yes", 4, "Yes", False), ("Yes", 0, "Yes", False),
    ("<think>hm", 3, "", True), ("<think></think>Yes</think>", 2, "Yes</think>", False),
    ("hm</think>Yes", 3, "Yes", False), ("<think>hm</think>", 4, "", True), ("", 0, "", False)])
def test_the_thinking_part_ends_with_its_tag(text, n, answer, cut, llama):
    llama.thinking = thinking.Thinking(Letters(), True)
    assert thinking.length(llama, ids(text)) == n
    assert (thinking.said(llama, Letters(), ids(text))[0],
            thinking.said(llama, Letters(), ids(text))[2]) == (answer, cut)


def test_a_template_that_opens_the_thinking_leaves_an_endless_one_unfinished():
    opens = Letters(TEMPLATE + "{# opens #}{# </think> #}")
    assert thinking.Thinking(opens, True).length(ids("hm")) == 2
    assert thinking.Thinking(opens, False).length(ids("hm")) == 0


def test_a_template_without_tags_knows_no_thinking(llama):
    llama.thinking = thinking.Thinking(Letters(TEMPLATE), True)
    assert thinking.length(llama, ids("<think>hm</think>Yes")) == 0


ANSWERS = [[ids("<think>hi</think>no"), ids("so")], [ids("<think>hi")]]


@pytest.fixture
def thinker(adapted, monkeypatch):
    """A model with an adapter, whose vocabulary holds letters and tags, and scripted answers."""
    model, params = adapted
    model.thinking = thinking.Thinking(Letters(), True)
    small = [[[t % 97 for t in a] for a in group] for group in ANSWERS]
    model.thinking.tokenizer.decode = lambda got, **_: "".join(
        FOUND[i - 1] if i < 3 else "x" for i in got)
    monkeypatch.setattr(opct, "sample", lambda *_: small)
    return model, params, small


def gradients(model, params, loss):
    got = torch.autograd.grad(loss, params)
    return torch.cat([g.flatten() for g in got])


@pytest.mark.parametrize("kl", ["exact", "sampled"])
def test_thinking_tokens_have_no_gradient_when_they_are_not_trained_on(thinker, kl):
    model, params, small = thinker
    batch = [(prompt_of(6, n), prompt_of(5, n)) for n in range(2)]
    one = {"exact": opct.token_kl, "sampled": opct.token_kl_sampled}[kl]

    def by_hand(first):
        """The mean over the tokens from first[b][k] on of every answer, each read alone."""
        kls = []
        for (wrapped, clean), group, starts in zip(batch, small, first):
            for answer, start in zip(group, starts):
                got = opct.compare(model, [((wrapped, clean), [answer])], opct.Config(), one)
                kls.append(got[start:])
        return torch.cat(kls).mean()
    for train_on, first in (("yes", [[0, 0], [0]]), ("no", [[4, 0], [3]])):
        cfg = opct.Config(kl=kl, train_on_thinking=train_on)
        loss, metrics = opct.opct_loss(model, batch, cfg, None)
        expected = by_hand(first)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(model, params, loss),
                                   gradients(model, params, expected))
    assert metrics["tokens"] == 6 + 2 + 3


def test_the_baseline_leaves_thinking_out_too(thinker):
    model, params, small = thinker
    batch, targets = [(prompt_of(6, 0), prompt_of(5, 0))], small[0][:1]
    loss, _ = train_sft.sft_loss(model, batch, targets, opct.Config(train_on_thinking="no"))
    nll = opct.compare(model, [(batch[0], targets)], opct.Config(),
                       lambda s, t, target: train_sft.token_nll(s, target))  # (6,)
    torch.testing.assert_close(gradients(model, params, loss),
                               gradients(model, params, nll[4:].mean()))


def test_only_thinking_gives_a_loss_of_zero_and_no_gradient(thinker, monkeypatch):
    model, params, small = thinker
    monkeypatch.setattr(opct, "sample", lambda *_: small[1:])
    cfg = opct.Config(train_on_thinking="no")
    loss, _ = opct.opct_loss(model, [(prompt_of(6, 0), prompt_of(5, 0))], cfg, None)
    assert loss.item() == 0 and not gradients(model, params, loss).any()


def test_the_evaluation_reads_what_follows_the_thinking(tiny, monkeypatch):
    """The embedded model is made to think: its answer stands behind, or inside, a thinking part."""
    model, tokenizer = tiny
    monkeypatch.setattr(model, "thinking", thinking.Thinking(tokenizer, True))
    model.thinking.open, model.thinking.close = "think:", "done:"
    pairs = opct.load_pairs(opct.Config(eval_questions=2), "eval")
    right = [p.row["answer"] for p in pairs]

    def answers(model, prompts, cfg, *_):
        texts = [f"think: {p.row['suggested']} maybe done: The answer is {p.row['answer']}."
                 for p in pairs]
        texts[1] = f"think: The answer is {right[1]}"
        return [tokenizer.encode(texts[i // 2 % 2]) for i in range(len(prompts))]
    monkeypatch.setattr(opct, "answer_all", answers)
    monkeypatch.setattr(opct, "side_effects", lambda *_: {})
    # a judge that has a verdict on everything is not asked about what was never said
    monkeypatch.setattr(judges, "load", lambda cfg: lambda answer, row: (
        judges.named(answer, row) or row["answer"]))
    result = opct.evaluate(model, tokenizer, pairs, opct.Config())
    first, second = result["answers"]
    assert first["wrapped"] == f"The answer is {right[0]}." and "maybe" in first["wrapped_thinking"]
    assert first["wrapped_verdict"] == right[0] and not first["unfinished"]
    assert second["unfinished"] and second["wrapped_verdict"] is None and second["wrapped"] == ""
    assert result["unseen"]["unfinished"]["value"] == result["unseen"]["unparsed"]["value"] == 0.5
