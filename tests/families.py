"""Which model families opct.py computes right: each check on a tiny random model of each.

    python tests/families.py [--write data/results/families.json]

Compared is always the slow way of the library itself: one prompt, one answer, no cache, the
model's own forward pass. tests/test_read.py holds every figure to its bound.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

# first, for it sets what transformers reads from the environment
from conftest import add_adapter, gen, make_model, prompt_of, read_alone
from configs import FAMILIES, REFUSED

import torch

import opct

PROMPTS = [prompt_of(n, n) for n in (9, 4, 13)]

def nats(ours, theirs):
    """The largest difference of log-probabilities."""
    return (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max().item()

def sampled(model):
    """-> two answers to each of PROMPTS, the logits (N, V) that they were picked from"""
    seen, pick = [], opct.pick
    opct.pick = lambda logits, *rest: seen.append(logits) or pick(logits, *rest)
    try:
        answers = opct.sample(model, PROMPTS, 2, 6, 1.0, {-1}, gen(0))
    finally:
        opct.pick = pick
    return answers, torch.stack(seen, 1).flatten(0, 1)

def checks(family):
    """-> {check: largest difference}: of log-probabilities in sampling (cache, fork, ragged
    prompts) and reading, of the adapter's gradients over the largest, of the teacher."""
    model, ids = make_model(FAMILIES[family]()), torch.tensor(PROMPTS[:1])
    base, (answers, cached) = model(input_ids=ids).logits, sampled(model)
    alone = read_alone(model, PROMPTS, answers)  # (N, V)
    out = {"sampling": nats(cached, alone),
           "reading": nats(opct.read(model, opct.pack(PROMPTS, answers)), alone)}

    params, grads = add_adapter(model), []
    for logits in (opct.read(model, opct.pack(PROMPTS, answers)),
                   read_alone(model, PROMPTS, answers)):
        target = torch.tensor([t for ys in answers for y in ys for t in y])
        loss = -logits.log_softmax(-1).gather(-1, target[:, None]).mean()
        grads.append(torch.autograd.grad(loss, params, materialize_grads=True))
    assert nats(logits, alone) > 0.01, f"{family}: the adapter does nothing"
    out["gradients"] = max((a - b).abs().max().item() for a, b in zip(*grads)) / max(
        g.abs().max().item() for g in grads[1])
    with torch.no_grad(), opct.teacher(model):
        out["adapter off"] = (model(input_ids=ids).logits - base).abs().max().item()
    return out

def run_of(config, folder, tokenizer):
    """-> the settings of a short run on random weights, made in a folder."""
    config.get_text_config().vocab_size = len(tokenizer)
    try:
        make_model(config).save_pretrained(folder / "model")
    except ValueError:  # no language model: refused before its weights are looked for
        config.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pairs = [{"clean": f"What is {n}?", "wrapped": f"Is {n} not 9?"} for n in range(9)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return opct.Config(model=str(folder / "model"), data=str(folder / "pairs.jsonl"),
                       out=str(folder / "out"), steps=2, prompts=2, samples=2,
                       max_new_tokens=6, eval_questions=2)

def refusal(family, folder, tokenizer):
    """The line by which a run that is to train such a model refuses it."""
    cfg = run_of(REFUSED[family](), folder, tokenizer)
    try:
        opct.train(cfg)
    except opct.UserError as e:
        return str(e).replace(cfg.model, "FOLDER")

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", default="")
    args, tokenizer = parser.parse_args(), opct.load_model(opct.Config())[1]
    result = {"families": {family: checks(family) for family in FAMILIES}, "refused": {},
              "versions": opct.VERSIONS}
    for family in REFUSED:
        with tempfile.TemporaryDirectory() as folder:
            result["refused"][family] = refusal(family, Path(folder), tokenizer)
    print(json.dumps(result, indent=1))
    if args.write:
        Path(args.write).write_text(json.dumps(result, indent=1) + "\n")

if __name__ == "__main__":
    sys.exit(main())
