"""Several processes, one run: torchrun --nproc-per-node N opct.py ...

Every rank holds the model and takes its share of a step's prompts and of the evaluation. Without
torchrun there is one rank, and nothing here does anything."""
import contextlib
import os
import random

import torch
import torch.distributed as dist

from data.plumbing import UserError


@contextlib.contextmanager
def joined():
    """Inside it this process is one of the ranks, if torchrun started it."""
    joining = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    joining = joining and not dist.is_initialized()
    if joining:
        gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if gpus and local >= gpus:
            raise UserError(f"torchrun: process {local + 1} of this machine, which has {gpus} GPUs")
        if gpus:
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield
    finally:
        if joining:
            dist.destroy_process_group()


def check(cfg):
    if cfg.prompts < count():
        raise UserError(f"--prompts {cfg.prompts}: {count()} processes need one each, at least")


def count():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def share(items):
    """The part of a list that is this rank's."""
    return items[rank()::count()]


def gather(items):
    """The parts that share() made, or what became of them, as one list again on every rank."""
    if count() == 1:
        return items
    parts = [None] * count()
    with together():
        dist.all_gather_object(parts, items)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def total(*numbers):
    """Each number summed over the ranks."""
    if count() == 1:
        return numbers
    parts = [None] * count()
    with together():
        dist.all_gather_object(parts, numbers)
    return [sum(part) for part in zip(*parts)]


def sum_gradients(params):
    """Every gradient becomes the sum of those of all ranks, in one message."""
    params = [p for p in params if p.grad is not None]
    if count() > 1:
        flat = torch.cat([p.grad.flatten() for p in params])
        with together():
            dist.all_reduce(flat)
        for p, grad in zip(params, flat.split([p.numel() for p in params])):
            p.grad.copy_(grad.view_as(p))


def generator(device, *seed):
    """Random numbers of a step, other ones in every rank. Drawn anew from the seed each time, they
    need no place in a checkpoint."""
    seed = random.Random(" ".join(map(str, (*seed, rank())))).getrandbits(63)
    return torch.Generator(device).manual_seed(seed)


@contextlib.contextmanager
def together():
    """What needs all ranks: one that is gone is said, not waited for."""
    try:
        yield
    except RuntimeError as e:
        raise UserError("lost another process, which has stopped or died: see its message; what "
                        "there is is kept, --resume goes on with it "
                        f"({(str(e) or type(e).__name__).splitlines()[0]:.120})")
