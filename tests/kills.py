"""Kill a run at random moments, writes included, and go on with it: does it end the same?

    python tests/kills.py              30 kills, about 8 minutes on 2 CPU cores
    python tests/kills.py --write FILE.json

An uninterrupted run of the embedded model that saves after every step is the measure. Each trial is
the same run, ended by SIGKILL at a moment drawn over the time that training takes, then continued
with --resume until it ends; adapter and log (but for times) must equal the uninterrupted ones.
"""
import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from data import report  # noqa: E402

FLAGS = ("--steps 20 --prompts 4 --samples 2 --max-new-tokens 8 --eval-questions 2 --save-every 1 "
         "--device cpu").split()


def start(script, out, *more):
    return subprocess.Popen([sys.executable, script, "--out", out, *FLAGS, *more], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def outcome(out):
    log = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()[1:]]
    steps = [{k: v for k, v in s.items() if k not in ("seconds", "tokens_per_second")} for s in log]
    return (Path(out) / "adapter_model.safetensors").read_bytes(), steps


def lines(out):
    path = Path(out) / "log.jsonl"
    return path.read_text(errors="replace").count("\n") if path.exists() else 0


def trial(script, out, rng, span):
    """One run, killed once or twice -> the steps at which it was killed."""
    killed = []
    for attempt in range(rng.choice([1, 1, 2])):
        go_on = ["--resume"] if killed and any(Path(out).glob("checkpoint/step-*")) else \
            ["--overwrite"]
        began = lines(out) if go_on == ["--resume"] else 0
        process = start(script, out, *go_on)
        while process.poll() is None and (lines(out) <= max(1, began) or go_on != ["--resume"]
                                          and lines(out) < 1):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, span))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.append(lines(out) - 1)
    go_on = "--resume" if any(Path(out).glob("checkpoint/step-*")) else "--overwrite"
    process = start(script, out, go_on)
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"killed at {killed}, then: {err.splitlines()[-1]}")
    return killed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--write")
    args = parser.parse_args()
    rng, began, same, at = random.Random(0), time.time(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        measure = {}
        for script in ("opct.py", "train_sft.py"):
            process = start(script, f"{folder}/whole-{script}")
            while lines(f"{folder}/whole-{script}") < 2:
                time.sleep(0.005)
            first = time.time()
            while lines(f"{folder}/whole-{script}") < 21 and process.poll() is None:
                time.sleep(0.005)
            measure[script] = time.time() - first
            process.communicate()
        for n in range(args.kills):
            script = "opct.py" if n % 3 else "train_sft.py"
            killed = trial(script, f"{folder}/{n}", rng, measure[script])
            equal = outcome(f"{folder}/{n}") == outcome(f"{folder}/whole-{script}")
            same, at = same + equal, at + killed
            print(f"{n + 1}: {script} killed after step {killed}: "
                  f"{'the same' if equal else 'DIFFERENT'}", flush=True)
    result = {"kills": args.kills, "same": same, "killed_after_steps": at,
              "minutes": round((time.time() - began) / 60, 1), "versions": report.versions(),
              "hardware": report.hardware(torch.empty(0))}
    if args.write:
        Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return same != args.kills


if __name__ == "__main__":
    sys.exit(main())
