"""Model families: what opct.py computes on each is what the library computes slowly."""
import pytest
import torch
from families import FAMILIES, REFUSED, checks, make

import opct
from data import adapter, alone

BOUNDS = {"sampling": 1e-3, "tree": 1e-3, "head": 1e-5, "gradients": 1e-3, "adapter off": 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_the_library_reads_it(family):
    got = checks(family)
    assert {name: got[name] for name in BOUNDS if not got[name] <= BOUNDS[name]} == {}


def test_models_that_keep_a_state_are_read_alone_and_no_others():
    stateful = {"Llama 4", "Mamba", "Mamba 2", "Qwen3-Next", "Nemotron-H", "Jamba", "Falcon-H1",
                "RecurrentGemma", "LFM2"}
    assert {f for f in FAMILIES if alone.needed(make(f))} == stateful


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_no_decoder_is_refused_by_name(family, tmp_path):
    REFUSED[family]().save_pretrained(tmp_path)
    with pytest.raises(opct.UserError, match="encoder"):
        opct.load_model(opct.Config(model=str(tmp_path)))


@pytest.mark.parametrize("family", ["Gemma 2", "Qwen3-MoE", "Nemotron-H"])
def test_a_folder_of_another_family_is_trained_and_merged_by_the_same_path(family, tmp_path, tiny):
    make(family, len(tiny[1])).save_pretrained(tmp_path / "model")
    tiny[1].save_pretrained(tmp_path / "model")
    flags = "--steps 1 --eval-questions 2 --prompts 2 --samples 2 --max-new-tokens 4".split()
    assert opct.main(["--model", str(tmp_path / "model"), *flags, "--out", str(tmp_path / "out"),
                      "--merge", str(tmp_path / "merged")]) == 0
    model, _ = opct.load_model(opct.Config(model=str(tmp_path / "model")))
    merged, _ = opct.load_model(opct.Config(model=str(tmp_path / "merged")))
    opct.add_lora(model, 16, 32)
    adapter.load(model, tmp_path / "out")
    ids = torch.tensor([tiny[1].encode("What is the capital of Kenya?")])
    ours, theirs = model(input_ids=ids).logits, merged(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
