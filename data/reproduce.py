"""Reproduce the project's experiments, and print their tables.

    python data/reproduce.py run embedded    both arms on three tasks, the embedded model
    python data/reproduce.py run sweep --only lr    the runs whose name matches a pattern
    python data/reproduce.py run chat-model --model FOLDER --seeds 2    a real chat model
    python data/reproduce.py    print every table
    python data/reproduce.py fill README.md data/results/README.md    renew their tables

`run` trains what EXPERIMENTS lists and keeps what was measured in data/results/NAME.json.
Interrupted, it continues: a run that is in the file is skipped, one that has begun is
resumed from its folder in out/reproduce/; to train it again, delete both. In a markdown
file a table stands between the lines <!-- table: NAME --> and <!-- end -->.
"""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "data/results"
ARMS = {"sft": "train_sft.py", "opct": "opct.py"}
TASKS = {  # metrics of the tables; the first shows the fault, the second an overdone cure
    "sycophancy": "unseen.follow_wrapped unseen.accuracy_clean unseen.accuracy_wrapped "
                  "unseen.consistency seen.follow_wrapped control.accuracy_wrapped",
    "jailbreak": "unseen.defended unseen.answered_benign unseen.defended_clean",
    "safety": "unseen.warned unseen.warned_safe unseen.warned_hinted"}
SWEEP = {  # one setting at a time differs from the defaults
    "defaults": "", "lr-1e-4": "--lr 1e-4", "lr-1e-3": "--lr 1e-3", "lr-3e-3": "--lr 3e-3",
    "rank-4": "--lora-rank 4 --lora-alpha 8", "rank-64": "--lora-rank 64 --lora-alpha 128",
    "32-prompts-x-1": "--prompts 32 --samples 1", "kl-sampled": "--kl sampled",
    "2-prompts-x-16": "--prompts 2 --samples 16",
    "2-prompts-x-4": "--prompts 2 --samples 4", "answers-of-4-tokens": "--max-new-tokens 4",
    "25-steps": "--steps 25", "50-steps": "--steps 50", "200-steps": "--steps 200"}
SMALL = {"sycophancy": (30, 60), "jailbreak": (20, 24), "safety": (30, 16)}  # for a CPU
EXPERIMENTS = {  # name: [(run, script, flags)]; each run is trained with every seed
    "embedded": [(f"{task}-{arm}", script, f"--task {task} --eval-questions 0")
                 for task in TASKS for arm, script in ARMS.items()],
    "steps": [(f"{task}-{arm}-{n}", script, f"--task {task} --eval-questions 0 --steps {n}")
              for task in TASKS for n in (25, 50, 200) for arm, script in ARMS.items()],
    "sweep": [(name, "opct.py", "--eval-questions 150 " + SWEEP[name]) for name in SWEEP],
    "long": [("300-steps", "opct.py", "--steps 300 --eval-questions 60")],
    "chat-model": [
        ("capitals-opct", "opct.py", "--category capitals --steps 20 --eval-questions 30"),
        ("all-categories-opct", "opct.py", "--eval-questions 150"),
        *((f"{task}-{arm}", script,
           f"--task {task} --steps {steps} --prompts 4 --eval-questions {questions}")
          for task, (steps, questions) in SMALL.items() for arm, script in ARMS.items())]}


class UserError(Exception):
    """An error the user can fix, told in one line."""


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def add(experiment, entry):
    """Put a run into the experiment's file, one line per run, replaced in one move."""
    path = RESULTS / f"{experiment}.json"
    runs = (load(experiment)["runs"] if path.exists() else []) + [entry]
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    beside = path.with_suffix(".new")
    beside.write_text(f'{{"experiment": "{experiment}", "runs": [\n{lines}\n]}}\n', "utf-8")
    beside.replace(path)


def train(experiment, name, script, flags, model):
    """Train, resume, or take the finished run as it is. -> its entry in the file"""
    which = Path(model).name  # the results name the model, not where it lies
    out = "out/reproduce/" + "-".join(filter(None, [experiment, which, name]))
    results = ROOT / out / "results.json"
    if not results.exists():
        argv = f"{flags} --out {out}".split() + (["--model", model] if model else [])
        if (ROOT / out / "log.jsonl").exists():
            argv = ["--resume", out]
        results.parent.parent.mkdir(parents=True, exist_ok=True)
        with open(ROOT / f"{out}.txt", "a", encoding="utf-8") as output:
            code = subprocess.run([sys.executable, script, *argv], cwd=ROOT, stdout=output,
                                  stderr=subprocess.STDOUT).returncode
        if code or not results.exists():
            raise UserError(f"{name} failed with exit code {code}; output: {out}.txt")
    result = json.loads(results.read_text(encoding="utf-8"))
    if model:
        result["config"]["model"] = which
    return {"arm": "sft" if script == ARMS["sft"] else "opct", "name": name, **result}


def run(experiment, model, seeds, only):
    if experiment not in EXPERIMENTS:
        raise UserError(f"no experiment {experiment!r}; there are {', '.join(EXPERIMENTS)}")
    if (experiment == "chat-model") != bool(model):
        raise UserError("chat-model needs --model FOLDER, the other experiments take none")
    if model and not (Path(model) / "config.json").exists():
        raise UserError(f"--model {model}: not a model folder, it has no config.json")
    model = str(Path(model).resolve()) if model else ""
    done = load(experiment)["runs"] if (RESULTS / f"{experiment}.json").exists() else []
    if model and done and done[0]["config"]["model"] != Path(model).name:
        raise UserError(f"data/results/{experiment}.json has another model: rename it")
    for seed in range(seeds):
        for run_name, script, flags in EXPERIMENTS[experiment]:
            name, flags = f"{run_name}-seed{seed}", f"{flags} --seed {seed}"
            if re.search(only, name) and name not in [entry["name"] for entry in done]:
                print(f"{name}: {script} {flags}", flush=True)
                add(experiment, train(experiment, name, script, flags, model))
    print(f"data/results/{experiment}.json holds all of these runs")


def cell(runs, side, path):
    """mean (lowest–highest seed) [an interval that contains every seed's own] n"""
    split, _, metric = path.partition(".")
    found = [run[side].get(split, {}) for run in runs]
    found = [part.get(metric) if metric else part for part in found]
    if not all(found) or (side, path) == ("before", "drift"):  # no drift yet, by definition
        return ""
    digits, values = 4 if path == "drift" else 3, [m["value"] for m in found]
    mean, least, most, low, high = (f"{x:.{digits}f}" for x in (
        sum(values) / len(values), min(values), max(values),
        min(m["low"] for m in found), max(m["high"] for m in found)))
    mean += f" ({least}–{most})" if least != most else ""
    n = span([m["n"] for m in found])
    clusters = span([m.get("clusters", m["n"]) for m in found])  # low and high are of these
    return f"{mean} [{low}, {high}] n {n}" + (f" in {clusters}" if clusters != n else "")


def span(values):
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low}–{high}"


def shown(x):
    if isinstance(x, dict):
        return ", ".join(f"{key}: {shown(value)}" for key, value in x.items() if value)
    return (f"{x:,.0f}" if x >= 100 else f"{x:.3g}") if isinstance(x, float) else str(x)


def markdown(lines, results):
    """The table, its first line the heading; and on what the results were measured."""
    rows = ["| " + " | ".join(map(shown, line)) + " |" for line in lines]
    rows.insert(1, "|" + " --- |" * len(lines[0]))
    where = dict.fromkeys(shown({**r.get("hardware", {}), **r["versions"]}) for r in results)
    return "\n".join([*rows, "", " / ".join(where)])


def measured(*names, short=False):
    """Before and after training, seeds together. short: one table, else one per task."""
    runs, tables, all_lines = [run for name in names for run in load(name)["runs"]], [], []
    runs.sort(key=lambda run: [run["config"][key] for key in (
        "eval_questions", "max_new_tokens", "steps")])  # the same evaluation side by side
    for task, metrics in TASKS.items():
        metrics = [*metrics.split(), "unseen.unparsed", "unseen.kl", "capability", "drift"]
        metrics = metrics[:2] + metrics[-2:] if short else metrics
        groups, lines, last = {}, [["", *metrics, "minutes"]], []
        for run in runs:
            if run["config"]["task"] == task:
                groups.setdefault(re.sub(r"-seed\d+$", "", run["name"]), []).append(run)
        for name, seeds in groups.items():
            c, before = seeds[0]["config"], [cell(seeds[:1], "before", m) for m in metrics]
            if before != last:  # not all were evaluated alike
                lines.append([f"{task}, before", *before, ""])
                last = before
            seconds = [run.get("training_seconds", run.get("seconds")) for run in seeds]
            lines.append([
                f"{name} ({len(seeds)}): {c['steps']} × {c['prompts'] * c['samples']}",
                *(cell(seeds, "after", m) for m in metrics),
                "" if None in seconds else span([round(s / 60, 1) for s in seconds])])
        all_lines += lines[1:]
        if groups:
            tables.append(markdown(list(zip(*lines)), sum(groups.values(), [])))
    heading = ["run (seeds): steps × answers", "follows ↓ / declines ↑ / warns ↑",
               "right without bait ↑ / answers harmless ↑ / overwarns ↓", "capability ↑",
               "drift, nats per token ↓", "minutes"]
    return markdown([heading, *all_lines], runs) if short else "\n\n".join(tables)


def records(name, rows, columns=""):
    """What a script in tests/ measured, under the names it uses in its file."""
    result = load(name)
    heading = columns.split() or list(rows(result)[0])
    lines = [[row.get(column, "") for column in heading] for row in rows(result)]
    return markdown([heading, *lines], [result])


TABLES = {  # name: function that makes it
    "embedded": lambda: measured("embedded", short=True),
    "embedded-long": lambda: measured("embedded"),
    "steps": lambda: measured("embedded", "steps", short=True),
    "chat-model": lambda: measured("chat-model", short=True),
    "chat-model-long": lambda: measured("chat-model"),
    "sweep": lambda: measured("sweep", short=True),
    "long": lambda: measured("long", short=True),
    "embedded-earlier": lambda: measured("embedded-earlier"),
    "steps-earlier": lambda: measured("embedded-earlier", "steps-earlier", short=True),
    "smollm2": lambda: measured("smollm2", short=True),
    "smollm2-long": lambda: measured("smollm2"),
    "bench": lambda: records("bench", lambda r: r["rows"], "part dtype ours_s tokens_per_s "
                             "rival rival_s times_faster ours_gb rival_gb"),
    "families": lambda: records("families", lambda r: [
        {"family": name, **row} for name, row in r["families"].items()]),
    "kills": lambda: records("kills", lambda r: [r], "kills same minutes"),
    "fuzz": lambda: records("fuzz", lambda r: [r], "inputs refused taken tracebacks")}


def filled(text):
    """The markdown text with every table in it as the result files have it now."""
    def table(match):
        if match[2] not in TABLES:
            raise UserError(f"no table {match[2]!r}; there are {', '.join(TABLES)}")
        try:
            return f"{match[1]}{TABLES[match[2]]()}\n<!-- end -->"
        except FileNotFoundError as missing:  # its runs are still to be made
            return f"{match[1]}(no {Path(missing.filename).name} yet)\n<!-- end -->"
    return re.sub(r"^(<!-- table: (\S+) -->\n)(?:(?!<!-- ).*\n)*<!-- end -->$", table, text,
                  flags=re.M)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["tables", "run", "fill"],
                        default="tables")
    parser.add_argument("names", nargs="*", help="an experiment to run; files to fill")
    parser.add_argument("--model", default="", help="chat-model: the model folder")
    parser.add_argument("--seeds", type=int, default=3, help="run seeds 0 to N - 1")
    parser.add_argument("--only", default="", help="run those whose name matches this")
    args = parser.parse_intermixed_args(argv)
    try:
        if args.command == "run":
            run(" ".join(args.names), args.model, args.seeds, args.only)
        elif args.command == "fill":
            for path in map(Path, args.names):
                path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            for name in TABLES:
                print(filled(f"<!-- table: {name} -->\n<!-- end -->\n"))
    except (UserError, OSError, re.error, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
