"""Tiny random models of several kinds, and the slow way of doing what opct.py does fast."""
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GOMP_SPINCOUNT="0",
                  CUDA_VISIBLE_DEVICES="")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import opct  # noqa: E402
from configs import KINDS  # noqa: E402

def make_model(config, seed=0):
    """A random model of a config, or of one of the KINDS."""
    torch.manual_seed(seed)
    config = KINDS[config]() if isinstance(config, str) else config
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():  # else so small that all logits are alike
        p.data.mul_(4 if p.dim() > 1 else 1)
    return model.requires_grad_(False)

def add_adapter(model):
    """An adapter that does something. -> its parameters"""
    params, rng = opct.add_lora(model, 4, 8), gen(1)
    for p in params:
        p.data = torch.randn(p.shape, generator=rng) * 0.2
    return params

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an out/ of the user's is not in the way

@pytest.fixture(params=sorted(KINDS))
def model(request):
    return make_model(request.param)

@pytest.fixture
def llama():
    return make_model("rotary")

@pytest.fixture
def adapted(llama):
    return llama, add_adapter(llama)

@pytest.fixture(scope="session")
def tiny():
    return opct.load_model(opct.Config())

def gen(seed=0):
    return torch.Generator().manual_seed(seed)

def prompt_of(length, seed):
    return torch.randint(3, 90, (length,), generator=gen(seed)).tolist()

def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

def read_alone(model, prompts, answers):
    """The slow way: every answer alone, no cache, the model's own forward. -> (N, V)"""
    logits = []
    for prompt, answer in [(p, y) for p, ys in zip(prompts, answers) for y in ys]:
        ids = torch.tensor([[*prompt, *answer]])  # (1, P + R)
        logits.append(model(input_ids=ids).logits[0, len(prompt) - 1:-1])  # (R, V)
    return torch.cat(logits)

def greedy_alone(model, prompt, length, eos):
    """The slow way: the whole text again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + length:
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in eos:
            break
    return ids[len(prompt):]

class Countdown(torch.nn.Module):
    """A "model" that counts down from the first token of a prompt of two; to which all 16
    tokens are alike, if it is not sure. Keys hold token ids, so that mixed-up rows show."""
    config = SimpleNamespace(get_text_config=SimpleNamespace)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, sure=True):
        super().__init__()
        self.sure, self.rows_run = sure, []  # rows_run: how many rows each call had

    def forward(self, input_ids, position_ids, past_key_values, **others):
        keys = input_ids[:, None, :, None].float()  # (rows, 1, Q, 1)
        keys = past_key_values.update(keys, keys, 0)[0]  # (rows, 1, T, 1)
        self.rows_run.append(len(input_ids))
        token = (keys[:, 0, 0, 0].long() - position_ids[:, -1]) % 16  # (rows,)
        logits = 9.0 * self.sure * torch.nn.functional.one_hot(token, 16)  # (rows, V)
        return SimpleNamespace(logits=logits[:, None])
