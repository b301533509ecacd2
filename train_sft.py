"""Supervised fine-tuning (SFT, "BCT"), the baseline of OPCT, parallel to opct.py.

The student is trained by cross-entropy to answer the wrapped prompt as the base model
answered the clean one:

    clean prompt ────┬─ y1    the base model answers K times, once, before training
                     └─ y2
    wrapped prompt ──┬─ y1    the student reads those answers behind the wrapped prompt
                     └─ y2
    loss = mean over every answer token of -log student(y_t | wrapped, y<t)

So three things differ from opct.py: who writes the answers, when, and what is matched (one
token, not the whole distribution). All else is the same: the questions of each step, the
number of answers, the adapter, the optimizer, the seeds, the evaluation.

    python train_sft.py                           the embedded model, about a minute
    python train_sft.py --target-temperature 0    one target per question, as in the paper
"""
import itertools
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn as nn

import opct
from opct import (RANK, WORLD, Run, add_lora, answer_all, batches, evaluate, micro_batches,
                  pack, prepare, read, sum_gradients, teacher, total)


# 1. Config: that of opct.py (--kl has no effect), and how the targets are drawn

@dataclass
class Config(opct.Config):
    target_temperature: float = 1.0  # of the base model's answers; 0: the likeliest

    def __post_init__(self):
        self.out = self.out or self.resume or f"out/{self.task}-sft"
        super().__post_init__()


# 2. Targets: what the base model says without the bait

def make_targets(model, prompts, cfg):
    """K answers of the base model to each clean prompt, drawn once. prompts: (wrapped, clean)
    ids. -> {clean ids: K lists of ids}; at temperature 0 one, for all K would be the same."""
    asked = sorted(dict.fromkeys(clean for _, clean in prompts), key=len)
    rng = torch.Generator(model.device).manual_seed(cfg.seed)
    samples = cfg.samples if cfg.target_temperature > 0 else 1
    answers = answer_all(model, asked, cfg, samples, cfg.target_temperature, rng)
    return dict(zip(asked, answers))


# 3. Loss: cross-entropy by hand

def token_nll(student, target):
    """-log p(target): logits (N, V), tokens (N,) -> (N,) nats, fp32."""
    return -student.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]


# 4. Train: the loop of opct.py. A line that differs says so

def train(cfg):
    """Evaluate, train, evaluate; write the run's files to cfg.out. -> model, tokenizer,
    results (of results.json). UserError: what is wrong, and what to do."""
    model, tokenizer, pairs, prompts, held_out = prepare(cfg)  # prompts: (wrapped, clean)
    targets = make_targets(model, prompts, cfg)  # SFT: answered once, now
    params = add_lora(model, cfg.lora_rank, cfg.lora_alpha)
    optimizer = torch.optim.Adam(params, lr=cfg.lr, betas=(0.9, 0.95))
    run = Run(cfg, model, optimizer, [prompts, targets])  # SFT: targets are data
    with teacher(model):
        before = evaluate(model, tokenizer, held_out, cfg)

    steps = itertools.islice(batches(pairs, cfg.prompts, cfg.seed), run.done, cfg.steps)
    run.clock = time.time()
    try:
        for chosen in steps:
            batch = [prompts[i] for i in chosen[RANK::WORLD]]  # this process's share

            # 1. SFT: the base model has answered the clean prompts
            answers = [targets[clean] for _, clean in batch]  # SFT: not sampled now
            [tokens] = total(sum(len(y) for group in answers for y in group))
            loss_sum = 0.0
            for wrapped, clean, ys in micro_batches(batch, answers, cfg.token_budget):
                # 2. SFT: no teacher reads them
                # 3. the student reads them behind the wrapped ones, SFT: learns each token
                packed = pack(wrapped, ys)
                s = read(model, packed)  # (N, V) what it says with the bait
                nll = token_nll(s, packed.target.to(s.device))  # (N,) SFT: no KL
                loss = nll.sum() / tokens  # SFT: as the KL, of the whole step
                loss.backward()
                loss_sum += loss.item()

            # 4. one step of Adam on the gradient of all processes
            sum_gradients(params)
            norm = nn.utils.clip_grad_norm_(params, cfg.grad_clip)
            run.before_update(loss_sum, answers, norm)
            optimizer.step()
            optimizer.zero_grad()
            run.after_update()
    finally:
        run.close()  # whatever ended the loop, the steps done are saved

    after = evaluate(model, tokenizer, held_out, cfg)
    return model, tokenizer, run.results(held_out, before, after)


if __name__ == "__main__":
    sys.exit(opct.main(train=train, Config=Config))
