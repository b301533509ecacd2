"""What training made, as other tools take it: PEFT's format, or a model with the adapter merged."""
import json
from pathlib import Path

import safetensors
import safetensors.torch
import transformers

from data.plumbing import UserError, check, write_tensors, write_text


def key(name):
    """Our name of a parameter, model.layers.0.mlp.up_proj.A -> PEFT's."""
    return f"base_model.model.{name[:-1]}lora_{name[-1]}.weight"


def save(out, cfg, trained):
    """The adapter as PEFT, vLLM and transformers load it. trained: {name: parameter}."""
    write_tensors(out / "adapter_model.safetensors", {key(n): p for n, p in trained.items()})
    write_text(out / "adapter_config.json", json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": cfg.model,
        "r": cfg.lora_rank, "lora_alpha": cfg.lora_alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({n.split(".")[-2] for n in trained}),
        "fan_in_fan_out": False, "inference_mode": True}, indent=1))


def settings(folder):
    """Rank and alpha of an adapter in PEFT's format. UserError if it is no plain LoRA."""
    path = Path(folder) / "adapter_config.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = about["r"], about["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"--adapter {folder}: no adapter in PEFT's format there ({e})")
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        check(not about.get(name),
              f"--adapter {folder}: {path.name} has {name}, which is no plain LoRA")
    return rank, alpha


def load(model, folder):
    """Weights of an adapter in PEFT's format into the adapter of the model."""
    path = Path(folder) / "adapter_model.safetensors"
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(f"--adapter {path}: cannot be read: {e}")
    ours = {key(n): p for n, p in model.named_parameters() if p.requires_grad}
    for name, tensor in found.items():
        fits = name in ours and ours[name].shape == tensor.shape
        check(fits, f"--adapter {path}: {name} does not fit the model")
        ours[name].data.copy_(tensor)  # a module that it has nothing for keeps B = 0


def merge(model, folder):
    """W + alpha / rank B A in place of W, and the tokenizer, as a model folder. The model has no
    adapter afterwards."""
    for name, layer in [(n, m) for n, m in model.named_modules() if hasattr(m, "base")]:
        weight, delta = layer.base.weight, layer.scale * layer.B.data @ layer.A.data  # (out, in)
        weight.data = (weight.data.float() + delta).to(weight.dtype)  # (out, in)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    save_model(model, folder)


def save_model(model, folder):
    try:
        model.save_pretrained(folder)
    except safetensors.SafetensorError as e:  # a full disk comes as this
        raise OSError(f"{folder}: {e}")
    transformers.AutoTokenizer.from_pretrained(model.name_or_path).save_pretrained(folder)
