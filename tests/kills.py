"""Kill a run at random moments, writes included, and resume it: does it end the same?

    python tests/kills.py [--write FILE.json]      30 kills, about 8 minutes on 2 CPU cores

The measure is a run of the embedded model that saves after every step. A trial is that run,
ended by SIGKILL at a random moment once or twice, then resumed until it ends: adapter, Adam
and log (but for times) must be equal.
"""
import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import opct  # noqa: E402
import torch  # noqa: E402

FLAGS = ("--steps 20 --category capitals --prompts 4 --samples 2 --max-new-tokens 8 "
         "--eval-questions 2 --save-every 1 --device cpu").split()

def start(script, out):
    """Begin the run, or resume it if it has begun."""
    begun = (out / "checkpoint.pt").exists()  # else there is nothing to resume
    if not begun:
        shutil.rmtree(out, ignore_errors=True)
    flags = ["--resume", str(out)] if begun else [*FLAGS, "--out", str(out)]
    return subprocess.Popen([sys.executable, script, *flags], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def finish(process):
    if process.wait():
        raise SystemExit("a run failed")

def lines(out):
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0

def outcome(out):
    """-> adapter, Adam and log of a run, bit for bit, without what a clock wrote"""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    tensors = [*state["adapter"].values()] + [
        x for p in state["adam"]["state"].values() for x in p.values()]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
    adapter = (out / "adapter_model.safetensors").read_bytes()
    return [x.numpy().tobytes() for x in tensors], adapter, [
        {k: v for k, v in step.items() if k != "seconds"} for step in log]

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--write")
    args = parser.parse_args()
    rng, began, same, killed_at, whole = random.Random(0), time.time(), 0, [], {}
    with tempfile.TemporaryDirectory() as folder:
        for script in ("opct.py", "train_sft.py"):
            out, first = Path(folder) / f"whole-{script}", time.time()
            finish(start(script, out))
            whole[script] = outcome(out), time.time() - first
        for n in range(args.kills):
            script, out = "opct.py" if n % 3 else "train_sft.py", Path(folder) / str(n)
            [right, span], killed = whole[script], []
            for _ in range(rng.choice([1, 1, 2])):
                process, done = start(script, out), lines(out)
                while process.poll() is None and lines(out) <= done:  # it has not begun
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.4 * span))  # the rest loads and evaluates
                process.kill()
                process.wait()
                killed.append(lines(out) - 1)
            finish(start(script, out))
            equal = outcome(out) == right
            same, killed_at = same + equal, killed_at + killed
            print(n + 1, script, "killed after step", killed, "the same" if equal else
                  "DIFFERENT", flush=True)
    result = {"kills": args.kills, "same": same, "killed_after_steps": killed_at,
              "minutes": round((time.time() - began) / 60, 1), "versions": opct.VERSIONS}
    if args.write:
        path = Path(args.write)  # other scripts write there, too
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {"kills": result}, indent=1) + "\n")
    print(json.dumps(result))
    return same != args.kills

if __name__ == "__main__":
    sys.exit(main())
