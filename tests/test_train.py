"""Sections 7 and 9: what a run leaves behind. What a step computes: test_loss.py."""
import json

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


def test_a_run_leaves_its_files_and_returns_what_results_json_holds(run):
    out, _, _, results = run
    assert {p.name for p in out.iterdir()} == {
        "log.jsonl", "results.json", "answers.jsonl", "answers.html", "checkpoint.pt",
        "adapter_model.safetensors", "adapter_config.json"}
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {"config", "versions", "hardware", "seconds"} < results.keys()
    for when in ("before", "after"):
        shares = dict(results[when])
        assert {"value", "low", "high", "n"} <= shares.pop("capability").keys()
        assert shares.pop("drift")["value"] == 0 or when == "after"
        assert shares.keys() == {"unseen", "seen", "control"}
        for split in shares.values():
            assert {"accuracy_wrapped", "follow_wrapped", "consistency", "unparsed", "truncated",
                    "kl"} < split.keys()
            assert all(m["low"] <= m["value"] <= m["high"] for m in split.values())


def test_each_step_is_a_line_of_the_log_behind_the_config(run):
    first, *steps = lines(run[0] / "log.jsonl")
    assert first["config"]["steps"] == 3 and "torch" in first["versions"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all({"loss", "tokens", "truncated", "grad_norm", "seconds"} <= step.keys()
               and 8 <= step["tokens"] <= 48 and step["grad_norm"] > 0 for step in steps)


def test_the_page_holds_every_answer_and_no_markup(run):
    answers = lines(run[0] / "answers.jsonl")
    assert {a["split"] for a in answers} == {"unseen", "seen", "control"} and len(answers) == 12
    assert all({"clean", "wrapped", "wrapped_verdict", "tokens"} <= a[when].keys()
               for a in answers for when in ("before", "after"))
    page = (run[0] / "answers.html").read_text(encoding="utf-8")
    data = page.split('type="application/json">')[1].split("</script>")[0]
    assert "<" not in data and json.loads(data)["answers"] == answers


def test_the_adapter_is_peft_s_merging_it_gives_the_trained_model_and_the_seed_decides(
        run, tmp_path):
    out, model, tokenizer, _ = run
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(ROOT / "data/tiny")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 32)
    tensors, (base, _) = st.load_file(out / "adapter_model.safetensors"), opct.load_model(
        opct.Config())
    for name in config["target_modules"]:
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
        base.get_submodule(name).weight += config["lora_alpha"] / config["r"] * b @ a
    assert not tensors and "model.layers.0.mlp.up_proj" in config["target_modules"]
    ids = torch.tensor([opct.encode(tokenizer, opct.chat("What is the capital of Peru?"))])
    with torch.no_grad():
        ours, with_teacher = model(ids).logits, None
        with opct.teacher(model):
            with_teacher = model(ids).logits
        torch.testing.assert_close(base(ids).logits, ours, atol=1e-4, rtol=1e-4)
    assert (ours - with_teacher).abs().max() > 0.1
    for seed in (0, 1):
        opct.train(opct.Config(out=f"{tmp_path}/{seed}", seed=seed, **SHORT))
        again = st.load_file(tmp_path / f"{seed}/adapter_model.safetensors")
        first = st.load_file(out / "adapter_model.safetensors")
        assert all(torch.equal(again[n], first[n]) for n in first) == (seed == 0)
