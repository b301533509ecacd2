"""Which model families opct.py reads right: every check on a tiny random model of each.

    python tests/families.py [--write data/results/families.json]

What is compared is always the slow way of the library itself: one prompt, one answer, no cache, the
model's own forward pass. tests/test_families.py holds every figure to its bound.
"""
import argparse
import json
import sys
from pathlib import Path

from conftest import SIZES, greedy_alone, logits_alone, prompt_of

import torch
import transformers

import opct
from data import alone, report, tables

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "Llama": lambda: transformers.LlamaConfig(**SIZES),
    "Mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "Qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "Qwen3": lambda: transformers.Qwen3Config(
        **SIZES, head_dim=8, use_sliding_window=True, sliding_window=5, layer_types=MIXED),
    "Qwen3-MoE": lambda: transformers.Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        norm_topk_prob=True),
    "SmolLM3": lambda: transformers.SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1]),
    "Gemma 2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=5, final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0, attn_implementation="eager"),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=5, layer_types=MIXED, final_logit_softcapping=3.0),
    "Phi-3": lambda: transformers.Phi3Config(**SIZES, sliding_window=5),
    "OLMo 2": lambda: transformers.Olmo2Config(**SIZES),
    "Granite": lambda: transformers.GraniteConfig(
        **SIZES, logits_scaling=4.0, embedding_multiplier=2.0, residual_multiplier=0.7),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5,
        layer_types=MIXED),
    "Cohere": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.5),
    "DeepSeek-V3": lambda: transformers.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4}, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1),
    "GPT-2": lambda: transformers.GPT2Config(
        vocab_size=97, n_positions=128, n_embd=32, n_layer=3, n_head=4, eos_token_id=2,
        bos_token_id=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    # these keep a state, or see the prompt in pieces: read alone
    "Llama 4": lambda: transformers.Llama4TextConfig(
        **{**SIZES, "num_hidden_layers": 4}, head_dim=8, intermediate_size_mlp=48,
        num_local_experts=2, num_experts_per_tok=1, attention_chunk_size=5,
        layer_types=["chunked_attention", "full_attention"] * 2),
    "Mamba": lambda: transformers.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=2,
        bos_token_id=1, pad_token_id=0, use_mambapy=False),
    "Mamba 2": lambda: transformers.Mamba2Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8,
        n_groups=2, expand=2, chunk_size=8, eos_token_id=2, bos_token_id=1, pad_token_id=0),
    "Qwen3-Next": lambda: transformers.Qwen3NextConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, linear_conv_kernel_dim=3,
        layer_types=["linear_attention", "full_attention", "linear_attention"]),
    "Nemotron-H": lambda: transformers.NemotronHConfig(
        **{**SIZES, "num_hidden_layers": 3}, head_dim=8, layers_block_type=[
            "mamba", "attention", "mlp"], mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8,
        n_groups=2, chunk_size=8),
    "Jamba": lambda: transformers.JambaConfig(
        **{**SIZES, "num_hidden_layers": 4}, num_experts=2, num_experts_per_tok=1,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, use_mamba_kernels=False),
    "Falcon-H1": lambda: transformers.FalconH1Config(
        **SIZES, head_dim=8, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=8),
    "RecurrentGemma": lambda: transformers.RecurrentGemmaConfig(
        **SIZES, lru_width=32, attention_window_size=5,
        block_types=["recurrent", "recurrent", "attention"]),
    "LFM2": lambda: transformers.Lfm2Config(
        **SIZES, layer_types=["conv", "full_attention", "conv"], conv_L_cache=3),
}
REFUSED = {"T5": transformers.T5Config, "BART": transformers.BartConfig,
           "ModernBERT": transformers.ModernBertConfig}
PROMPTS = [prompt_of(n, n) for n in (9, 4, 13)]
ANSWERS = [[prompt_of(5, 20 + 2 * n), prompt_of(3, 21 + 2 * n)] for n in range(3)]
ROWS = [(p, a) for p, group in zip(PROMPTS, ANSWERS) for a in group]


def make(family, vocab=97):
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.vocab_size = vocab
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if model.base_model is model:  # as load_model does
        model.base_model_prefix = "model"
    for p in model.parameters():  # the usual initialisation is so small that all logits are alike
        p.data.mul_(4 if p.dim() > 1 else 1)
    return model.requires_grad_(False)


def nats(ours, theirs):
    """The largest difference of log-probabilities."""
    return (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max().item()


def sampling(model):
    """Logits while sampling, from cache, fork and ragged prompts, against the whole text read
    again. For models read alone: 0 if the likeliest answers are those of that slow way, else 1."""
    if alone.needed(model):
        got = opct.sample(model, PROMPTS, 1, 6, 0.0, {2})
        return float([g[0] for g in got] != [greedy_alone(model, p, 6, {2}) for p in PROMPTS])
    seen, head = [], opct.head
    opct.head = lambda m, h: seen.append(head(m, h)) or seen[-1]
    try:
        answers = opct.sample(model, PROMPTS, 2, 6, 1.0, {-1}, torch.Generator().manual_seed(0))
    finally:
        opct.head = head
    cached = torch.stack(seen, 1)  # (B*K, R, V)
    flat = [(p, a) for p, group in zip(PROMPTS, answers) for a in group]
    return max(nats(c, logits_alone(model, p, a)) for c, (p, a) in zip(cached, flat))


def tree(model):
    """Logits of six answers to three prompts in one row against each read alone."""
    ours = opct.head(model, opct.read(model, opct.pack(PROMPTS, ANSWERS)))  # (N, V)
    return nats(ours, torch.cat([logits_alone(model, p, a) for p, a in ROWS]))


def gradients(model, params):
    """The same of the gradients of all answers' log-probabilities: the largest difference, over
    the largest gradient."""
    def grads(logits):
        target = torch.tensor([t for _, a in ROWS for t in a])
        loss = -logits.log_softmax(-1).gather(-1, target[:, None]).mean()
        return torch.autograd.grad(loss, params, allow_unused=True)
    ours = grads(opct.head(model, opct.read(model, opct.pack(PROMPTS, ANSWERS))))
    theirs = grads(torch.cat([logits_alone(model, p, a) for p, a in ROWS]))
    pairs = [(a, b) for a, b in zip(ours, theirs) if b is not None]
    size = max(b.abs().max().item() for _, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs) / size


def head(model):
    """opct.head() on the model's hidden states against the model's own logits."""
    ids = torch.tensor([PROMPTS[0]])
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return nats(opct.head(model, hidden[0]), model(input_ids=ids).logits[0])


def checks(family):
    """-> {check: difference}, with trained-looking weights in the adapter."""
    model = make(family)
    ids = torch.tensor([PROMPTS[0]])
    base = model(input_ids=ids).logits
    out = {"sampling": sampling(model), "tree": tree(model), "head": head(model)}
    params = opct.add_lora(model, 4 if any(
        isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()
        for m in model.modules()) else 0, 8)
    dice = torch.Generator().manual_seed(1)
    for p in params:
        p.data.add_(torch.randn(p.shape, generator=dice) * 0.1)
    out["gradients"] = gradients(model, params)
    with torch.no_grad(), opct.teacher(model):
        out["adapter off"] = (model(input_ids=ids).logits - base).abs().max().item()
    changed = (model(input_ids=ids).logits - base).abs().max().item()
    assert changed > 0.01, f"{family}: the adapter does nothing"
    return {**out, "read": "alone" if alone.needed(model) else "in a tree"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", default="")
    args = parser.parse_args()
    result = {"families": {family: checks(family) for family in FAMILIES},
              "refused": sorted(REFUSED), "versions": report.versions(),
              "hardware": report.hardware(make("Llama"))}
    if args.write:
        Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    print(tables.families(result))


if __name__ == "__main__":
    sys.exit(main())
