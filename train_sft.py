"""Supervised fine-tuning (SFT), the baseline of OPCT, parallel to opct.py.

The student is trained by cross-entropy to answer the wrapped prompt as the base model answered the
clean one:

    clean prompt ────── y     the base model answers, once, before training
    wrapped prompt ──── y     the student reads that answer behind the wrapped prompt
    loss = mean over every answer token of -log student(y_t | wrapped, y<t)

So who wrote the answer differs from opct.py, and what is matched (one token, not the distribution).
The rest is imported, and the same flags give both arms the same number of answers a step (here one
to each of B * K prompts), steps, adapter, optimizer, seeds and evaluation.

    python train_sft.py    the embedded model, as long as python opct.py
"""
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

import opct
from data import judges, plumbing, ranks, report
from data.loading import target_ids
from opct import (Checkpoints, UserError, add_lora, answer_all, batches, check_reading, compare,
                  encode_pairs, eos_tokens, evaluate, head, learned, load_model, load_pairs,
                  micro_batches, pack, read, sample, timed, token_kl)


# 1. Config: that of opct.py (--kl has no effect), and where the targets come from
# --------------------------------------------------------------------------------------------------

@dataclass
class Config(opct.Config):
    targets: str = ""                # a targets.jsonl to train on; empty: the base model writes one
    target_temperature: float = 1.0  # of the base model's answers; 0 takes the likeliest token

    def __post_init__(self):
        self.out = self.out or f"out/{self.task}-sft"
        super().__post_init__()
        self.prompts, self.samples = self.prompts * self.samples, 1  # answers a step as in OPCT


# 2. Targets: what the base model says without the bait
# --------------------------------------------------------------------------------------------------

def make_targets(model, tokenizer, pairs, prompts, cfg):
    """One answer to the clean prompt of every pair, from --targets or the base model, written to
    out/targets.jsonl -> token ids, in the order of pairs."""
    path = Path(cfg.targets or f"{cfg.out}/targets.jsonl")
    asked = {json.dumps(pair.clean): clean for pair, (_, clean) in zip(pairs, prompts)}
    if cfg.targets or cfg.resume:
        rows = plumbing.read_jsonl(path, ("prompt",))
        known = {json.dumps(row["prompt"]): row for row in rows}
        missing = [chat for chat in asked if chat not in known]
        if missing:
            raise UserError(f"--targets {path}: does not fit the data: no target for "
                            f"{len(missing)} of {len(asked)} prompts, the first {missing[0]:.80}")
        targets = {c: target_ids(known[c], tokenizer, path, cfg) for c in asked}
    else:
        dice = ranks.generator(model.device, cfg.seed, "targets")
        answers = answer_all(model, list(asked.values()), cfg, cfg.target_temperature, dice)
        targets = dict(zip(asked, answers))
    if ranks.rank() == 0:
        plumbing.write_jsonl(Path(cfg.out) / "targets.jsonl", [
            {"prompt": json.loads(chat), "ids": ids,
             "target": tokenizer.decode(ids, skip_special_tokens=True)}
            for chat, ids in targets.items()])
    return [targets[json.dumps(pair.clean)] for pair in pairs]


# 3. Loss: cross-entropy by hand
# --------------------------------------------------------------------------------------------------

def token_nll(student, target):
    """-log p(target): logits (N, V), tokens (N,) -> (N,) nats, fp32."""
    return -student.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]


def sft_loss(model, batch, targets, cfg):
    """One step on prompts [(wrapped ids, clean ids), ...] and their targets -> loss (nats a token),
    metrics. Rows as in opct_loss. kl, which opct_loss minimises, is measured, not trained."""
    seconds, ends = Counter(), eos_tokens(model)
    tokens, count, cut, learning = ranks.total(  # of all processes, if there are several
        sum(map(len, targets)), len(targets), sum(t[-1] not in ends for t in targets),
        learned(model, targets, cfg).sum().item())

    def both(s, t, target):  # (n, V), (n, V), (n,) -> (n, 2)
        return torch.stack([token_nll(s, target), token_kl(s, t).detach()], -1)

    loss, kl = torch.zeros((), device=model.device), 0.0
    for row in micro_batches(batch, [[target] for target in targets], cfg.token_budget):
        if loss.requires_grad:
            with timed(seconds, "student", model):
                loss.backward()
        weight = learned(model, [a for _, group in row for a in group], cfg)  # (N,) 1, or 0
        nll, row_kl = weight @ compare(model, row, cfg, both, seconds) / max(learning, 1)  # (2,)
        loss, kl = loss.detach() + nll, kl + row_kl.item()
    nll, kl = ranks.total(loss.item(), kl)
    return loss, {"loss": nll, "kl": kl, "tokens": tokens, "answer_length": tokens / count,
                  "cut": cut / count, "seconds": seconds, "answers": [[t] for t in targets]}


# 4. Train: the loop of opct.py. A line that differs says so
# --------------------------------------------------------------------------------------------------

def train(cfg):
    """Evaluate, train, evaluate; leave the run's files in cfg.out. -> what results.json holds."""
    out, started = plumbing.check_out(cfg), time.time()
    torch.manual_seed(cfg.seed)
    pairs = load_pairs(cfg, "train")
    held_out = [p for split in ("eval", "seen", "control") for p in load_pairs(cfg, split)]
    model, tokenizer = load_model(cfg)
    check_reading(model, cfg.model, sample, lambda *tree: head(model, read(model, pack(*tree))))
    prompts = encode_pairs(model, tokenizer, pairs, cfg)
    targets = make_targets(model, tokenizer, pairs, prompts, cfg)  # SFT: answered once, now
    before = evaluate(model, tokenizer, held_out, cfg)

    params = add_lora(model, cfg.lora_rank, cfg.lora_alpha)
    optimizer = torch.optim.Adam(params, lr=cfg.lr, betas=(0.9, cfg.beta2))
    kept = Checkpoints(out, cfg, model, optimizer, [prompts, targets])  # SFT: belongs to these
    done = kept.begin()
    log = report.Log(out, cfg, done)
    try:
        for chosen in itertools.islice(batches(pairs, cfg), done, cfg.steps):
            optimizer.param_groups[0]["lr"] = cfg.lr * min(1, (done + 1) / max(1, cfg.warmup))
            batch = [prompts[i] for i in ranks.share(chosen)]  # with torchrun: this process's part
            answers = [targets[i] for i in ranks.share(chosen)]  # SFT: not sampled
            loss, metrics = sft_loss(model, batch, answers, cfg)  # SFT: learn these
            with timed(metrics["seconds"], "student", model):
                loss.backward()
                ranks.sum_gradients(params)
            norm = nn.utils.clip_grad_norm_(params, cfg.grad_clip)
            answers, rows = ranks.gather(metrics.pop("answers")), [pairs[i].row for i in chosen]
            if not torch.isfinite(loss + norm):  # stop before the weights take it up
                log.stop(done + 1, loss, norm, rows, answers)
            metrics.update(follow=judges.follow_rate(cfg.task, model, tokenizer, answers, rows),
                           grad_norm=norm.item(), lr=optimizer.param_groups[0]["lr"])
            with kept.whole_step():
                optimizer.step()
                optimizer.zero_grad()
                done += 1
                log.step(done, metrics)
            if done % cfg.save_every == 0:
                kept.save(done)
    except KeyboardInterrupt:
        raise UserError(f"stopped after step {done}; all is in {out}, --resume goes on with it")
    finally:  # whatever ended it, keep what there is
        with plumbing.no_interrupt():
            kept.save(done)
            log.close()
    after = evaluate(model, tokenizer, held_out, cfg) if done or cfg.adapter else dict(before)
    return report.write(out, cfg, model, before, after, time.time() - started)


if __name__ == "__main__":
    sys.exit(opct.main(train=train, Config=Config))
