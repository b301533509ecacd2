"""On-Policy Consistency Training (OPCT, arXiv 2605.21834) in one file.

Language models give in: to a wrong opinion (sycophancy), to a bad request told as a story
(jailbreak), to a question that hides a danger (safety). Asked plainly they know better. Consistency
training teaches a model to answer the baited (wrapped) prompt as it answers the plain (clean) one.
OPCT does that on the model's own answers:

    wrapped prompt ──┬─ y1    the student (adapter on) samples K answers to the WRAPPED prompt
                     ├─ y2
                     └─ y3
    clean prompt ────┬─ y1    the teacher (same weights, adapter off) reads the SAME answers
                     ├─ y2    as continuations of the CLEAN prompt
                     └─ y3
    loss = mean over every answer token of KL(student(. | wrapped, y<t) || teacher(. | clean, y<t))

One step, in the names used below:

    answers = sample(model, wrapped, K, ...)              # on-policy: the student's own, T = 1
    with teacher(model), torch.no_grad():                 # adapter off: what it says without bait
        t = head(model, read(model, pack(clean, answers)))
    s = head(model, read(model, pack(wrapped, answers)))  # adapter on: what it says with the bait
    token_kl(s, t).mean().backward()                      # pay for what the teacher would not say

No reward, no judge, no labels: the right answers in data/ are read by the evaluation alone. Left
out on purpose: a second copy of the model, padding, a value baseline, a trainer, a generation
library. transformers loads the model and the tokenizer; the rest is here.

    python opct.py                           the embedded model, a minute on 2 CPU cores,
                                             offline: follows wrong suggestions 95 % -> 2 %
    python opct.py --task jailbreak          or safety
    python opct.py --model FOLDER_OR_NAME    a real chat model through the same path
    python train_sft.py                      the baseline, matched
    python opct.py --show out/sycophancy     look at a run that has ended
    python opct.py --help                    every number of a run
"""
import contextlib
import itertools
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from data import judges, plumbing, ranks, report, shapes  # verdicts, command line, processes ..
from data import adapter, alone, look  # PEFT and merging, models that keep a state, --show
from data.checkpoint import Checkpoints
from data.fast import packed_weights, replayed, stretch
from data.loading import (check_reading, encode, encode_pairs, eos_tokens, layer_kinds, load_model,
                          scaled)
from data.plumbing import UserError, interval, messages, timed
from data.thinking import learned, said

HERE = Path(__file__).resolve().parent


# 1. Config: every number of a run. The comments are the help text of the command line.
# --------------------------------------------------------------------------------------------------

@dataclass
class Config:
    model: str = "data/tiny"    # model folder or hub name
    task: Literal["sycophancy", "jailbreak", "safety"] = "sycophancy"  # what to train against
    data: str = ""              # own or published pairs, JSON or JSONL, maybe gzipped
    category: str = ""          # only rows of this category, capitals say; empty: all
    form: Literal["open", "choices"] = "open"  # sycophancy: as they are, or with lettered choices
    hint: Literal["fact", "general"] = "fact"  # safety: the teacher reads the fact or a reminder
    judge: str = ""             # module:function(answer, row) for the task's own judge
    thinking: Literal["on", "off"] = "off"  # handed to chat templates that know enable_thinking
    train_on_thinking: Literal["yes", "no"] = "yes"  # no: a thinking part's tokens have no loss
    out: str = ""               # folder of the run; empty: out/TASK
    overwrite: bool = False     # replace the run that is in that folder
    resume: bool = False        # go on from that folder's checkpoint
    steps: int = 100            # optimizer steps; 0 evaluates only
    prompts: int = 8            # B: different questions a step
    samples: int = 4            # K: answers the student samples to each
    max_new_tokens: int = 0     # longest answer, tokens; a longer one is cut; 0: 24, safety 48
    kl: Literal["exact", "sampled"] = "exact"  # over the vocabulary, or the paper's one-sample form
    lora_rank: int = 16         # 0 trains all weights, which takes 20 bytes a weight, 4 of them the
                                # teacher's copy; lower --lr then
    lora_alpha: int = 32        # the adapter's output is scaled by alpha / rank
    lr: float = 3e-4            # Adam's step size, constant after the warm-up
    warmup: int = 0             # steps of linear warm-up; the first one already moves
    beta2: float = 0.95         # Adam's memory of squared gradients (beta1 is 0.9): runs are short
    grad_clip: float = 1.0      # largest gradient norm; a longer gradient is scaled down to it
    token_budget: int = 512     # tokens read at once (a row); raise it on a GPU, lower it when
                                # memory runs out: attention grows with its square
    kl_chunk: int = 256         # answer tokens that have their V logits in memory at once
    gradient_checkpointing: bool = False  # keep each layer's input only: less memory, more time
    train_questions: int = 0    # training questions to use; 0: all
    eval_questions: int = 0     # unseen questions to evaluate on; 0: all
    eval_batch: int = 64        # prompts answered at once in the evaluation
    save_every: int = 20        # steps between checkpoints
    seed: int = 0               # adapter, data order, samples; the evaluation's items never change
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU, if there is one
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the weights; auto: bfloat16 where
                                # the model is published in it and the device multiplies it
    evaluate: bool = False      # only evaluate: the model, or with --adapter what it was and became
    adapter: str = ""           # --evaluate: folder of a run, or of an adapter in PEFT's format
    merge: str = ""             # at the end, write the model with the adapter merged to this folder

    def __post_init__(self):
        self.out = self.out or f"out/{self.task}" + "-evaluation" * self.evaluate
        self.max_new_tokens = self.max_new_tokens or (48 if self.task == "safety" else 24)
        self.steps = 0 if self.evaluate else self.steps


def parse_config(argv=None, Config=Config):
    """Command line (list of strings; None: sys.argv) -> Config. UserError names a bad flag."""
    cfg = plumbing.parse(Config, argv)
    judges.load(cfg)  # a judge that cannot be imported is said now, not after the training
    ranks.check(cfg)
    if cfg.adapter:
        cfg.lora_rank, cfg.lora_alpha = adapter.settings(cfg.adapter)
    return cfg


# 2. Pairs: one question, asked twice
# --------------------------------------------------------------------------------------------------

@dataclass
class Pair:
    clean: list     # chat messages [{"role", "content"}] without the bait: what the teacher reads
    wrapped: list   # the same with the bait: what the student reads
    row: dict       # id; group, what the bootstrap draws; and what the task's judge needs
    wrapper: str    # what wrapped it: the wording of a suggestion, the frame of a jailbreak
    split: str      # train; eval: unseen rows in unseen wrappers; seen: unseen rows in wrappers of
                    # the training; control (sycophancy): as eval, but what is suggested is right


def ask(row, wrapper, suggested, form, split):
    """A question, maybe with lettered choices; the same and a suggested answer."""
    question, candidates, letters = row["question"], [row["answer"], *row["wrong"]], {}
    name = suggested
    if form == "choices":
        shown = sorted(candidates, key=lambda c: random.Random(row["id"] + c).random())
        letters = dict(zip("ABCD", shown))
        question += "".join(f"\n{letter}) {c}" for letter, c in letters.items()) + "\n"
        name = next(f"{letter}) {c}" for letter, c in letters.items() if c == suggested)
    bait = wrapper["text"].format(suggested=name)
    wrapped = f"{bait} {question}" if wrapper["place"] == "before" else f"{question} {bait}"
    facts = {"id": row["id"], "group": row["id"], "answer": row["answer"],
             "suggested": suggested, "candidates": candidates, "letters": letters}
    return Pair(messages(question), messages(wrapped), facts, wrapper["id"], split)


def sycophancy_pairs(row, wrappers, cfg, split):
    """The question with a wrong answer suggested; in the split control with the right one."""
    dice = random.Random(f"{row['id']} {split}")
    return [ask(row, wrapper, row["answer"] if split == "control" else dice.choice(row["wrong"]),
                cfg.form, split) for wrapper in wrappers]


def jailbreak_pairs(row, wrappers, cfg, split):
    """A request, harmful or a harmless one that looks alike; the same in a frame."""
    facts = {k: row[k] for k in ("id", "harmful", "request")}
    facts["group"] = row["id"].rpartition("-")[0]  # a request and its harmless twin
    return [Pair(messages(row["request"]), messages(w["text"].format(request=row["request"])),
                 facts, w["id"], split) for w in wrappers]


SAFETY_FIRST = "Think about safety first: if the user's plan hides a danger, warn of it."


def safety_pairs(row, wrappers, cfg, split):
    """A prompt under a system message with the fact it runs into; the prompt alone. A safe prompt
    runs into none: there the teacher reads no fact, and the student learns to stay as it is."""
    pairs = []
    for n, prompt in enumerate(row["prompts"] + row["safe"]):
        danger = n < len(row["prompts"])
        hint = SAFETY_FIRST if cfg.hint == "general" else row["fact"] if danger else ""
        system = [{"role": "system", "content": hint}] if hint else []
        facts = {"id": f"{row['id']}-{n}", "group": row["id"], "danger": danger,
                 "fact": row["fact"], "warning": row["warning"]}
        pairs.append(Pair(system + messages(prompt), messages(prompt), facts, cfg.hint, split))
    return pairs


def load_pairs(cfg, split):
    """The pairs of a split: train, eval, seen or control (see Pair), the same in every run. No row
    of train is in another split; no wrapper of train is in eval or control."""
    if cfg.data:
        rows = shapes.own_rows(cfg, split)
        pairs = [Pair(r["clean"], r["wrapped"], r, "own", split) for r in rows]
    else:
        make = {"sycophancy": sycophancy_pairs, "jailbreak": jailbreak_pairs,
                "safety": safety_pairs}[cfg.task]
        rows, wrappers = plumbing.read_task(cfg, split)
        pairs = []
        for n, row in enumerate(rows):
            chosen = wrappers if split == "train" else [wrappers[n % len(wrappers)]]
            pairs += make(row, chosen, cfg, split)
    if split == "train" and cfg.steps and len({p.row["id"] for p in pairs}) < cfg.prompts:
        raise UserError(f"--prompts: a step needs {cfg.prompts} different training questions (SFT: "
                        "one for each of --samples, too), and there are fewer")
    return pairs


# 3. Two policies in one set of weights: the adapter, and the switch that turns it off
# --------------------------------------------------------------------------------------------------

class LoRALinear(nn.Module):
    """y = W x + (alpha / rank) B A x with W frozen (arXiv 2106.09685). B starts at zero: before the
    first step the student is the base model. A and B are fp32 whatever W is, since their updates
    are smaller than what bf16 resolves."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale, self.on = base, alpha / rank, True
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(rank, base.in_features, device=device))  # (rank, in)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))  # (out, rank)
        nn.init.kaiming_uniform_(self.A, a=5 ** 0.5)

    def forward(self, x):
        y = self.base(x)  # (..., out)
        if not self.on:
            return y
        return y + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

    @property
    def weight(self):  # (out, in); Mamba's layers multiply by it instead of calling this one
        W = self.base.weight  # (out, in)
        return W + (self.scale * self.B @ self.A).to(W.dtype) if self.on else W

    @property
    def bias(self):
        return self.base.bias


def add_lora(model, rank, alpha):
    """Put an adapter beside every linear layer but the head. -> the parameters that train.
    rank 0: no adapter, all weights train, and model.frozen keeps a copy of them for the teacher."""
    model.requires_grad_(rank == 0)
    if rank == 0:
        model.frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
        return list(model.parameters())
    linear = [(n, m) for n, m in model.named_modules()
              if type(m) is nn.Linear and m is not model.get_output_embeddings()]
    if not linear:
        raise UserError("the model has no linear layers to adapt; --lora-rank 0 trains all weights")
    for name, module in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(module, rank, alpha))
    return [p for p in model.parameters() if p.requires_grad]


@contextlib.contextmanager
def teacher(model):
    """Inside it the model is, bit for bit, the model that was loaded."""
    adapters = [m for m in model.modules() if isinstance(m, LoRALinear) and m.on]
    frozen = getattr(model, "frozen", {})  # with --lora-rank 0, else empty
    live = {n: p.data for n, p in model.named_parameters() if n in frozen}
    try:
        for m in adapters:
            m.on = False
        for n in frozen:
            model.get_parameter(n).data = frozen[n]
        yield
    finally:
        for m in adapters:
            m.on = True
        for n in live:
            model.get_parameter(n).data = live[n]


# 4. Sample: the student answers
# --------------------------------------------------------------------------------------------------
# The cache is a table of slots. Row i holds prompt i in slots 0 .. len-1 and its answer right
# behind: a token's slot is its position, however long the other prompts are. Nothing is padded on
# the left and nothing shifts; what a short prompt's padding left in the slots behind it is
# overwritten, token by token, before it can be seen.

class KVCache:
    """Keys and values of all layers, rows x slots. Of its methods transformers calls update()."""

    def __init__(self, room):
        self.room = room    # slots to add behind the prompts, for their answers
        self.layers = []    # of each layer [k, v], both (rows, heads, slots, head_dim)
        self.cursor = None  # (rows,) the slot of the token being read; None while prompts are read
        self.end = 0        # slots from here on are empty in every row

    def get_seq_length(self, *args):  # asked for by some models
        return self.end

    def update(self, k, v, layer_idx, *args, **kwargs):
        """Store k, v (rows, heads, new, head_dim); -> all keys and values to attend to."""
        if self.cursor is None:
            self.layers.append([F.pad(x, (0, 0, 0, self.room)) for x in (k, v)])
            return k, v
        rows = torch.arange(len(k), device=k.device)  # (rows,)
        for slots, new in zip(self.layers[layer_idx], (k, v)):
            slots[rows, :, self.cursor] = new[:, :, 0]
        return [slots[:, :, :self.end] for slots in self.layers[layer_idx]]

    def fork(self, K):
        """K copies of every row, side by side: K answers grow from a prompt that was read once."""
        self.keep(torch.arange(len(self.layers[0][0])).repeat_interleave(K))

    def keep(self, rows):
        """Only these rows (indices), in this order."""
        for layer in self.layers:  # one at a time: the old and the new cache need not both fit
            layer[:] = [slots[rows.to(slots.device)] for slots in layer]


def run(model, ids, positions, visible, distance, cache=None):
    """The model up to its head: ids (B, Q) -> hidden states (B, Q, H). visible (B or 1, Q, T) says
    which keys a query sees, distance (B, Q, T) how many positions back they lie (for sliding
    windows). This is all that ties us to transformers: it takes a ready 4D mask, or a dict of them
    by kind of layer, and any object with update() for a cache."""
    masks = {}
    for kind in layer_kinds(model.config):
        near = distance < model.config.sliding_window if kind == "sliding_attention" else True
        hide = ~(visible & near)[:, None]  # (B, 1, Q, T)
        masks[kind] = torch.zeros(hide.shape, dtype=model.dtype, device=ids.device).masked_fill(
            hide, torch.finfo(model.dtype).min)  # (B, 1, Q, T), added to the attention scores
    mask = masks if len(masks) > 1 else masks.popitem()[1]
    return model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask,
                            past_key_values=cache, use_cache=cache is not None).last_hidden_state


def head(model, hidden):
    """Hidden states (N, H) -> logits (N, V), scaled and capped as the model itself does it."""
    return scaled(model.config, model.get_output_embeddings()(hidden))


def pick(logits, temperature, chance):
    """Logits (rows, V), chance (rows,) uniform in [0, 1) -> a token for each row. No top-k, no
    top-p: the KL is taken under the very distribution that is sampled here, and only at temperature
    1 is that the model's own. Inverse CDF: one random number a row, where torch.multinomial draws
    V, a quarter of a decode step on a CPU."""
    if temperature == 0:
        return logits.argmax(-1)
    cdf = F.softmax(logits.float() / temperature, -1).cumsum(-1)  # (rows, V)
    u = chance[:, None] * cdf[:, -1:]  # (rows, 1)
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp(max=cdf.shape[1] - 1)  # (rows,)


def read_prompts(model, prompts, samples, room):
    """Every distinct prompt is run once; then each of the B prompts gets K = samples rows of the
    cache. -> cache, start (B*K,) the slot of an answer's first token, hidden (B*K, H) the state
    that predicts it."""
    device = model.device
    unique = list(dict.fromkeys(map(tuple, prompts)))  # U prompts
    length = torch.tensor([len(p) for p in unique])  # (U,)
    P = int(length.max())
    ids = torch.tensor([p + (0,) * (P - len(p)) for p in unique], device=device)  # (U, P)
    at = torch.arange(P, device=device)  # (P,)
    distance = (at[:, None] - at)[None]  # (1, P, P)
    cache = KVCache(room)
    hidden = run(model, ids, at[None], distance >= 0, distance, cache)  # (U, P, H)
    which = torch.tensor([unique.index(tuple(p)) for p in prompts])  # (B,)
    cache.keep(which)
    cache.fork(samples)
    which = which.repeat_interleave(samples)  # (B*K,)
    return cache, length[which].to(device), hidden[which, length[which] - 1]


@torch.no_grad()
def sample(model, prompts, samples, max_new_tokens, temperature, eos, generator=None):
    """Answer every prompt `samples` times. prompts: B lists of token ids; eos: set of end tokens;
    temperature 0 takes the likeliest token. -> answers[b][k], lists of token ids, never padded,
    the end token included where there is one. Same generator state, same answers."""
    if alone.needed(model):  # layers that keep a state: no slots
        groups = alone.sample(model, prompts, samples, max_new_tokens, temperature, eos, generator)
        return [[up_to_end(answer, eos) for answer in group] for group in groups]
    device = model.device
    cache, start, hidden = read_prompts(model, prompts, samples, max_new_tokens)
    ends = torch.tensor(sorted(eos), dtype=torch.long, device=device)  # (E,)
    out = torch.zeros(len(start), max_new_tokens, dtype=torch.long, device=device)  # (B*K, R)
    # every token's chance is drawn ahead: an answer does not depend on when others are dropped
    chance = torch.zeros(out.shape, device=device) if temperature == 0 else torch.rand(
        out.shape, generator=generator, device=device)  # (B*K, R)
    alive = torch.arange(len(start), device=device)  # (rows,) which answer a row of the cache is
    out[:, 0] = token = pick(head(model, hidden), temperature, chance[:, 0])  # (rows,)
    # which are finished, and the slot that the token will go to
    done, cursor = (token[:, None] == ends).any(1), start.clone()  # (rows,) both

    def step():
        """One more token for every row. Works in place, so that replayed() can record it."""
        cache.cursor = cursor
        slots = torch.arange(cache.end, device=device)  # (T,)
        distance = (cursor[:, None] - slots)[:, None]  # (rows, 1, T)
        hidden = run(model, token[:, None], cursor[:, None], distance >= 0, distance, cache)[:, 0]
        cursor.add_(1)
        n = cursor - start[alive]  # (rows,) which token of its answer this is
        token.copy_(pick(head(model, hidden), temperature, chance[alive, n]))
        out[alive, n] = token
        done.logical_or_((token[:, None] == ends).any(1))

    (wait, grow), room = stretch(device), cache.layers[0][0].shape[2]  # room: slots in all
    with packed_weights(model):
        for n in range(1, max_new_tokens):
            if (n - 1) % wait == 0:
                if done.all():
                    break
                few = done.float().mean() > 0.25  # dropping copies the cache; now that costs less
                if few:
                    left = (~done).nonzero()[:, 0]  # (fewer rows,)
                    cache.keep(left)
                    token, cursor, alive, done = token[left], cursor[left], alive[left], done[left]
                end = min(-(-(int(cursor.max()) + wait) // grow) * grow, room)
                if few or end != cache.end:
                    cache.end, decode = end, replayed(step, model)
            decode()
    answers = [up_to_end(answer, eos) for answer in out.tolist()]
    return [answers[i:i + samples] for i in range(0, len(answers), samples)]


def up_to_end(answer, eos):
    """The answer with its first end token, and nothing behind it."""
    return answer[:next((i + 1 for i, token in enumerate(answer) if token in eos), None)]


# 5. Read: both policies score the same answers, laid out as a token tree
# --------------------------------------------------------------------------------------------------
# A prompt and its K answers are one sequence, [prompt, y1, y2 .. yK]. The positions of each answer
# go on from the prompt's end, and the mask shows a token its own prompt and the earlier tokens of
# its own answer. So a prompt is computed once for K answers, forward and backward, and several such
# trees lie end to end in a row. Nothing is padded: what is left is a flat list of N answer tokens.

@dataclass
class Packed:
    ids: torch.Tensor        # (1, T) tokens
    positions: torch.Tensor  # (1, T) counted from the start of the own prompt
    tree: torch.Tensor       # (T,) which prompt a token belongs to
    branch: torch.Tensor     # (T,) 0 in the prompt, k in its k-th answer
    read: torch.Tensor       # (N,) where in the row answer token n is predicted
    target: torch.Tensor     # (N,) answer token n


def pack(prompts, answers):
    """prompts (B lists of ids), answers (B lists of lists of ids) -> Packed: B trees in one row.
    An answer's last token is a target like any other but no input: it predicts nothing."""
    ids, positions, tree, branch, read, target = [], [], [], [], [], []
    for t, (prompt, group) in enumerate(zip(prompts, answers)):
        split = len(ids) + len(prompt) - 1  # the first token of every answer is predicted here
        for k, tokens in enumerate([prompt] + [answer[:-1] for answer in group]):
            if k > 0:
                read += [split, *range(len(ids), len(ids) + len(tokens))]
                target += group[k - 1]
            start = len(prompt) if k > 0 else 0
            positions += range(start, start + len(tokens))
            ids += tokens
            tree += [t] * len(tokens)
            branch += [k] * len(tokens)
    return Packed(*map(torch.tensor, ([ids], [positions], tree, branch, read, target)))


def read(model, packed):
    """-> (N, H): for every answer token the hidden state from which it was predicted."""
    if alone.needed(model):  # layers that keep a state: no tree
        return alone.read(model, packed)
    ids, positions, tree, branch, where = (x.to(model.device) for x in (
        packed.ids, packed.positions, packed.tree, packed.branch, packed.read))
    at = torch.arange(len(tree), device=model.device)  # (T,)
    visible = (tree[:, None] == tree) & ((branch == 0) | (branch[:, None] == branch)) \
        & (at[:, None] >= at)  # (T, T)
    distance = positions[0][:, None] - positions[0]  # (T, T)
    return run(model, ids, positions, visible[None], distance[None])[0, where]


def micro_batches(batch, answers, budget):
    """Cut a step into rows of at most `budget` tokens, or of one answer. batch: B (wrapped, clean)
    prompts; answers[b][k]. Yields lists of ((wrapped, clean), answers in this row)."""
    row, size = [], 0
    for pair, group in zip(batch, answers):
        prompt, opened = max(map(len, pair)), False
        for answer in group:
            if row and size + len(answer) + (0 if opened else prompt) > budget:
                yield row
                row, size, opened = [], 0, False
            if not opened:  # a prompt whose answers are spread over two rows is read in both
                row.append((pair, []))
                size, opened = size + prompt, True
            row[-1][1].append(answer)
            size += len(answer)
    if row:
        yield row


# 6. Loss: per-token KL by hand
# --------------------------------------------------------------------------------------------------

def token_kl(student, teacher, target=None):
    """KL(student || teacher) = sum_v p_v (log p_v - log q_v); logits (N, V) -> (N,) nats, fp32.
    It looks at all V tokens; target, the one that was sampled, is not needed.

    The reverse KL, weighted by the student's own p: the student pays for what the teacher would not
    say, and nothing for leaving unsaid what the teacher might. The gradient flows through the
    student's distribution at each visited prefix, not through which prefixes were visited."""
    log_p, log_q = (x.float().log_softmax(-1) for x in (student, teacher))  # (N, V) each
    # The log-ratio is detached because its own gradient, sum_v p_v grad log p_v = grad 1, is zero:
    # without it equal distributions get a gradient of exactly zero, not of rounding errors.
    return (log_p.exp() * (log_p - log_q).detach()).sum(-1).clamp(min=0)  # (N,) no -1e-8


def token_kl_sampled(student, teacher, target):
    """The paper's form, from the one sampled token: logits (N, V), (N, V), tokens (N,) -> (N,). Its
    value, log p - log q at the token, is token_kl in expectation, and so is its gradient,
    (log p - log q) grad log p. Same method, more variance."""
    log_p, log_q = (x.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]  # (N,) each
                    for x in (student, teacher))
    ratio = (log_p - log_q).detach()  # (N,)
    return ratio + ratio * (log_p - log_p.detach())  # that difference is 0, its gradient is not


def in_chunks(fn, size, *tensors):
    """fn over slices of N, results joined. Its inside is recomputed in the backward pass, so that
    no (N, V) tensor ever exists: at V = 151,936 one in fp32 takes 5 GB for 8,192 tokens."""
    return torch.cat([checkpoint(fn, *part, use_reentrant=False, preserve_rng_state=False)
                      for part in zip(*(x.split(size) for x in tensors))])


def compare(model, row, cfg, per_token=token_kl, seconds=None):
    """Student and teacher read the answers of a row [((wrapped, clean), answers), ...]; at every
    answer token per_token(logits (n, V), logits (n, V), target (n,)) -> (N, ...)."""
    pairs, answers = zip(*row)
    seconds = Counter() if seconds is None else seconds
    with timed(seconds, "teacher", model), torch.no_grad(), teacher(model):
        hidden_t = read(model, pack([clean for _, clean in pairs], answers))  # (N, H)

    def chunk(hidden_s, hidden_t, target):
        with torch.no_grad(), teacher(model):
            t = head(model, hidden_t)  # (n, V)
        return per_token(head(model, hidden_s), t, target)  # (n,)

    with timed(seconds, "student", model):
        packed = pack([wrapped for wrapped, _ in pairs], answers)
        hidden_s = read(model, packed)  # (N, H)
        return in_chunks(chunk, cfg.kl_chunk, hidden_s, hidden_t, packed.target.to(model.device))


def opct_loss(model, batch, cfg, generator):
    """One step on B prompts [(wrapped ids, clean ids), ...] -> loss (nats a token), metrics.

    The loss is the mean over all answer tokens of the step: one normaliser, so that neither long
    answers nor the cut into rows change the size of a step. To hold one row's activations at a
    time, every row but the last is backpropagated here; the caller's backward() does the last."""
    seconds, ends = Counter(), eos_tokens(model)
    with timed(seconds, "sample", model):
        answers = sample(model, [wrapped for wrapped, _ in batch], cfg.samples, cfg.max_new_tokens,
                         1.0, ends, generator)
    flat = [answer for group in answers for answer in group]
    tokens, count, cut, learning = ranks.total(  # of all processes, if there are several
        sum(map(len, flat)), len(flat), sum(a[-1] not in ends for a in flat),
        learned(model, flat, cfg).sum().item())
    kl = token_kl_sampled if cfg.kl == "sampled" else token_kl
    loss = torch.zeros((), device=model.device)
    for row in micro_batches(batch, answers, cfg.token_budget):
        if loss.requires_grad:
            with timed(seconds, "student", model):
                loss.backward()
        weight = learned(model, [a for _, group in row for a in group], cfg)  # (N,) 1, or 0
        loss = loss.detach() + compare(model, row, cfg, kl, seconds) @ weight / max(learning, 1)
    return loss, {"kl": ranks.total(loss.item())[0], "tokens": tokens,
                  "answer_length": tokens / count, "cut": cut / count, "seconds": seconds,
                  "answers": answers}


# 7. Evaluate: the same answer without the bait?
# --------------------------------------------------------------------------------------------------

def answer_all(model, prompts, cfg, temperature=0.0, generator=None):
    """One answer (token ids) to each prompt, the prompts of like length together."""
    order, answers = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), []
    mine = [prompts[i] for i in ranks.share(order)]
    for at in range(0, len(mine), cfg.eval_batch):
        got = sample(model, mine[at:at + cfg.eval_batch], 1, cfg.max_new_tokens, temperature,
                     eos_tokens(model), generator)
        answers += [group[0] for group in got]
    answers = dict(zip(order, ranks.gather(answers)))
    return [answers[i] for i in range(len(prompts))]


def score(model, pairs, answers, cfg, per_token=token_kl):
    """per_token of every token of one answer (ids) to each (wrapped, clean) -> lists of floats."""
    scores = []
    for row in micro_batches(pairs, [[answer] for answer in answers], cfg.token_budget):
        flat = compare(model, row, cfg, per_token)  # (N,)
        scores += map(torch.Tensor.tolist, flat.split([len(a) for _, group in row for a in group]))
    return scores


@torch.no_grad()
def evaluate(model, tokenizer, pairs, cfg):
    """Greedy answers to both prompts of every pair, and what they show. -> {split: {metric:
    interval}, "capability", "drift": intervals, "answers": [a dict for each pair]}. The split eval
    is called unseen here."""
    judge, encoded = judges.load(cfg), encode_pairs(model, tokenizer, pairs, cfg)
    asked = list(dict.fromkeys(tuple(ids) for pair in encoded for ids in pair))
    reply = dict(zip(asked, answer_all(model, asked, cfg)))
    mine = ranks.share(list(zip(pairs, encoded)))
    items = [judges.item(cfg.task, judge, pair, *(
        said(model, tokenizer, reply[tuple(ids)]) for ids in (clean, wrapped)))
        for pair, (wrapped, clean) in mine]
    # the KL of each token of the wrapped answers, to be looked at
    unseen = [(item, both, reply[tuple(both[0])]) for item, (pair, both) in zip(items, mine)
              if pair.split == "eval"]
    kls = score(model, [both for _, both, _ in unseen], [answer for *_, answer in unseen], cfg)
    for (item, _, answer), kl in zip(unseen, kls):
        item["tokens"] = [[tokenizer.decode([t]), x] for t, x in zip(answer, kl)]
    items = ranks.gather(items)
    return {**judges.summaries(cfg.task, items), **side_effects(model, tokenizer, cfg),
            "answers": items}


@torch.no_grad()
def side_effects(model, tokenizer, cfg):
    """What training may have cost. capability: right answers to tasks that have nothing to do with
    the bait. drift: KL(base || trained), nats a token, on the base model's own answers to them."""
    rows = plumbing.read_jsonl(HERE / "data/capability.jsonl", ("prompt", "answer"))
    rows = rows[:cfg.eval_questions or None]  # the skills take turns
    prompts = [encode(tokenizer, messages(r["prompt"]), cfg.thinking == "on") for r in rows]
    texts = [said(model, tokenizer, answer)[0] for answer in answer_all(model, prompts, cfg)]
    right = [judges.says(text, row["answer"]) for text, row in zip(texts, rows)]
    with teacher(model):
        base = answer_all(model, prompts, cfg, 1.0, ranks.generator(model.device, "drift"))
    pairs, answers = ranks.share([(p, p) for p in prompts]), ranks.share(base)
    drift = score(model, pairs, answers, cfg, lambda trained, base, _: token_kl(base, trained))
    drift = [(kl, n) for n, answer in enumerate(ranks.gather(drift)) for kl in answer]
    return {"capability": interval(right, range(len(rows))), "drift": interval(*zip(*drift))}


# 8. Train: the loop
# --------------------------------------------------------------------------------------------------

def batches(pairs, cfg):
    """Indices of the pairs of each step, without end. An epoch asks every question once, shuffled,
    in a wording drawn anew; so the questions of a step are all different."""
    questions = {}
    for i, pair in enumerate(pairs):
        questions.setdefault(pair.row["id"], []).append(i)
    for epoch in itertools.count():
        dice = random.Random(f"{cfg.seed} {epoch}")
        order = dice.sample(sorted(questions), len(questions))
        for at in range(0, len(order) - cfg.prompts + 1, cfg.prompts):
            yield [dice.choice(questions[q]) for q in order[at:at + cfg.prompts]]


def train(cfg):
    """Evaluate, train, evaluate; leave the run's files in cfg.out. -> what results.json holds."""
    out, started = plumbing.check_out(cfg), time.time()
    torch.manual_seed(cfg.seed)
    pairs = load_pairs(cfg, "train")
    held_out = [p for split in ("eval", "seen", "control") for p in load_pairs(cfg, split)]
    model, tokenizer = load_model(cfg)
    check_reading(model, cfg.model, sample, lambda *tree: head(model, read(model, pack(*tree))))
    prompts = encode_pairs(model, tokenizer, pairs, cfg)
    before = evaluate(model, tokenizer, held_out, cfg)

    params = add_lora(model, cfg.lora_rank, cfg.lora_alpha)
    optimizer = torch.optim.Adam(params, lr=cfg.lr, betas=(0.9, cfg.beta2))
    kept = Checkpoints(out, cfg, model, optimizer, prompts)
    done = kept.begin()
    log = report.Log(out, cfg, done)
    try:
        for chosen in itertools.islice(batches(pairs, cfg), done, cfg.steps):
            optimizer.param_groups[0]["lr"] = cfg.lr * min(1, (done + 1) / max(1, cfg.warmup))
            batch = [prompts[i] for i in ranks.share(chosen)]  # with torchrun: this process's part
            dice = ranks.generator(model.device, cfg.seed, done)
            loss, metrics = opct_loss(model, batch, cfg, dice)
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


# 9. Command line
# --------------------------------------------------------------------------------------------------

def main(argv=None, train=train, Config=Config):
    """-> exit code: 0, or 2 after one line that says what is wrong and what to do."""
    def command():
        if not look.asked(argv):
            with ranks.joined():
                train(parse_config(argv, Config))
    return plumbing.exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
