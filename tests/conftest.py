"""Tiny random models of several kinds, and the slow way of doing what opct.py does fast."""
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import opct  # noqa: E402

SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
             eos_token_id=2, bos_token_id=1, pad_token_id=0)
KINDS = {
    "rotary": lambda: transformers.LlamaConfig(**SIZES),
    "absolute": lambda: transformers.GPT2Config(
        vocab_size=97, n_positions=128, n_embd=32, n_layer=3, n_head=4, eos_token_id=2,
        bos_token_id=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "sliding": lambda: transformers.Qwen3Config(
        **SIZES, head_dim=8, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "window": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "capped": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=5, final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0, attn_implementation="eager"),
    "scaled": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
}


def make_model(kind, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).eval()
    for p in model.parameters():  # the usual initialisation is so small that all logits are alike
        p.data.mul_(4 if p.dim() > 1 else 1)
    return model.requires_grad_(False)


@pytest.fixture(params=sorted(KINDS))
def model(request):
    return make_model(request.param)


@pytest.fixture
def llama():
    return make_model("rotary")


@pytest.fixture
def adapted():
    """A model with an adapter that does something, and its trainable parameters."""
    model = make_model("rotary")
    params = opct.add_lora(model, 4, 8)
    generator = torch.Generator().manual_seed(1)
    for p in params:
        p.data = torch.randn(p.shape, generator=generator) * 0.2
    return model, params


@pytest.fixture(scope="session")
def tiny():
    return opct.load_model(opct.Config())


def prompt_of(length, seed):
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_alone(model, prompt, answer):
    """The slow way: one prompt, one answer, no cache, the model's own forward. -> (R, V)"""
    ids = torch.tensor([prompt + answer])  # (1, P + R)
    return model(input_ids=ids).logits[0, len(prompt) - 1:-1]


def greedy_alone(model, prompt, length, eos):
    """The slow way: the whole text again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + length:
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in eos:
            break
    return ids[len(prompt):]


class Scripted(torch.nn.Module):
    """A 'model' that says script[first token of the prompt][position], to stage answers that end at
    different times. Keys hold the token ids, so that a row mixed up with another shows."""

    def __init__(self, script, prompt_length, vocab=16):
        super().__init__()
        self.script, self.start, self.vocab, self.rows_run = script, prompt_length, vocab, []
        self.config = SimpleNamespace(num_attention_heads=1)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def base_model(self, input_ids, position_ids, attention_mask, past_key_values, use_cache):
        keys = input_ids[:, None, :, None].float()  # (rows, 1, Q, 1)
        keys = past_key_values.update(keys, keys, 0)[0]  # (rows, 1, T, 1)
        self.rows_run.append(len(input_ids))
        hidden = torch.zeros(*input_ids.shape, self.vocab)
        for row, first in enumerate(keys[:, 0, 0, 0].long().tolist()):
            for q, at in enumerate(position_ids.expand(input_ids.shape)[row].tolist()):
                step = at - self.start + 1
                if 0 <= step < len(self.script[first]):
                    hidden[row, q, self.script[first][step]] = 9
        return SimpleNamespace(last_hidden_state=hidden)

    def get_output_embeddings(self):
        return lambda hidden: hidden
