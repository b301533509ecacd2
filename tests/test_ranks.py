"""Section 10: several processes give what one gives."""
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch as st
from conftest import ROOT

import opct

BOTH_ARMS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch, opct, train_sft
sample, seeds = opct.sample, []
def own_chances(model, prompts, *how):  # the same ones in whichever process
    if how[2] == 0:
        return sample(model, prompts, *how)
    seeds.append(how[-1].initial_seed())
    rng = [torch.Generator().manual_seed(sum(p)) for p in prompts]
    return [sample(model, [p], *how[:-1], g)[0] for p, g in zip(prompts, rng)]
opct.sample = own_chances
settings = dict(category="capitals", eval_questions=3, max_new_tokens=6, prompts=5,
                samples=3, steps=3, out=sys.argv[1] + "/opct")
argv = [x for k, v in settings.items() for x in ("--" + k.replace("_", "-"), str(v))]
assert opct.main(argv) == 0
train_sft.train(train_sft.Config(**{{**settings, "out": sys.argv[1] + "/sft"}}))
print("seeds", seeds[:3], flush=True)
"""

def test_two_processes_equal_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opct, "sample", opct.sample)  # to be put back
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "one")])
    exec(BOTH_ARMS, {})
    (tmp_path / "both.py").write_text(BOTH_ARMS)
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 both.py two"
    done = subprocess.run([sys.executable, *torchrun.split()], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    seeds = {line for line in done.stdout.splitlines() if line.startswith("seeds")}
    assert len(seeds) == 2  # else both would draw the same answers
    for arm in ("opct", "sft"):
        one, two = tmp_path / "one" / arm, tmp_path / "two" / arm
        a, b = (st.load_file(out / "adapter_model.safetensors") for out in (one, two))
        assert max(x.abs().max() for name, x in a.items() if "lora_B" in name) > 5e-4
        assert max((a[name] - b[name]).abs().max() for name in a) < 2e-5
        logs = [map(json.loads, (out / "log.jsonl").read_text().splitlines()[1:])
                for out in (one, two)]
        for x, y in zip(*logs, strict=True):
            assert x == pytest.approx({**y, "seconds": x["seconds"]}, rel=1e-4)
        x, y = (json.loads((out / "results.json").read_text()) for out in (one, two))
        assert y["hardware"]["processes"] == 2
        for when in ("before", "after"):
            a, b = ({k: m["value"] for k, m in r[when]["unseen"].items()} for r in (x, y))
            assert a == pytest.approx(b, abs=1e-3)

def test_fewer_prompts_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(opct, "WORLD", 2)
    with pytest.raises(opct.UserError, match="--prompts 1"):
        opct.Config(prompts=1)
