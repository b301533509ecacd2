"""What a run can go on from: checkpoints that are whole or not there, and what they belong to."""
import contextlib
import hashlib
import json
import sys
from dataclasses import asdict

import safetensors
import torch

from data import adapter, ranks
from data.plumbing import UserError, no_interrupt, write_tensors

KEEP = 2  # the last checkpoint, and the one before it in case that one is damaged
# fields that do not change what is learned: a run may go on with other ones
FREE = ("out", "overwrite", "resume", "steps", "eval_questions", "eval_batch", "save_every",
        "judge", "targets", "gradient_checkpointing", "evaluate", "merge")


def digest(parts):
    """sha256 of (name, tensor or bytes) pairs, in order."""
    h = hashlib.sha256()
    for name, value in parts:
        h.update(name.encode())
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        h.update(value)
    return h.hexdigest()


def files(out):
    """The checkpoints of a run, newest first."""
    return sorted((out / "checkpoint").glob("step-*.safetensors"), reverse=True)


def step_of(path):
    return int(path.stem.removeprefix("step-"))


def read(path):
    """-> tensors, metadata. ValueError if the file is cut short or altered."""
    try:
        with safetensors.safe_open(path, "pt") as f:
            tensors, about = {n: f.get_tensor(n) for n in f.keys()}, f.metadata() or {}
    except safetensors.SafetensorError as e:
        raise ValueError(str(e))
    if about.get("sha256") != digest(sorted(tensors.items())):
        raise ValueError("its contents do not fit its checksum")
    return tensors, about


class Checkpoints:
    """The checkpoints of one run, each a file out/checkpoint/step-N.safetensors: trained weights,
    Adam's state, and what they belong to (settings, base weights, data)."""

    def __init__(self, out, cfg, model, optimizer, prompts):
        self.out, self.cfg, self.model = out, cfg, model
        self.optimizer, self.saved, self.broken = optimizer, None, False
        self.live = {n: p.data for n, p in self.trained().items()}
        base = getattr(model, "frozen", {}) or {
            n: p for n, p in model.named_parameters() if not p.requires_grad}
        self.origin = {
            "config": json.dumps({k: v for k, v in asdict(cfg).items() if k not in FREE}),
            "model": digest(base.items()),
            "data": digest([("prompts", json.dumps(prompts).encode())])}

    def trained(self):
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def whole_step(self):
        """A step is whole or it was not: an interrupt waits for its end, and after an error in the
        midst of it nothing is saved, so that the last checkpoint stands."""
        with no_interrupt():
            self.broken = True
            yield
            self.broken = False

    def save(self, step):
        """Written beside and moved into place; the one before is kept until this one is whole."""
        if self.saved == step or self.broken or ranks.rank() > 0 or self.cfg.evaluate:
            return
        for n, p in self.trained().items():  # --lora-rank 0: an interrupt may come when the
            p.data = self.live[n]            # teacher's weights are just in their place
        tensors = {}
        adam = self.optimizer.state_dict()["state"]
        for i, (name, p) in enumerate(self.trained().items()):
            tensors[name] = p
            tensors.update({f"{key}/{name}": value for key, value in adam.get(i, {}).items()})
        (self.out / "checkpoint").mkdir(parents=True, exist_ok=True)
        about = {"step": str(step), "sha256": digest(sorted(tensors.items())), **self.origin}
        with no_interrupt():
            write_tensors(self.out / f"checkpoint/step-{step:08}.safetensors", tensors, about)
            found = [f for f in files(self.out) if step_of(f) <= step]  # later ones: another run's
            for old in {*files(self.out)} - {*found[:KEEP]}:
                old.unlink()
            self.save_trained()
        self.saved = step

    def save_trained(self):
        """The adapter in PEFT's format; with --lora-rank 0 the model as a model folder."""
        if self.cfg.lora_rank:
            adapter.save(self.out, self.cfg, self.trained())
        else:
            adapter.save_model(self.model, self.out / "model")

    def begin(self):
        """Load what the run goes on from, if anything -> steps done."""
        if self.cfg.adapter:
            adapter.load(self.model, self.cfg.adapter)
        return self.load() if self.cfg.resume else 0

    def load(self):
        """The newest whole checkpoint into model and optimizer -> its step. UserError if
        it belongs to another run, or none is whole."""
        for path in files(self.out):
            try:
                state, about = read(path)
                break
            except ValueError as e:
                print(f"{path} is damaged ({e}); taking the one before it", file=sys.stderr)
        else:
            raise UserError(f"--resume: no checkpoint in {self.out} is whole; --overwrite begins "
                            "the run anew")
        self.refuse_another(about)
        if int(about["step"]) > self.cfg.steps:
            raise UserError(f"--steps {self.cfg.steps}: the run in {self.out} is already at step "
                            f"{int(about['step'])}")
        step, adam = int(about["step"]), self.optimizer.state_dict()
        for i, (name, p) in enumerate(self.trained().items()):
            p.data.copy_(state[name])
            if f"step/{name}" in state:
                adam["state"][i] = {key: state[f"{key}/{name}"]
                                    for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict(adam)
        return step

    def refuse_another(self, about):
        was, now = json.loads(about["config"]), json.loads(self.origin["config"])
        for name, value in now.items():
            if was.get(name) != value:
                raise UserError(f"--resume: the run was begun with --{name.replace('_', '-')} "
                                f"{was.get(name)}, not {value}")
        for name, what in (("model", "weights of the model"), ("data", "prompts to train on")):
            if about[name] != self.origin[name]:
                raise UserError(f"--resume: the {what} are not those the run was begun with; "
                                "--overwrite begins it anew")
