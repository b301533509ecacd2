"""data/ranks.py: several processes give what one gives, and survive each other."""
import json
import os
import socket
import subprocess
import sys

import safetensors.torch
import torch
from conftest import ROOT

import opct

FLAGS = ["--eval-questions", "4", "--max-new-tokens", "8", "--prompts", "5", "--samples", "3",
         "--steps", "4", "--save-every", "2", "--train-questions", "20"]
BOTH_ARMS = """
import sys
sys.path.insert(0, {root!r})
import torch, opct, train_sft
alone = opct.sample
def own_dice(model, prompts, K, longest, temperature, ends, dice=None):
    if temperature == 0:
        return alone(model, prompts, K, longest, temperature, ends)
    # the same chance for a prompt, whichever process answers it
    seeds = [torch.Generator().manual_seed(sum(p)) for p in prompts]
    return [alone(model, [p], K, longest, temperature, ends, seed)[0]
            for p, seed in zip(prompts, seeds)]
opct.sample = own_dice
with opct.ranks.joined():
    sys.exit(opct.main([*sys.argv[2:], "--out", sys.argv[1] + "/opct"]) or opct.main(
        [*sys.argv[2:], "--out", sys.argv[1] + "/sft"], train_sft.train, train_sft.Config))
"""
RANK_1_DIES = """
import os, sys
sys.path.insert(0, {root!r})
import opct
step, steps = opct.opct_loss, []
def dies(*args):
    steps.append(1)
    if os.environ["RANK"] == "1" and len(steps) == 4:
        os._exit(1)
    return step(*args)
opct.opct_loss = dies
sys.exit(opct.main(sys.argv[1:]))
"""


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text.format(root=str(ROOT)))
    return str(path)


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]


def test_processes_draw_different_numbers_and_every_step_its_own(monkeypatch):
    def draw(*seed):
        return torch.rand(3, generator=opct.ranks.generator(torch.device("cpu"), *seed)).tolist()
    first, again, next_step = draw(0, 1), draw(0, 1), draw(0, 2)
    monkeypatch.setattr(opct.ranks, "rank", lambda: 1)
    assert first == again and len({tuple(x) for x in (first, next_step, draw(0, 1))}) == 3


def test_two_processes_equal_one(tmp_path):
    both = script(tmp_path, BOTH_ARMS)
    one, two, env = tmp_path / "one", tmp_path / "two", {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, both, str(one), *FLAGS], check=True, env=env)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                    "--nproc-per-node", "2", both, str(two), *FLAGS], check=True, env=env)
    for arm in ("opct", "sft"):
        a, b = (safetensors.torch.load_file(run / arm / "adapter_model.safetensors")
                for run in (one, two))
        assert a.keys() == b.keys() and max(x.abs().max() for x in a.values()) > 1e-3
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-5)
        for x, y in zip(lines(one / arm), lines(two / arm), strict=True):
            assert x["tokens"] == y["tokens"] and x["follow"] == y["follow"]
            assert abs(x["kl"] - y["kl"]) < 1e-5 and abs(x["grad_norm"] - y["grad_norm"]) < 1e-4
        a, b = (json.loads((run / arm / "results.json").read_text()) for run in (one, two))
        assert a["transcript"] == b["transcript"]
        for side in ("before", "after"):
            for split in ("unseen", "seen", "control"):
                for name, m in a[side][split].items():
                    assert abs(m["value"] - b[side][split][name]["value"]) < 1e-4, name
            assert abs(a[side]["drift"]["value"] - b[side]["drift"]["value"]) < 1e-4


def test_a_process_that_dies_ends_the_run_with_a_message_and_a_checkpoint(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    dies, out = script(tmp_path, RANK_1_DIES), str(tmp_path / "run")
    runs = [subprocess.Popen(
        [sys.executable, dies, "--out", out, *FLAGS], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, env={
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(r), "LOCAL_RANK": str(r),
            "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
        for r in range(2)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [2, 1]
    last = errors[0].strip().splitlines()[-1]
    assert "lost another process" in last and "--resume" in last and "Traceback" not in errors[0]
    assert len(lines(tmp_path / "run")) == 3
    assert opct.main(["--out", out, *FLAGS, "--resume"]) == 0
    assert len(lines(tmp_path / "run")) == 4
