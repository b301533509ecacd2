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

from conftest import (KINDS, MIXED, SIZES, add_adapter, gen, make_model, prompt_of,
                      read_alone)

import torch
import transformers

import opct

FAMILIES = {
    "Llama": KINDS["rotary"],
    "Mistral": KINDS["window"],
    "Qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "Qwen3": KINDS["sliding"],
    "Qwen3-MoE": lambda: transformers.Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        norm_topk_prob=True),
    "SmolLM3": lambda: transformers.SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1]),
    "Gemma 2": KINDS["capped"],
    "Gemma 3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=5, layer_types=MIXED,
        final_logit_softcapping=3.0),
    "Gemma 3, with images": KINDS["nested"],
    "Phi-3": lambda: transformers.Phi3Config(**SIZES, sliding_window=5),
    "OLMo 2": lambda: transformers.Olmo2Config(**SIZES),
    "Granite": KINDS["scaled"],
    "gpt-oss": lambda: transformers.GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5,
        layer_types=MIXED),
    "Cohere": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.5),
    "DeepSeek-V3": lambda: transformers.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4}, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1),
    "Falcon": lambda: transformers.FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        eos_token_id=2),
}
REFUSED = {  # they keep a state, see their text in pieces, or count places in the row
    "Llama 4": lambda: transformers.Llama4TextConfig(
        **{**SIZES, "num_hidden_layers": 4}, head_dim=8, intermediate_size_mlp=48,
        num_local_experts=2, num_experts_per_tok=1, attention_chunk_size=5,
        layer_types=["chunked_attention", "full_attention"] * 2),
    "Mamba": lambda: transformers.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=2,
        bos_token_id=1, pad_token_id=0, use_mambapy=False),
    "Qwen3-Next": lambda: transformers.Qwen3NextConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"]),
    "Nemotron-H": lambda: transformers.NemotronHConfig(
        **SIZES, head_dim=8, layers_block_type=["mamba", "attention", "mamba"],
        mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, n_groups=2, chunk_size=8),
    "Falcon-H1": lambda: transformers.FalconH1Config(
        **SIZES, head_dim=8, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8,
        mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
    "RecurrentGemma": lambda: transformers.RecurrentGemmaConfig(
        **SIZES, lru_width=32, attention_window_size=5,
        block_types=["recurrent", "recurrent", "attention"]),
    "LFM2": lambda: transformers.Lfm2Config(
        **SIZES, layer_types=["conv", "full_attention", "conv"], conv_L_cache=3),
    "MPT": lambda: transformers.MptConfig(
        vocab_size=97, d_model=32, n_heads=4, n_layers=2, max_seq_len=128),
    "GPT-Neo": lambda: transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        window_size=5, attention_types=[[["global", "local"], 1]]),
    "GPT-2": KINDS["absolute"],
    "T5": transformers.T5Config,
    "ModernBERT": transformers.ModernBertConfig,
}
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
