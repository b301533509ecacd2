"""What to set: away from the defaults one choice at a time, on the embedded model.

    python data/sweep.py [--only "lr 1e-4" ...]    20 minutes; into data/results/sweep-*.json

A run whose result is there is left out. `python data/tables.py` prints the table.
"""
import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHOICES = {  # name: flags
    "defaults": "", "lr 1e-4": "--lr 1e-4", "lr 1e-3": "--lr 1e-3", "lr 3e-3": "--lr 3e-3",
    "rank 4": "--lora-rank 4 --lora-alpha 8", "rank 64": "--lora-rank 64 --lora-alpha 128",
    "all weights, lr 1e-4": "--lora-rank 0 --lr 1e-4",
    "32 prompts x 1": "--prompts 32 --samples 1", "2 prompts x 16": "--prompts 2 --samples 16",
    "2 prompts x 4": "--prompts 2 --samples 4", "answers cut at 4 tokens": "--max-new-tokens 4",
    "kl sampled": "--kl sampled", "25 steps": "25", "50 steps": "50", "200 steps": "200"}


def file_name(choice):
    return "sweep-" + choice.replace(",", "").replace(" ", "-")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=list(CHOICES))
    parser.add_argument("--seeds", default="2")
    args = parser.parse_args()
    for choice in args.only:
        steps, flags = (CHOICES[choice], []) if CHOICES[choice].isdigit() else (
            "100", CHOICES[choice].split())
        subprocess.run([sys.executable, "data/compare.py", "--name", file_name(choice), "--tasks",
                        "sycophancy", "--arms", "opct", "--seeds", args.seeds, "--stages", steps,
                        "--eval-questions", "150", *flags], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
