"""Tiny configs: of the model families that opct.py fits, of those that it refuses, and the
kinds of attention and position among them, on each of which the tests run."""
import transformers

SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
             eos_token_id=2, bos_token_id=1, pad_token_id=0)
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
        **SIZES, head_dim=8, sliding_window=5, layer_types=MIXED,
        final_logit_softcapping=3.0),
    # its window stands in text_config
    "Gemma 3, with images": lambda: transformers.Gemma3Config(
        text_config={**SIZES, "head_dim": 8, "sliding_window": 5, "layer_types": MIXED},
        vision_config=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                           num_attention_heads=2, image_size=28, patch_size=14),
        mm_tokens_per_image=4, image_token_index=96, boi_token_index=95,
        eoi_token_index=94),
    "Phi-3": lambda: transformers.Phi3Config(**SIZES, sliding_window=5),
    "OLMo 2": lambda: transformers.Olmo2Config(**SIZES),
    "Granite": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
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
    "GPT-2": lambda: transformers.GPT2Config(
        **SIZES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "T5": transformers.T5Config,
    "ModernBERT": transformers.ModernBertConfig,
}
KINDS = {
    "rotary": FAMILIES["Llama"],
    "absolute": REFUSED["GPT-2"],
    "sliding": FAMILIES["Qwen3"],
    "window": FAMILIES["Mistral"],
    "capped": FAMILIES["Gemma 2"],
    "scaled": FAMILIES["Granite"],
    "nested": FAMILIES["Gemma 3, with images"],
}
