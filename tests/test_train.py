"""Sections 7 and 9: what a run leaves behind. What a step computes: test_loss.py."""
import json
import os

import pytest
import safetensors.torch as st
import torch
from conftest import ROOT

import opct

SHORT = dict(category="capitals", steps=3, prompts=4, samples=2, max_new_tokens=6,
             eval_questions=4, lr=1e-2)

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "run"
    return out, *opct.train(opct.Config(out=str(out), **SHORT))

def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

def test_a_run_leaves_its_files_with_ordinary_permissions(run):
    assert {p.name for p in run[0].iterdir()} == {
        "log.jsonl", "results.json", "answers.jsonl", "checkpoint.pt",
        "adapter_model.safetensors", "adapter_config.json"}
    os.umask(umask := os.umask(0))
    assert {p.stat().st_mode & 0o777 for p in run[0].iterdir()} == {0o666 & ~umask}

def test_results_hold_every_figure_with_its_interval_and_are_what_train_returns(run):
    out, _, _, results = run
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {"config", "versions", "hardware", "seconds"} < results.keys()
    for when in ("before", "after"):
        shares = {**results[when]["unseen"], "capability": results[when]["capability"]}
        assert {"accuracy_wrapped", "follow_wrapped", "unparsed", "kl"} < shares.keys()
        assert all(m["low"] <= m["value"] <= m["high"] and m["n"] for m in shares.values())
        assert {"seen", "control", "drift"} < results[when].keys()

def test_log_and_answers_hold_every_step_and_answer(run):
    first, *steps = lines(run[0] / "log.jsonl")
    assert first["config"]["steps"] == 3 and "torch" in first["versions"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all({"loss", "truncated", "seconds"} < step.keys() and 8 <= step["tokens"] <= 48
               and step["grad_norm"] > 0 for step in steps)
    answers = lines(run[0] / "answers.jsonl")
    assert [a["split"] for a in answers[::4]] == ["unseen", "seen", "control", "transfer",
                                                  "capability"]
    assert all({"clean", "wrapped", "wrapped_verdict"} < a[when].keys()
               for a in answers for when in ("before", "after"))

@torch.no_grad()
def test_the_adapter_is_peft_s_and_merging_it_gives_the_trained_model(run):
    out, model, tokenizer, _ = run
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(ROOT / "data/tiny")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 32)
    tensors = st.load_file(out / "adapter_model.safetensors")
    merged, _ = opct.load_model(opct.Config())
    for name in config["target_modules"]:
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
        merged.get_submodule(name).weight += config["lora_alpha"] / config["r"] * b @ a
    assert not tensors and "model.layers.0.mlp.up_proj" in config["target_modules"]
    ids = torch.tensor([opct.encode(tokenizer, opct.chat("What is the capital of Peru?"))])
    trained = model(ids).logits
    torch.testing.assert_close(merged(ids).logits, trained, atol=1e-4, rtol=1e-4)
    with opct.teacher(model):
        assert (model(ids).logits - trained).abs().max() > 0.1

def test_the_same_seed_gives_the_same_run_and_another_another(run, tmp_path):
    first = (run[0] / "adapter_model.safetensors").read_bytes()
    for seed in (0, 1):
        opct.train(opct.Config(out=f"{tmp_path}/{seed}", seed=seed, **SHORT))
        again = (tmp_path / f"{seed}/adapter_model.safetensors").read_bytes()
        assert (again == first) == (seed == 0)
