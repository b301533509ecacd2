"""How much memory a step takes, reckoned from the shape of the model.

    python data/memory.py --model FOLDER_OR_NAME --token-budget 2048 ...    the flags of opct.py

Reckoned, not measured; tests/test_fast.py holds it against what autograd keeps, and
tests/bench.py against the peak of a whole step.
"""
import argparse
import sys
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

QWEN3 = dict(vocab_size=151936, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960)
SHAPES = {  # as published in the models' config.json
    "SmolLM2-135M": lambda: transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True, head_dim=64),
    "Qwen3-0.6B": lambda: transformers.Qwen3Config(
        **QWEN3, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, tie_word_embeddings=True),
    "Qwen3-4B": lambda: transformers.Qwen3Config(
        **QWEN3, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, tie_word_embeddings=True),
    "Qwen3-8B": lambda: transformers.Qwen3Config(
        **QWEN3, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, tie_word_embeddings=False)}


def linears(config):
    """(in, out) of the linear layers of one transformer layer with a gated MLP."""
    H, I = config.hidden_size, config.intermediate_size
    D = getattr(config, "head_dim", None) or H // config.num_attention_heads
    A, KV = config.num_attention_heads * D, config.num_key_value_heads * D
    return [(H, A), (H, KV), (H, KV), (A, H), (H, I), (H, I), (I, H)]


def memory(config, prompts=8, samples=4, prompt_tokens=256, new_tokens=256, token_budget=2048,
           kl_chunk=256, lora_rank=16, gradient_checkpointing=False, bytes_each=2):
    """-> GB (1e9 bytes) by what they are for: the phases sampling and reading take turns, so the
    peak is that of the larger one."""
    H, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    layer, embedding = linears(config), V * H * (1 if config.tie_word_embeddings else 2)
    I, A, KV = config.intermediate_size, layer[0][1], layer[1][1]
    weights = (L * sum(i * o for i, o in layer) + embedding) * bytes_each
    # fp32: weights, gradients, Adam's two moments
    adapter = 16 * lora_rank * L * sum(i + o for i, o in layer)
    if not lora_rank:  # all weights train, in fp32, and the teacher has a copy
        number = weights / bytes_each
        weights, adapter = 4 * number, 16 * number
    rows = prompts * samples
    cache = rows * (prompt_tokens + new_tokens) * 2 * KV * L * bytes_each
    sampling = cache + 3 * rows * V * 4  # softmax, cumsum, logits
    # what autograd keeps of a layer for each token, counted on the code of transformers 5; in
    # bf16 the norms add fp32 copies
    a_token = (4 * H + 4 * I + 6 * A) * (1.25 if bytes_each == 2 else 1)
    kept = H * L + a_token if gradient_checkpointing else a_token * L
    reading = (token_budget * kept + 2 * token_budget ** 2) * bytes_each
    head = 6 * kl_chunk * V * 4  # logits, log-softmax of both, probabilities, their gradients
    parts = {"weights": weights, "adapter": adapter, "sampling": sampling,
             "reading": reading + head}
    parts["peak"] = weights + adapter + max(sampling, reading + head)
    return {name: value / 1e9 for name, value in parts.items()}


def main():
    from data import plumbing
    from opct import parse_config
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    args, more = parser.parse_known_args()

    def tell():
        cfg = parse_config(more)
        config = SHAPES[cfg.model]() if cfg.model in SHAPES else (
            transformers.AutoConfig.from_pretrained(cfg.model))
        parts = memory(config, cfg.prompts, cfg.samples, args.prompt_tokens, cfg.max_new_tokens,
                       cfg.token_budget, cfg.kl_chunk, cfg.lora_rank, cfg.gradient_checkpointing,
                       4 if cfg.dtype == "float32" else 2)
        print("\n".join(f"{name:10}{gb:8.2f} GB" for name, gb in parts.items()))
    sys.exit(plumbing.exit_code(tell))


if __name__ == "__main__":
    main()
