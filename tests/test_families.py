"""Model families: what opct.py computes on each is what the library computes slowly, or the
model is refused by name before anything is trained."""
import json
import re

import pytest
from families import FAMILIES, REFUSED, checks, refusal, run_of

import opct

BOUNDS = {"sampling": 1e-4, "reading": 1e-4, "gradients": 1e-4, "adapter off": 0}

@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_the_library_reads_it(family):
    got = checks(family)
    assert {name: got[name] for name in BOUNDS if not got[name] <= BOUNDS[name]} == {}

@pytest.mark.parametrize("family", REFUSED)
def test_what_would_be_misread_or_not_adapted_is_refused_by_name(family, tmp_path, tiny):
    reasons = {**dict.fromkeys(["Llama 4", "LFM2", "MPT", "GPT-Neo"], "masks and cache"),
               "RecurrentGemma": "recurrent state|masks and cache",  # by the version
               "GPT-2": "linear", "T5": "T5Config", "ModernBERT": "ModernBertConfig"}
    reason = reasons.get(family, "recurrent state")
    assert re.search(reason, refusal(family, tmp_path, tiny[1]))

@pytest.mark.parametrize("family", ["Gemma 2", "Qwen3-MoE", "Gemma 3, with images"])
def test_a_folder_of_another_family_is_trained_by_the_same_path(family, tmp_path, tiny):
    cfg = run_of(FAMILIES[family](), tmp_path, tiny[1])
    opct.train(cfg)
    log = (tmp_path / "out/log.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in log[1:]]
    assert [s["step"] for s in steps] == [1, 2] and all(s["loss"] > 0 for s in steps)
