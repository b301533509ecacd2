"""SFT against OPCT, matched: both scripts over tasks and seeds, their results into data/results/.

    python data/compare.py
    python data/compare.py --name mine --model FOLDER --seeds 2 --stages 40 --eval-questions 60

Flags that are not its own go to both scripts. --stages says after how many steps to evaluate; the
run goes on from its checkpoint in between. What is done is not done again: a run whose result file
is there is left out, one that was interrupted goes on. `python data/tables.py` prints the tables.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.report import WINDOW, collapse  # noqa: E402

SCRIPTS = {"sft": "train_sft.py", "opct": "opct.py"}


def run(args, more, task, arm, seed):
    """One arm on one task with one seed, stage by stage -> its result file."""
    name = f"{args.name}-{task}-{arm}-seed{seed}"
    path, out = ROOT / f"data/results/{name}.json", ROOT / f"out/{name}"
    if path.exists():
        return print(f"{name}: there")
    curve = {}
    for steps in args.stages:
        kept = out / f"stage{steps}.json"
        if not kept.exists():
            go_on = "--resume" if any(out.glob("checkpoint/step-*")) else "--overwrite"
            subprocess.run([sys.executable, SCRIPTS[arm], "--model", args.model, "--task", task,
                            "--seed", str(seed), "--steps", str(steps), "--out", f"out/{name}",
                            go_on, *more], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            kept.write_text((out / "results.json").read_text())
        result = json.loads(kept.read_text())
        curve[steps] = result["after"]
        if steps == args.headline:
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
            spent = sum(sum(step["seconds"].values()) for step in log[:steps])
            ends = range(WINDOW, steps + 1, WINDOW)
            notices = [collapse(log[:end]) for end in ends]
            kl = [sum(line["kl"] for line in log[end - WINDOW:end]) / WINDOW for end in ends]
            final = {**result, "training_seconds": round(spent, 1),
                     "collapse": [notice for notice in notices if notice],
                     "kl_by_20_steps": [round(x, 4) for x in kl]}
    final.pop("seconds")  # of the last stage alone
    path.write_text(json.dumps({**final, "curve": curve}, indent=1) + "\n")
    print(f"{name}: done", flush=True)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--name", default="tiny", help="beginning of the result files' names")
    parser.add_argument("--model", default="data/tiny")
    parser.add_argument("--tasks", nargs="+", default=["sycophancy", "jailbreak", "safety"])
    parser.add_argument("--arms", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=int, nargs="+", default=[25, 50, 100, 200],
                        help="evaluate after so many steps")
    args, more = parser.parse_known_args()
    args.headline = 100 if 100 in args.stages else args.stages[-1]  # what the tables compare
    for seed in range(args.seeds):
        for task in args.tasks:
            for arm in args.arms:
                run(args, more, task, arm, seed)


if __name__ == "__main__":
    main()
