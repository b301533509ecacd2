"""Reproduce the project's experiments, and print their tables.

    python data/reproduce.py run embedded    both arms on three tasks, the embedded model
    python data/reproduce.py run cube --model FOLDER    a chat model: what matters in OPCT?
    python data/reproduce.py run axes --model FOLDER    README.md's run; the other tasks
    python data/reproduce.py run embedded --only safety    the runs whose name matches
    python data/reproduce.py    print every table
    python data/reproduce.py fill README.md data/results/README.md    update their tables
    python data/reproduce.py draw data/results/curves.svg    the curves of cube

`run` skips what is in data/results/NAME.json, or NAME-FOLDER.json; interrupted, it starts
an unfinished run over. A table stands between <!-- table: NAME --> and <!-- end -->.
"""
import argparse
import json
import re
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opct  # noqa: E402
import train_sft  # noqa: E402
from opct import UserError, check, evaluate  # noqa: E402

RESULTS = ROOT / "data/results"
SCRIPTS = {"opct": opct, "sft": train_sft}
TASKS = {  # metrics of the tables
    "sycophancy": "unseen.follow_wrapped unseen.accuracy_clean unseen.accuracy_wrapped "
                  "unseen.consistency seen.follow_wrapped control.accuracy_wrapped",
    "jailbreak": "unseen.defended unseen.answered_benign unseen.defended_clean "
                 "unseen.answered_benign_clean",
    "safety": "unseen.warned unseen.warned_safe unseen.warned_hinted"}
ARMS = {  # of cube: who writes the answers, when, and what is matched on them
    "opct": "opct", "sft": "sft", "sft-greedy": "sft --target-temperature 0",
    "fixed-reverse": "sft --loss kl", "step-nll": "sft --targets step",
    "step-reverse": "sft --targets step --loss kl",
    "fixed-forward": "sft --loss kl --kl forward", "opct-forward": "opct --kl forward"}
NEAR = "capitals,countries,continents,languages"  # 96 questions to train on, not 30
ONCE = {  # more arms, run last, seed 0 only; those of TWICE seed 1, too
    "opct-lr-1e-4": "opct --lr 1e-4", "opct-lr-1e-3": "opct --lr 1e-3",
    "sft-lr-1e-4": "sft --lr 1e-4", "sft-lr-1e-3": "sft --lr 1e-3",
    "opct-all": "opct --category=", "sft-all": "sft --category=",
    "opct-100": f"opct --category {NEAR}", "sft-100": f"sft --category {NEAR}",
    "opct-80": "opct --steps 80", "sft-80": "sft --steps 80",
    "opct-128": "opct --max-new-tokens 128 --prompts 8",
    "step-reverse-128": "sft --targets step --loss kl --max-new-tokens 128 --prompts 8"}
TWICE = "opct-80", "sft-80", "opct-128", "step-reverse-128"
CHAT = "--prompts 28 --samples 1 --steps 40 --token-budget 1024"
EXPERIMENTS = {  # name: (flags of all runs, {run: script and its own flags})
    "embedded": ("--eval-questions 0", {f"{task}-{arm}": f"{arm} --task {task}"
                                        for task in TASKS for arm in ("sft", "opct")}),
    "axes": (f"{CHAT} --eval-questions 0", {  # DECLINED: see declined_requests()
        "sycophancy-opct": "opct --category capitals --prompts 8 --samples 4 "
                           "--token-budget 512 --eval-questions 100",  # as in README.md
        "jailbreak-opct": "opct --task jailbreak", "jailbreak-sft": "sft --task jailbreak",
        "safety-opct": "opct --task safety", "safety-sft": "sft --task safety",
        "declined-opct": "opct --task jailbreak --data DECLINED",
        "declined-sft": "sft --task jailbreak --data DECLINED",
        "declined-opct-forward": "opct --task jailbreak --data DECLINED --kl forward"}),
    "cube": (f"{CHAT} --category capitals --eval-questions 100", ARMS | ONCE)}
POINTS = 0, 10, 20, 40, 80  # cube evaluates after these steps
BASE = {}  # what it found before training, for the arms of this process
MARKED = "accuracy_clean", "accuracy_wrapped", "follow_wrapped"  # kept for every pair
CLEAN, BAIT, FOLLOWS = (f"transfer.{metric}" for metric in MARKED)
KIN, USER = "unseen.accuracy_clean", "control.accuracy_wrapped"  # on other capitals
JUDGED = [CLEAN, BAIT, FOLLOWS, "transfer.unparsed", "transfer.truncated",
          "unseen.accuracy_wrapped", KIN, USER, "capability", "drift"]
PAIRED = BAIT, FOLLOWS, CLEAN, KIN, USER, "unseen.accuracy_wrapped"
PANELS = BAIT, KIN, "capability"
MAIN = "sft", "sft-greedy", "fixed-reverse", "opct"
NAMES = {BAIT: "other topics, with bait: right", CLEAN: "other topics, no bait: right",
         FOLLOWS: "other topics: follows the bait", KIN: "other capitals, no bait: right",
         USER: "other capitals, user is right: right", "capability": "capability",
         "drift": "drift"}
COLORS = {"opct": "#d9480f", "sft": "#2f7de1", "sft-greedy": "#0d9488",
          "fixed-reverse": "#a855f7", "step-nll": "#808080"}  # legible on light and on dark


# 1. Train, and keep what was measured

def shared(run):
    """What a run of cube has in common with others. -> (where, key) of each"""
    return [(run, "questions"), (run["points"], "0")] if "points" in run else []

def load(name):
    """The file. There a run names the first one with the same in place of what is shared."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    runs = {run["name"]: run for run in found.get("runs", ())}
    for part, key in (place for run in runs.values() for place in shared(run)):
        if isinstance(part[key], str):
            first = runs[part[key]]
            part[key] = first["points"]["0"] if key == "0" else first[key]
    return found

def finished(file):
    return load(file)["runs"] if (RESULTS / f"{file}.json").exists() else []

def add(file, entry):
    """Put a run into the file, one line per run, atomically."""
    lines, first = [], {}
    for run in [run for run in finished(file) if run["name"] != entry["name"]] + [entry]:
        for part, key in shared(run):
            name = first.setdefault(repr(part[key]), run["name"])
            part[key] = part[key] if name == run["name"] else name
        lines.append(json.dumps(run, ensure_ascii=False, separators=(",", ":")))
    text = f'{{"experiment": "{file}", "runs": [\n' + ",\n".join(lines) + "\n]}\n"
    opct.write(RESULTS / f"{file}.json", text.encode())

def point(found, pairs, cfg):
    """What evaluate() found, with a mark per pair for its answers: 1, 0 or - (has none)."""
    marks = {s: dict.fromkeys(MARKED, "") for s in ("unseen", "transfer", "control")}
    for pair, a in zip(pairs, found["answers"]):
        shown = opct.marks(cfg.task, pair.example, a["clean_verdict"], a["wrapped_verdict"])
        for m in MARKED if pair.split in marks else ():
            marks[pair.split][m] += str(int(shown[m])) if m in shown else "-"
    text = json.dumps({k: v for k, v in found.items() if k != "answers"} | {"marks": marks})
    return json.loads(text, parse_float=lambda number: round(float(number), 5))

def texts(out):
    """Of a run's answers: all to a right suggestion; every seventh of transfer, in full."""
    answers = [answer for _, answer in opct.read_jsonl(out / "answers.jsonl")]
    said = [a["after"]["wrapped"] for a in answers if a["split"] == "control"]
    seventh = [a for a in answers if a["split"] == "transfer"][::7]
    return {"said": said, "examples": [
        {"prompt": a["wrapped_prompt"][-1]["content"], "before": a["before"]["wrapped"],
         "after": a["after"]["wrapped"]} for a in seventh]}

def train(file, name, script, flags, model):
    """Train from the start; for cube evaluate at POINTS, too. -> entry in the file"""
    began, points, held_out, targets = time.time(), {}, (), {}  # targets of SFT, if fixed
    out = f"out/reproduce/{file}-{name}"
    shutil.rmtree(ROOT / out, ignore_errors=True)
    argv = [*flags, "--out", str(ROOT / out)] + (["--model", model] if model else [])
    cfg = opct.parse_config(argv, script.Config)

    class Run(script.Run):
        def __init__(self, cfg, model, optimizer, inputs):
            super().__init__(cfg, model, optimizer, inputs)
            targets.update(inputs[1] if getattr(cfg, "targets", "") == "fixed" else {})

        def record(self, *measured):
            super().record(*measured)
            if self.done in POINTS and self.done < cfg.steps:  # train() does so at the end
                watched(self.model, *held_out, cfg, self.done)

    def watched(model, tokenizer, pairs, cfg, step=cfg.steps):
        nonlocal began, held_out
        start, asked = time.time(), (cfg.model, cfg.category, cfg.max_new_tokens)
        known = None if points else BASE.get(asked)  # before training all arms are alike
        found = known or evaluate(model, tokenizer, pairs, cfg)
        if not points:
            BASE[asked], step = found, 0
        points[str(step)], held_out = point(found, pairs, cfg), (tokenizer, pairs)
        began += time.time() - start  # so that the seconds are without the evaluations
        return {**found}  # train() takes the answers out of it
    if file.startswith("cube"):
        with mock.patch.multiple(script, Run=Run, evaluate=watched):
            _, tokenizer, result = script.train(cfg)
        arm, seconds = name.rpartition("-seed")[0], round(time.time() - began, 1)
        questions = {split: [p.example["id"] for p in held_out[1] if p.split == split]
                     for split in points["0"]["marks"]}
        kept = {key: result[key] for key in ("config", "versions", "hardware")}
        kept |= {"seconds": seconds, "questions": questions, "points": points,
                 "targets": [tokenizer.decode(ys[0], skip_special_tokens=True)
                             for ys in targets.values()], **texts(ROOT / out)}
    else:
        arm, kept = "opct" if script is opct else "sft", script.train(cfg)[2]
    kept["config"] |= {"out": out, "model": Path(model).name or cfg.model,  # short paths
                       "data": cfg.data.removeprefix(f"{ROOT}/")}
    return {"arm": arm, "name": name, **kept}

def declined_requests(model, dtype):
    """Write the pairs of the jailbreak task, for --data: to train on only the requests that
    the base model, asked plainly, declines if harmful and answers if not. -> path"""
    cfg = train_sft.Config(model=model, dtype=dtype, task="jailbreak", eval_questions=0,
                           target_temperature=0.0)
    net, tokenizer = opct.load_model(cfg)
    pairs, kept = opct.load_pairs(cfg, "train"), opct.load_pairs(cfg, "unseen")
    asked = [tuple(opct.encode(tokenizer, pair.clean)) for pair in pairs]
    answers = train_sft.make_targets(net, asked, cfg, None)
    for pair, prompt in zip(pairs, asked):
        text = tokenizer.decode(answers[prompt][0], skip_special_tokens=True)
        wanted = "declined" if pair.example["harmful"] else "answered"
        if opct.verdict("jailbreak", text, pair.example) == wanted:
            kept.append(pair)
    rows = [{"wrapped": p.wrapped, "clean": p.clean, "group": p.example["group"],
             "harmful": p.example["harmful"], "request": p.example["request"],
             "split": p.split.replace("unseen", "test")} for p in kept]
    path = ROOT / f"out/reproduce/declined-{Path(model).name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)

def run(experiment, model, dtype, seeds, only):
    check(experiment in EXPERIMENTS,
          f"no experiment {experiment!r}; there are {', '.join(EXPERIMENTS)}")
    check((experiment != "embedded") == bool(model),
          "cube and axes need --model FOLDER, embedded takes none")
    check(not model or (Path(model) / "config.json").exists(),
          f"--model {model}: not a model folder, it has no config.json")
    model = str(Path(model).resolve()) if model else ""
    file = f"{experiment}-{Path(model).name}" if model else experiment
    common, arms = EXPERIMENTS[experiment]
    jobs = [(arm, seed) for seed in range(seeds) for arm in arms if arm not in ONCE]
    jobs += [(arm, seed) for seed, some in enumerate((ONCE, TWICE))
             for arm in some if arm in arms]
    for arm, seed in jobs:
        name = f"{arm}-seed{seed}"
        known = [run["name"] for run in finished(file)]
        if re.search(only, name) and name not in known:
            script, *own = arms[arm].split()
            own = [declined_requests(model, dtype) if f == "DECLINED" else f for f in own]
            flags = [*common.split(), *own, "--seed", str(seed), "--dtype", dtype]
            print(f"{name}: {SCRIPTS[script].__name__}.py", *flags, flush=True)
            add(file, train(file, name, SCRIPTS[script], flags, model))
    print(f"data/results/{file}.json holds all of these runs")


# 2. Tables

def results(pattern):
    """-> {(model, task): {arm: {step: evaluations}}} of the files. An evaluation per seed:
    what was found after the step, and what is known of the run."""
    out = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    order = [arm for _, arms in EXPERIMENTS.values() for arm in arms]
    for path in sorted(RESULTS.glob(pattern)):
        runs = [(r["name"].rpartition("-seed")[0], r) for r in load(path.stem)["runs"]]
        for arm, run in sorted(runs, key=lambda x: [*order, x[0]].index(x[0])):
            arms = out[path.stem.partition("-")[2], run["config"]["task"]]
            points = run.get("points") or {"before": run["before"], "after": run["after"]}
            for step, found in points.items():
                arms[arm][step].append(run | found)
    if not out:
        raise FileNotFoundError(2, "no results", pattern)
    return out

def steps_of(arms):
    return sorted({step for points in arms.values() for step in points}, key=int)

def dig(evaluations, path):
    """-> what each of them holds there, {} if nothing"""
    for key in path.split("."):
        evaluations = [e.get(key, {}) for e in evaluations]
    return evaluations

def by_question(evaluations, path):
    """-> {question: its marks, True or False, in these evaluations}"""
    out, asked = {}, dig(evaluations, "questions." + path.split(".")[0])
    for questions, marks in zip(asked, dig(evaluations, "marks." + path)):
        for question, mark in zip(questions, marks):
            if mark != "-":
                out.setdefault(question, []).append(mark == "1")
    return out

def cell(evaluations, path, percent=False):
    """mean (lowest–highest seed) [interval] n; in percent without n. The interval is of the
    marks of all seeds, drawn by question; without marks it contains every seed's own."""
    found = dig(evaluations, path)
    if not all(found):
        return ""
    seeds = [m["value"] for m in found]
    if marks := by_question(evaluations, path):
        pairs = [(mark, question) for question in marks for mark in marks[question]]
        found = [opct.interval(*zip(*pairs))]
    bounds = min(m["low"] for m in found), max(m["high"] for m in found)
    drift = path == "drift"  # in nats, not a share
    scale, digits = (100, 0) if percent and not drift else (1, 4 if drift else 3)
    middle, least, most, low, high = (
        f"{scale * x + 1e-9:.{digits}f}"  # 20.5 is 21
        for x in (mean(seeds), min(seeds), max(seeds), *bounds))
    n, clusters = (shown([m[key] for m in found]) for key in ("n", "clusters"))
    size = f" n {n}" + (f" in {clusters}" if clusters != n else "")
    seeds = f" ({least}–{most})" if least != most else ""
    return f"{middle}{seeds} [{low}, {high}]" + ("" if percent else size)

def difference(base, other, path):
    """other - base, question by question, each of them the mean of its seeds."""
    base, other = by_question(base, path), by_question(other, path)
    both = [question for question in base if question in other]
    if not both:
        return ""
    m = opct.interval([mean(other[q]) - mean(base[q]) for q in both], both)
    value, low, high = (round(m[key], 3) + 0.0 for key in ("value", "low", "high"))  # no -0
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] {m['n']} questions"

def shown(x):
    if isinstance(x, list):  # numbers
        return "–".join(dict.fromkeys([shown(min(x)), shown(max(x))]))
    return (f"{x:,.0f}" if x >= 100 else f"{x:.3g}") if isinstance(x, float) else str(x)

def markdown(lines, runs=()):
    """The table, its first line the heading; and on what the runs were measured."""
    rows = ["| " + " | ".join(map(shown, line)) + " |" for line in lines]
    rows.insert(1, "|" + " --- |" * len(lines[0]))
    where = [r.get("hardware", {}) | r["versions"] for r in runs]
    where = dict.fromkeys(", ".join(f"{k}: {v}" for k, v in w.items() if v) for w in where)
    return "\n".join([*rows, "", " / ".join(where)]).strip()

def table(title, arms, metrics, percent=False):
    """A line per arm after training, seeds together, under one for before training; the
    last metric is the drift. -> lines, evaluations"""
    lines, runs, last = [["run (seeds): steps × answers", *metrics, "minutes"]], [], []
    for arm, points in arms.items():
        base, *_, after = points.values()
        c = after[0]["config"]
        asked = c["category"], c["max_new_tokens"]  # not all are evaluated alike
        if asked != last:
            before = [cell(base[:1], m, percent) for m in metrics[:-1]]
            lines.append([f"{title}, before", *before, "", ""])
        minutes = [round(e["seconds"] / 60, 1) for e in after if "seconds" in e]
        name = f"{arm} ({len(after)}): {c['steps']} × {c['prompts'] * c['samples']}"
        lines.append([name, *(cell(after, m, percent) for m in metrics), minutes or ""])
        last, runs = asked, runs + after
    return lines, runs

def per_task(pattern):
    """A table per model and task, with more metrics, a column per arm."""
    parts = []
    for (model, task), arms in results(pattern).items():
        metrics = (f"{TASKS[task]} unseen.unparsed unseen.truncated unseen.kl capability "
                   "drift").split()
        lines, runs = table(task, arms, metrics)
        lines[0][0] = ""
        if model and f"**{model}**" not in parts:
            parts.append(f"**{model}**")
        parts.append(markdown([*zip(*lines)], runs))
    return "\n\n".join(parts)

def cube_short():
    """The main arms of each model, in percent."""
    lines, runs = [], []
    for (model, _), arms in results("cube-*.json").items():
        arms = {arm: arms[arm] for arm in MAIN if arm in arms}
        (heading, *more), found = table(f"**{model}**", arms, [*NAMES], percent=True)
        lines, runs = lines + more, runs + found
    for place, (metric, name) in enumerate(NAMES.items(), 1):
        n, better = dig(runs, metric)[0]["clusters"], "↓" if metric == FOLLOWS else "↑"
        heading[place] = f"{name} {better} (n {n})"
    heading[-2] = "drift, nats per token ↓"
    return markdown([line[:-1] for line in [heading, *lines]], runs)  # without the minutes

def best(arms, arm):
    """Where an arm, at any of its rates, is best on seen wordings. -> name, evaluations"""
    tried = {f"{name} after {step}": found for name, points in arms.items()
             if re.fullmatch(rf"{arm}(-lr-.*)?", name) for step, found in points.items()}
    return max(tried.items(), key=lambda x: mean(dig(x[1], "seen.accuracy_wrapped.value")))

def gaps(title, base, found):
    """Differences to base, or to opct-X for an arm that ends in -X: its own rate, length or
    number of questions; of the seeds that both have. found: {name: evaluations}"""
    lines = [[title, *(NAMES.get(metric, metric) for metric in PAIRED)]]
    for name in found:
        alike = [x for x in found if x in ONCE and x[:4] == "opct" and name.endswith(x[4:])]
        rival = base if name in alike else (alike or [base])[0]
        if name == "fixed-forward" and "sft" in found:
            rival = "sft"  # cross-entropy: of the forward KL the one drawn token
        ran = [{e["config"]["seed"]: e for e in found[x]} for x in (rival, name)]
        seeds = [seed for seed in ran[0] if seed in ran[1]]
        both = [[run[seed] for seed in seeds] for run in ran]
        gap = [difference(*both, metric) for metric in PAIRED]
        length, others = (found[x][0]["config"]["max_new_tokens"] for x in (name, rival))
        if name != rival and length == others and all(gap):
            lines.append([f"{name} − {rival} ({len(seeds)})", *gap])
    return markdown(lines)

def copied(text, targets):
    """Does " is ..." of an answer, or five words in a row from there, stand in a target?"""
    words = ("".join(text.partition(" is")[1:]) or text).split(" ")
    runs = [" ".join(words[i:i + 5]) for i in range(max(1, len(words) - 4))]
    return any(run in target for run in runs for target in targets)

def slips(arms):
    """Wrong answers to a user who is right, after the last step, and how many are copied
    from the targets, given for other questions, of the run or of `sft` with its seed."""
    last = {arm: [*points.values()][-1] for arm, points in arms.items()}
    of_sft = {e["config"]["seed"]: e.get("targets", []) for e in last.get("sft", ())}
    lines = [["the user is right", "answers", "wrong", "as in a target", "an example"]]
    for arm, found in last.items():
        said = [(text, mark, e.get("targets") or of_sft.get(e["config"]["seed"], []))
                for e in found if "said" in e for text, mark in zip(
                    e["said"], e["marks"]["control"]["accuracy_wrapped"])]
        wrong = [(text, targets) for text, mark, targets in said if mark == "0"]
        learned = [text for text, targets in wrong if copied(text, targets)]
        if said:
            example = (learned or [text for text, _ in wrong] or [""])[-1]
            lines.append([arm, len(said), len(wrong), len(learned), example])
    return markdown(lines)

def cube():
    """Of each model: the arms after the last step; the curves; differences to opct."""
    parts, metrics = [], [*PANELS, "drift"]
    for (model, task), arms in results("cube-*.json").items():
        parts += [f"**{model}**", markdown(*table(task, arms, JUDGED))]
        steps = steps_of(arms)
        usual = [arm for arm in arms if arm in ARMS]
        title = " / ".join(NAMES[metric] for metric in metrics)
        lines = [[title, *(f"after {step} steps" for step in steps)]]
        for arm in [*usual, *(arm for arm in arms if arm.endswith("-80"))]:
            lines.append([arm])
            for found in arms[arm].values():
                means = [f"{mean(dig(found, metric + '.value')):.3f}" for metric in metrics]
                lines[-1].append(" / ".join(means))
        parts += [markdown(lines), slips(arms)]
        if "opct" in arms:
            for step in steps[1:]:
                found = {"before": arms["opct"]["0"]}
                found |= {arm: arms[arm][step] for arm in arms if step in arms[arm]}
                base = "opct" if "opct" in found else "opct-80"
                parts.append(gaps(f"after {step} steps", base, found))
            found = dict(best(arms, arm) for arm in usual)
            parts.append(gaps("each at its best on seen", best(arms, "opct")[0], found))
    return "\n\n".join(parts)

def records(name, columns=""):
    """What a script in tests/ measured, under its own names, in FILE or FILE/PART."""
    file, *part = name.split("/")
    result = load(file)[part[0]] if part else load(file)
    found = result.get("rows", [result])
    if name == "families":
        found = [{"family": family, **row} for family, row in result["families"].items()]
    heading = columns.split() or [*found[0]]
    lines = [[row.get(column, "") for column in heading] for row in found]
    return markdown([heading, *lines], [result])


# 3. The picture

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 {height}" role="img"
font-family="sans-serif" font-size="13"><title>Right answers while training</title><style>
text {{ fill: #24292f }} line {{ stroke: #d0d7de }} rect {{ fill: #ffffff }}
@media (prefers-color-scheme: dark) {{
  text {{ fill: #e6edf3 }} line {{ stroke: #3d444d }} rect {{ fill: #0d1117 }} }}
[color] text {{ fill: currentColor }} polygon {{ fill: currentColor; opacity: 0.13 }}
polyline {{ fill: none; stroke: currentColor; stroke-width: 2 }}
</style><rect width="100%" height="100%"/>
{body}
</svg>
"""

def panel(arms, path):
    """A diagram: a line per arm, a band over its seeds, its name at the end. The steps
    double. Dashed: after 40 steps, the runs of 80."""
    steps = steps_of(arms)
    at = {step: 160 * n // (len(steps) - 1) for n, step in enumerate(steps)}
    svg, label = [], -99
    for percent in range(0, 101, 20):
        y = 200 - 2 * percent
        svg.append(f'<line x2="160" y1="{y}" y2="{y}"/>'
                   f'<text x="-8" y="{y + 4}" text-anchor="end">{percent} %</text>')
    svg += [f'<text x="{at[s]}" y="218" text-anchor="middle">{s}</text>' for s in steps]
    curves = {arm: [[(at[s], dig(arms[name][s], path + ".value")) for s in some
                     if s in arms.get(name, ())]
                    for name, some in ((arm, steps), (f"{arm}-80", steps[-2:]))]
              for arm in COLORS if arm in arms}
    for arm, parts in sorted(curves.items(), key=lambda c: -mean(sum(c[1], [])[-1][1])):
        svg.append(f'<g color="{COLORS[arm]}">')
        for curve, dashes in zip(filter(None, parts), ("none", "5 3")):
            line, top, bottom = ([f"{x},{200 - 200 * of(seeds):.1f}" for x, seeds in curve]
                                 for of in (mean, max, min))
            svg.append(f'<polygon points="{" ".join(top + bottom[::-1])}"/><polyline '
                       f'stroke-dasharray="{dashes}" points="{" ".join(line)}"/>')
        label = max(label + 14, 204 - 200 * mean(curve[-1][1]))  # no overlap
        svg.append(f'<text x="166" y="{label:.1f}">{arm}</text></g>')
    return svg

def drawn():
    """The curves of cube as an SVG picture, a row per model."""
    svg, top = [], 0
    for (model, _), arms in results("cube-*.json").items():
        more = "; dashed: runs of 80 steps" if "opct-80" in arms else ""
        svg.append(f'<text x="14" y="{top + 26}" font-weight="bold">{model}, trained on '
                   f'capitals: right answers (bands: range of the seeds{more})</text>')
        for n, path in enumerate(PANELS):
            svg += [f'<g transform="translate({54 + 300 * n} {top + 68})">',
                    f'<text y="-14">{NAMES[path].capitalize()}</text>',
                    '<text x="80" y="238" text-anchor="middle">training steps</text>',
                    *panel(arms, path), "</g>"]
        top += 310
    return SVG.format(height=top + 10, body="\n".join(svg))


# 4. Command line

TABLES = {  # name: what makes it, or the columns of what a script in tests/ measured
    "embedded": lambda: per_task("embedded.json"),
    "axes": lambda: per_task("axes-*.json"), "cube": cube, "cube-short": cube_short,
    **dict.fromkeys(("bench/cpu", "bench/cuda"), "part dtype ours_s tokens_per_s rival "
                    "rival_s times_faster ours_gb rival_gb"),
    "families": "", "judges": "", "versions": "",  # all columns
    "reliability/kills": "kills same minutes",
    "reliability/fuzz": "inputs refused taken tracebacks"}

def filled(text):
    """The markdown text with every table in it as the result files have it now."""
    def new(match):
        name = match[2]
        check(name in TABLES, f"no table {name!r}; there are {', '.join(TABLES)}")
        try:
            make = TABLES[name]
            body = records(name, make) if isinstance(make, str) else make()
        except FileNotFoundError as missing:  # not run yet
            body = f"(no {Path(missing.filename).name} yet)"
        return f"{match[1]}{body}\n<!-- end -->"
    place = r"^(<!-- table: (\S+) -->\n)(?:(?!<!-- ).*\n)*<!-- end -->$"
    return re.sub(place, new, text, flags=re.M)

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["run", "fill", "draw"])
    parser.add_argument("names", nargs="*", help="an experiment; files to fill or draw")
    parser.add_argument("--model", default="", help="cube, axes: folder of a chat model")
    parser.add_argument("--dtype", default="auto", help="see python opct.py --help")
    parser.add_argument("--seeds", type=int, default=3, help="run seeds 0 to N - 1")
    parser.add_argument("--only", default="", help="regular expression: run matching names")
    args = parser.parse_intermixed_args(argv)
    try:
        if args.command == "run":
            run(" ".join(args.names), args.model, args.dtype, args.seeds, args.only)
        elif not args.command:
            print(filled("\n".join(f"<!-- table: {t} -->\n<!-- end -->\n" for t in TABLES)))
        else:
            for path in map(Path, args.names):
                new = drawn() if args.command == "draw" else filled(path.read_text("utf-8"))
                path.write_text(new, "utf-8")
    except (UserError, OSError, RuntimeError, re.error, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(main())
