"""Loading a model, applying its chat template, refusing what cannot work. Nothing of the method."""
import itertools
import json
from pathlib import Path

import jinja2
import torch
import transformers

from data.fast import multiplies, recompute_layers
from data.plumbing import UserError, check, is_text
from data.thinking import Thinking

ROOT = Path(__file__).resolve().parent.parent


def load_model(cfg):
    """-> model (eval mode, no gradients), tokenizer. UserError if it is missing or unusable."""
    local = Path(cfg.model) if Path(cfg.model).is_dir() else ROOT / cfg.model
    path = local if local.is_dir() else cfg.model
    transformers.utils.logging.disable_progress_bar()
    device = cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        check_layers(config, cfg.model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not tokenizer.encode("a"):
            raise OSError("the tokenizer's files are missing")
        # attention scores are soft-capped by transformers' eager form only
        capped = getattr(config, "attn_logit_softcapping", None)
        how = {"attn_implementation": "eager"} if capped else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=pick_dtype(cfg, config, device), trust_remote_code=False, **how)
        model = model.to(device).eval()
    except UserError:
        raise
    except Exception as e:  # a folder can be broken in more ways than transformers has errors
        where = "cannot be loaded" if local.is_dir() else "no such folder, nor on the hub"
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"--model {cfg.model} --device {device}: {where}: {why}")
    if model.base_model is model:  # Llama 4 calls its body otherwise
        model.base_model_prefix = "model"
    if cfg.gradient_checkpointing:
        recompute_layers(model)
    model.ends = eos_tokens(model) | {tokenizer.eos_token_id} - {None}
    model.thinking = Thinking(tokenizer, cfg.thinking == "on")
    return model.requires_grad_(False), tokenizer


def encode(tokenizer, chat, thinking=False):
    """Chat messages -> token ids of the prompt, up to where the assistant begins to speak."""
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no chat template; take the "
                        "instruction-tuned model, or add a chat_template.jinja to the folder")
    for m in chat:
        refuse_control(tokenizer, m["content"])
    try:
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True,
                                             return_dict=False, enable_thinking=thinking)
    except jinja2.TemplateError as e:  # Gemma's refuses system messages
        raise UserError(f"{tokenizer.name_or_path}: its chat template refuses a prompt: {e}")


def refuse_control(tokenizer, text):
    """Data must not be able to end its own turn."""
    added = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    for token in {*tokenizer.all_special_tokens, *added}:
        check(token not in text, f"a text holds the control token {token}: {text[:50]}")
    check(is_text(text), f"holds half of a surrogate pair, which is no text: {text[:50]}")


def target_ids(row, tokenizer, path, cfg):
    """A row's own token ids, or those of its text and an end token, or SFT never learns to stop."""
    ids, text = row.get("ids"), row.get("target")
    if not ids and isinstance(text, str):
        refuse_control(tokenizer, text)
        ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id]
    if not (isinstance(ids, list) and all(type(i) is int and 0 <= i < len(tokenizer) for i in ids)
            and 0 < len(ids) <= cfg.max_new_tokens):
        raise UserError(f"--targets {path}: neither 'ids', tokens of this model, nor a text in "
                        f"'target', of at most {cfg.max_new_tokens} tokens: {json.dumps(row):.80}")
    return ids


def encode_pairs(model, tokenizer, pairs, cfg):
    """Pairs -> [(wrapped ids, clean ids)]. UserError if an answer has no room behind a prompt."""
    context, known = model.config.max_position_embeddings, {}
    for chat in itertools.chain(*((p.wrapped, p.clean) for p in pairs)):
        key = json.dumps(chat)
        if key not in known:
            known[key] = encode(tokenizer, chat, cfg.thinking == "on")
        if len(known[key]) + cfg.max_new_tokens > context:
            raise UserError(f"a prompt of {len(known[key])} tokens and --max-new-tokens "
                            f"{cfg.max_new_tokens} are over the context of {context}: {key[:60]}")
    return [tuple(known[json.dumps(chat)] for chat in (p.wrapped, p.clean)) for p in pairs]


def pick_dtype(cfg, config, device):
    """auto: bf16 if the model is published in 16 bits and the device multiplies it natively.
    Weights that train (rank 0) are fp32: Adam's steps are finer than bf16."""
    if cfg.dtype != "auto":
        return getattr(torch, cfg.dtype)
    native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) or (
        device == "cpu" and multiplies(torch.bfloat16))
    half = config.dtype in (torch.bfloat16, torch.float16)  # as published
    return torch.bfloat16 if native and half and cfg.lora_rank else torch.float32


def eos_tokens(model):
    """The set of tokens that end an answer: load_model has added the tokenizer's to the model's."""
    ends = getattr(model, "ends", None) or model.generation_config.eos_token_id
    return {ends} if isinstance(ends, int) else set(ends or ())


def scaled(config, logits):
    """What some families do to their logits (N, V)."""
    if getattr(config, "logits_scaling", None):  # Granite
        logits = logits / config.logits_scaling
    if getattr(config, "logit_scale", None):  # Cohere
        logits = logits * config.logit_scale
    cap = getattr(config, "final_logit_softcapping", getattr(config, "logits_soft_cap", None))
    return torch.tanh(logits / cap) * cap if cap else logits  # Gemma


def layer_kinds(config):
    """The kinds of layers a model has; each kind has its own attention mask."""
    windowed = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or
               ["sliding_attention" if windowed else "full_attention"])


def check_layers(config, name):
    """Refuse, by name, what is no decoder."""
    if config.is_encoder_decoder or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"--model {name}: {config.model_type} is an encoder or an encoder-decoder; "
                        "take a decoder, which continues a text")


@torch.no_grad()
def check_reading(model, name, sample, score):
    """Refuse a model that the tree would misread: the second answer in a tree must get the logits
    that the model's own forward pass gives it alone. sample is opct's; score(prompts, answers) ->
    logits (N, V) of the answers' tokens, read in a tree."""
    prompt, answers = [5, 6, 7, 8], [[9, 10, 11], [12, 13, 14]]
    try:
        sample(model, [prompt], 1, 2, 0.0, set())
        ours = score([prompt], [answers])[3:]  # (3, V)
    except (AttributeError, TypeError, ValueError, LookupError) as e:
        raise UserError(f"--model {name}: cannot be run with the cache and the masks of opct.py: "
                        f"{e}")
    alone = torch.tensor([prompt + answers[1]], device=model.device)  # (1, 7)
    theirs = model(input_ids=alone).logits[0, 3:6]  # (3, V)
    log_p, log_q = (x.float().log_softmax(-1) for x in (theirs, ours))  # (3, V) each
    worst, bound = (log_p - log_q).abs().max().item(), 1e-3  # nats
    if model.dtype != torch.float32:  # unlikely tokens are rounded much: the KL
        worst, bound = (log_p.exp() * (log_p - log_q)).sum(-1).max().item(), 0.05  # nats
    if not worst < bound:
        raise UserError(f"--model {name}: answers read side by side differ from answers read alone "
                        f"by {worst:.2g} nats; its attention or head is of a kind not known here")
