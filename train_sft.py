"""Supervised fine-tuning (SFT, "BCT"), the baseline of OPCT, parallel to opct.py.

The student is trained by cross-entropy to answer the wrapped prompt as the base model
answered the clean one:

    clean prompt ────┬─ y1    the base model gives K answers, before training
                     └─ y2
    wrapped prompt ──┬─ y1    the student reads those answers after the wrapped prompt
                     └─ y2
    loss = mean over every answer token of -log student(y_t | wrapped, y<t)

So three things differ from opct.py: who writes the answers, when, and what is matched (one
token, not the whole distribution). All else is the same: the questions of each step, the
number of answers (but one at temperature 0), the adapter, the optimizer, the seeds, the
evaluation. The second and the third can be undone alone, to see which of them matters:

    python train_sft.py                           the embedded model, under a minute
    python train_sft.py --target-temperature 0    one target per question, as in the paper
    python train_sft.py --targets step            the base model answers again in each step
    python train_sft.py --loss kl                 match its distribution; --kl: which way
"""
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import opct
from opct import (Run, add_lora, batches, check, evaluate, micro_batches, pack, prepare,
                  read, sample, teacher, token_kl)


# 1. Config: that of opct.py, how the targets are drawn, and what is matched

@dataclass
class Config(opct.Config):
    target_temperature: float = 1.0  # of the base model's answers; 0: greedy
    targets: Literal["fixed", "step"] = "fixed"  # drawn once, or again in each step
    loss: Literal["nll", "kl"] = "nll"  # match each token, or the base model's distribution

    def __post_init__(self):
        self.out = self.out or self.resume or f"out/{self.task}-sft"
        super().__post_init__()
        check(self.kl != "sampled", "--kl sampled needs the student's own answers")
        check(self.kl == "reverse" or self.loss == "kl", f"--kl {self.kl} needs --loss kl")


# 2. Targets: what the base model says without the bait

def make_targets(model, asked, cfg, rng):
    """Answers of the base model to clean prompts (tuples of ids), 64 prompts at a time. ->
    {prompt: K lists of ids}; at temperature 0 one, because all K would be identical."""
    asked, targets = sorted(dict.fromkeys(asked), key=len), {}
    samples = cfg.samples if cfg.target_temperature > 0 else 1
    with teacher(model):
        for part in (asked[i:i + 64] for i in range(0, len(asked), 64)):
            targets.update(zip(part, sample(model, part, samples, cfg.max_new_tokens,
                                            cfg.target_temperature, model.eos, rng)))
    return targets


# 3. Loss: cross-entropy by hand

def token_nll(student, target):
    """-log p(target): logits (N, V), tokens (N,) -> (N,) nats, fp32."""
    return -student.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]


# 4. Train: the loop of opct.py. A line that differs says so

def train(cfg):
    """Evaluate, train, evaluate again; write everything to cfg.out. -> model, tokenizer and
    what results.json holds. Raises UserError, one line for the user."""
    model, tokenizer, pairs, prompts, held_out = prepare(cfg)  # prompts: (wrapped, clean)
    rng = torch.Generator(model.device).manual_seed(cfg.seed)  # SFT
    asked = [clean for _, clean in prompts] if cfg.targets == "fixed" else []  # SFT
    targets = make_targets(model, asked, cfg, rng)  # SFT: once, before training
    torch.manual_seed(cfg.seed)  # of the adapter's first weights
    params = add_lora(model, cfg.lora_rank, cfg.lora_alpha)
    optimizer = torch.optim.Adam(params, lr=cfg.lr, betas=(0.9, 0.95))
    run = Run(cfg, model, optimizer, [prompts, targets])  # SFT: targets are data
    with teacher(model):  # adapter off: the base model
        before = evaluate(model, tokenizer, held_out, cfg)

    order = [*batches(pairs, cfg.prompts, cfg.steps, cfg.seed)]
    for chosen in order[run.done:]:  # a resumed run skips what it did
        began, batch = time.time(), [prompts[i] for i in chosen]
        # the same chances after --resume: a tuple of ints hashes alike in every process
        rng = torch.Generator(model.device).manual_seed(hash((cfg.seed, run.done)))

        # 1. SFT: the base model has answered the clean prompts, or does so now
        if cfg.targets == "step":  # SFT
            targets = make_targets(model, [clean for _, clean in batch], cfg, rng)  # SFT
        answers = [targets[clean] for _, clean in batch]  # SFT
        n_tokens = sum(len(y) for group in answers for y in group)
        loss_sum = 0.0
        for wrapped, clean, ys in micro_batches(batch, answers, cfg.token_budget):
            # 2. SFT: a teacher reads them only where its distribution is matched
            if cfg.loss == "kl":  # SFT
                with teacher(model), torch.no_grad():  # SFT
                    t = read(model, pack(clean, ys))  # (N, V) SFT
            # 3. the student reads them after the wrapped ones; SFT: and learns to say them
            packed = pack(wrapped, ys)
            s = read(model, packed)  # (N, V) logits with the bait
            y = packed.target.to(s.device)  # (N,) SFT
            nats = (token_nll(s, y) if cfg.loss == "nll" else  # SFT
                    token_kl(s, t) if cfg.kl == "reverse" else  # SFT
                    token_kl(t, s))  # (N,) SFT
            loss = nats.sum() / n_tokens  # SFT: as the KL, of the whole step
            loss.backward()
            loss_sum += loss.item()

        # 4. one step of Adam
        norm = nn.utils.clip_grad_norm_(params, cfg.grad_clip)
        check(norm.isfinite(), "a gradient is NaN or infinite: lower --lr")
        optimizer.step()
        optimizer.zero_grad()
        run.record(loss_sum, answers, norm, time.time() - began)

    after = evaluate(model, tokenizer, held_out, cfg)
    return model, tokenizer, run.results(held_out, before, after)


if __name__ == "__main__":
    sys.exit(opct.main(train=train, Config=Config))
