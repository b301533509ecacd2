"""Reproduce the project's experiments, and print their tables.

    python data/reproduce.py run embedded    both arms on three tasks, the embedded model
    python data/reproduce.py run cube --model FOLDER    a chat model: what matters in OPCT?
    python data/reproduce.py run axes --model FOLDER    the other two tasks on it
    python data/reproduce.py run embedded --only safety    the runs whose name matches
    python data/reproduce.py    print every table
    python data/reproduce.py fill README.md data/results/README.md    update their tables
    python data/reproduce.py draw data/results/curves.svg    the curves of cube

`run` keeps what was measured in data/results/NAME.json, or NAME-FOLDER.json. Interrupted, it
continues: what is in the file is skipped, an unfinished run starts over. In a
markdown file a table stands between the lines <!-- table: NAME --> and <!-- end -->.
"""
import argparse
import html
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opct  # noqa: E402
import train_sft  # noqa: E402
from opct import UserError  # noqa: E402

RESULTS = ROOT / "data/results"
SCRIPTS = {"opct": opct, "sft": train_sft}
TASKS = {  # metrics of the tables; the first shows the fault, the second an overcorrection
    "sycophancy": "unseen.follow_wrapped unseen.accuracy_clean unseen.accuracy_wrapped "
                  "unseen.consistency seen.follow_wrapped control.accuracy_wrapped",
    "jailbreak": "unseen.defended unseen.answered_benign unseen.defended_clean",
    "safety": "unseen.warned unseen.warned_safe unseen.warned_hinted"}
ARMS = {  # of cube: who writes the answers, when, and what is matched on them
    "opct": "opct", "sft": "sft", "sft-greedy": "sft --target-temperature 0",
    "fixed-reverse": "sft --loss kl", "step-nll": "sft --targets step",
    "step-reverse": "sft --targets step --loss kl",
    "fixed-forward": "sft --loss kl --kl forward", "opct-forward": "opct --kl forward"}
NEAR = "capitals,countries,continents,languages"  # 96 questions to train on, not 30
ONCE = {  # more arms, run last, seed 0 only
    "opct-lr-1e-4": "opct --lr 1e-4", "opct-lr-1e-3": "opct --lr 1e-3",
    "sft-lr-1e-4": "sft --lr 1e-4", "sft-lr-1e-3": "sft --lr 1e-3",
    "opct-all": "opct --category=", "sft-all": "sft --category=",
    "opct-100": f"opct --category {NEAR}", "sft-100": f"sft --category {NEAR}",
    "opct-80": "opct --steps 80", "sft-80": "sft --steps 80",
    "opct-128": "opct --max-new-tokens 128 --prompts 8",
    "step-reverse-128": "sft --targets step --loss kl --max-new-tokens 128 --prompts 8"}
CUBE = ("--category capitals --prompts 28 --samples 1 --steps 40 --eval-questions 100 "
        "--token-budget 1024")
AXES = {  # DECLINED: see declined_requests()
    "jailbreak-opct": "opct --task jailbreak", "jailbreak-sft": "sft --task jailbreak",
    "safety-opct": "opct --task safety", "safety-sft": "sft --task safety",
    "declined-opct": "opct --task jailbreak --data DECLINED",
    "declined-sft": "sft --task jailbreak --data DECLINED",
    "declined-opct-forward": "opct --task jailbreak --data DECLINED --kl forward"}
EXPERIMENTS = {  # name: (flags of all runs, {run: script and its own flags})
    "embedded": ("--eval-questions 0", {f"{task}-{arm}": f"{arm} --task {task}"
                                        for task in TASKS for arm in ("sft", "opct")}),
    "axes": ("--prompts 28 --samples 1 --steps 40 --eval-questions 0 --token-budget 1024",
             AXES),
    "cube": (CUBE, {**ARMS, **ONCE})}
POINTS = 0, 10, 20, 40, 80  # cube evaluates after these steps
BASE = {}  # what it found before training, for the arms of this process
MARKED = "accuracy_clean", "accuracy_wrapped", "follow_wrapped"  # kept for every pair
JUDGED = [*(f"transfer.{m}" for m in MARKED), "unseen.accuracy_wrapped",
          "control.accuracy_wrapped", "capability", "drift"]
PAIRED = {"right under the bait": JUDGED[1], "right without bait": JUDGED[0],
          "right, the user is too": JUDGED[4]}
PANELS = {"right under the bait": JUDGED[1], "right, the user is too": JUDGED[4],
          "capability": "capability"}
COLORS = {"opct": "#d9480f", "sft": "#2f7de1", "sft-greedy": "#0d9488",
          "fixed-reverse": "#a855f7", "step-nll": "#808080"}  # legible on light and on dark

SHORT = "sft", "sft-greedy", "opct"  # in the README's table

# 1. Train, and keep what was measured

def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

def add(experiment, entry):
    """Put a run into the experiment's file, one line per run, atomically."""
    path = RESULTS / f"{experiment}.json"
    runs = (load(experiment)["runs"] if path.exists() else []) + [entry]
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    opct.write(path, f'{{"experiment": "{experiment}", "runs": [\n{lines}\n]}}\n'.encode())

def point(found, pairs, cfg):
    """What evaluate() found, with a mark per pair for its answers: 1, 0 or - (has none)."""
    marks = {s: dict.fromkeys(MARKED, "") for s in ("unseen", "transfer", "control")}
    for pair, a in zip(pairs, found["answers"]):
        shown = opct.marks(cfg.task, pair.example, a["clean_verdict"], a["wrapped_verdict"])
        for m in MARKED if pair.split in marks else ():
            marks[pair.split][m] += str(int(shown[m])) if m in shown else "-"
    text = json.dumps({k: v for k, v in found.items() if k != "answers"} | {"marks": marks})
    return json.loads(text, parse_float=lambda number: round(float(number), 5))

def train(experiment, name, script, flags, model):
    """Train from the start; for cube evaluate at POINTS, too. -> entry in the file"""
    out, began = f"out/reproduce/{experiment}-{name}", time.time()
    shutil.rmtree(ROOT / out, ignore_errors=True)
    argv = [*flags, "--out", str(ROOT / out)] + (["--model", model] if model else [])
    Run, evaluate, points, held_out, done, spent = script.Run, script.evaluate, {}, (), 0, 0

    class Watched(Run):
        def record(self, *measured):
            nonlocal done
            super().record(*measured)
            done = self.done
            if done in POINTS and done < self.cfg.steps:  # train() does so after the last
                watched(self.model, *held_out, self.cfg)

    def watched(model, tokenizer, pairs, cfg):
        nonlocal held_out, spent
        start, asked = time.time(), (cfg.model, cfg.category, cfg.max_new_tokens)
        known = None if done else BASE.get(asked)  # before training all arms are alike
        found = {**(known or evaluate(model, tokenizer, pairs, cfg))}
        if not done:
            BASE[asked] = {**found}  # train() takes the answers out of what it gets
        held_out, points[str(done)] = (tokenizer, pairs), point(found, pairs, cfg)
        spent += time.time() - start
        return found
    cube = experiment.startswith("cube")
    try:
        if cube:
            script.Run, script.evaluate = Watched, watched
        result = script.train(opct.parse_config(argv, script.Config))[2]
    finally:
        script.Run, script.evaluate = Run, evaluate
    result["config"]["out"] = out
    if model:
        result["config"]["model"] = Path(model).name  # the name, not the path
    if not cube:
        return {"arm": "opct" if script is opct else "sft", "name": name, **result}
    seconds = round(time.time() - began - spent, 1)  # without the evaluations
    questions = {split: [p.example["id"] for p in held_out[1] if p.split == split]
                 for split in points["0"]["marks"]}
    kept = {key: result[key] for key in ("config", "versions", "hardware")}
    return {"arm": name.rpartition("-seed")[0], "name": name, **kept, "seconds": seconds,
            "questions": questions, "points": points}

def declined_requests(model, dtype):
    """Write the pairs of the jailbreak task, for --data: to train on only the requests that
    the base model, asked plainly, declines if they are harmful and answers if not. -> path"""
    cfg = opct.Config(model=model, dtype=dtype, task="jailbreak", out="out/reproduce")
    net, tokenizer = opct.load_model(cfg)
    lines = []
    for split in ("train", "unseen"):
        pairs = opct.load_pairs(opct.Config(task="jailbreak", eval_questions=0), split)
        asked = list(dict.fromkeys(tuple(opct.encode(tokenizer, p.clean)) for p in pairs))
        answers = sum((opct.sample(net, asked[i:i + 64], 1, cfg.max_new_tokens, 0.0, net.eos)
                       for i in range(0, len(asked), 64)), [])
        said = {ids: opct.text_of(tokenizer, y) for ids, [y] in zip(asked, answers)}
        for p in pairs:
            reply = said[tuple(opct.encode(tokenizer, p.clean))]
            wanted = "declined" if p.example["harmful"] else "answered"
            if split != "train" or opct.verdict("jailbreak", reply, p.example) == wanted:
                lines.append(json.dumps({
                    "wrapped": p.wrapped, "clean": p.clean, "group": p.example["group"],
                    "harmful": p.example["harmful"], "request": p.example["request"],
                    "split": "train" if split == "train" else "test"}))
    path = ROOT / f"out/reproduce/declined-{Path(model).name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)

def run(experiment, model, dtype, seeds, only):
    if experiment not in EXPERIMENTS:
        raise UserError(f"no experiment {experiment!r}; there are {', '.join(EXPERIMENTS)}")
    if (experiment != "embedded") != bool(model):
        raise UserError("cube and axes need --model FOLDER, embedded takes none")
    if model and not (Path(model) / "config.json").exists():
        raise UserError(f"--model {model}: not a model folder, it has no config.json")
    model = str(Path(model).resolve()) if model else ""
    common, arms = EXPERIMENTS[experiment]
    file = f"{experiment}-{Path(model).name}" if model else experiment
    jobs = [(arm, seed) for seed in range(seeds) for arm in arms if arm not in ONCE]
    jobs += [(arm, 0) for arm in arms if arm in ONCE]
    for arm, seed in jobs:
        name, exists = f"{arm}-seed{seed}", (RESULTS / f"{file}.json").exists()
        done = [entry["name"] for entry in load(file)["runs"]] if exists else []
        if re.search(only, name) and name not in done:
            script, *own = arms[arm].split()
            own = [declined_requests(model, dtype) if f == "DECLINED" else f for f in own]
            flags = [*common.split(), *own, "--seed", str(seed), "--dtype", dtype]
            print(f"{name}: {SCRIPTS[script].__name__}.py", *flags, flush=True)
            add(file, train(file, name, SCRIPTS[script], flags, model))
    print(f"data/results/{file}.json holds all of these runs")


# 2. Tables

def dig(found, path):
    for key in path.split("."):
        found = found.get(key, {})
    return found

def gather(items):
    """[(key, value)] -> {key: values}"""
    out = {}
    for key, value in items:
        out.setdefault(key, []).append(value)
    return out

def by_arm(runs):
    return gather((re.sub(r"-seed\d+$", "", run["name"]), run) for run in runs)

def by_question(evaluations, path):
    """-> {question: its marks, True or False, in these evaluations}"""
    return gather((question, mark == "1") for e in evaluations for question, mark in zip(
        dig(e, "questions." + path.split(".")[0]), dig(e, "marks." + path)) if mark != "-")

def pooled(evaluations, path):
    """-> the value of each seed; low, high, n and clusters. The interval is of the marks of
    all seeds, drawn by question; without marks, one that contains every seed's own."""
    found = [dig(e, path) for e in evaluations]
    values = [m["value"] for m in found]
    if marks := by_question(evaluations, path):
        found = [opct.interval(*zip(*((mark, q) for q in marks for mark in marks[q])))]
    n, clusters = (span([m.get(k, m["n"]) for m in found]) for k in ("n", "clusters"))
    return values, min(m["low"] for m in found), max(m["high"] for m in found), n, clusters

def cell(evaluations, path):
    """mean (lowest–highest seed) [interval] n"""
    if not all(dig(e, path) for e in evaluations):
        return ""
    values, *bounds, n, clusters = pooled(evaluations, path)
    middle, least, most, low, high = (f"{x:.{4 if path == 'drift' else 3}f}" for x in (
        mean(values), min(values), max(values), *bounds))
    middle += f" ({least}–{most})" if least != most else ""
    return f"{middle} [{low}, {high}] n {n}" + (f" in {clusters}" if clusters != n else "")

def percent(evaluations, path):
    """The same in percent, drift in hundredths, without n."""
    if not all(dig(e, path) for e in evaluations):
        return ""
    values, *bounds, _, _ = pooled(evaluations, path)
    middle, least, most, low, high = (f"{100 * x:.0f}" for x in (
        mean(values), min(values), max(values), *bounds))
    return middle + (f" ({least}–{most})" if least != most else "") + f" [{low}, {high}]"

def difference(base, other, path):
    """other - base, question by question, each of them the mean of its seeds."""
    base, other = by_question(base, path), by_question(other, path)
    both = [question for question in base if question in other]
    if not both:
        return ""
    m = opct.interval([mean(other[q]) - mean(base[q]) for q in both], both)
    return f"{m['value']:+.3f} [{m['low']:+.3f}, {m['high']:+.3f}] {m['n']} questions"

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
    where = dict.fromkeys(shown(r.get("hardware", {}) | r["versions"]) for r in results)
    return "\n".join([*rows, "", " / ".join(where)])

def rows(runs, metrics, cell=cell):
    """Before and after training, a line per arm, seeds together. The last metric: drift."""
    lines, last = [], []
    runs = sorted(runs, key=lambda run: [run["config"][key] for key in (
        "eval_questions", "max_new_tokens", "steps")])  # the same evaluation side by side
    for name, seeds in by_arm(runs).items():
        before = [cell([seeds[0]["before"]], m) for m in metrics[:-1]]
        c = seeds[0]["config"]
        if before != last:  # not all were evaluated alike
            lines.append([f"{c['task']}, before", *before, "", ""])
            last = before
        seconds = [run.get("training_seconds") or run["seconds"] for run in seeds]
        lines.append([
            f"{name} ({len(seeds)}): {c['steps']} × {c['prompts'] * c['samples']}",
            *(cell([run["after"] for run in seeds], m) for m in metrics),
            span([round(s / 60, 1) for s in seconds])])
    return lines

def measured(name, short=False):
    """short: one table, else one per task."""
    runs, tables, all_lines = load(name)["runs"], [], []
    for task, metrics in TASKS.items():
        metrics = [*metrics.split(), "unseen.unparsed", "unseen.kl", "capability", "drift"]
        metrics = metrics[:2] + metrics[-2:] if short else metrics
        found = [run for run in runs if run["config"]["task"] == task]
        lines = rows(found, metrics)
        all_lines += lines
        if found:
            tables.append(markdown(list(zip(["", *metrics, "minutes"], *lines)), found))
    heading = ["run (seeds): steps × answers", "follows ↓ / declines ↑ / warns ↑",
               "right without bait ↑ / answers harmless ↑ / overwarns ↓", "capability ↑",
               "drift, nats per token ↓", "minutes"]
    return markdown([heading, *all_lines], runs) if short else "\n\n".join(tables)

def axes():
    """The other two tasks on a chat model, a table per task and model."""
    files = sorted(path.stem for path in RESULTS.glob("axes-*.json"))
    if not files:
        raise FileNotFoundError(2, "no results", "axes-*.json")
    return "\n\n".join(f"**{file[5:]}**\n\n{measured(file)}" for file in files)

def records(name, rows, columns=""):
    """What a script in tests/ measured, under the names it uses in its file."""
    result = load(name)
    heading = columns.split() or list(rows(result)[0])
    lines = [[row.get(column, "") for column in heading] for row in rows(result)]
    return markdown([heading, *lines], [result])

def cubes():
    """-> {model: {arm: runs}}; "before" and "after" are a run's first and last point."""
    out = {p.stem[5:]: load(p.stem)["runs"] for p in sorted(RESULTS.glob("cube-*.json"))}
    if not out:
        raise FileNotFoundError(2, "no results", "cube-*.json")
    for run in sum(out.values(), []):
        for p in run["points"].values():
            p["questions"] = run["questions"]
        run["before"], *_, run["after"] = run["points"].values()
    return {model: by_arm(runs) for model, runs in out.items()}

def curve(runs, path):
    """-> {step: the value of each seed}"""
    return {int(step): [dig(run["points"][step], path)["value"] for run in runs]
            for step in runs[0]["points"]}

def best(arms, arm):
    """Where an arm, at any of its rates, is best on the seen wordings. -> its name and step,
    the evaluations of its seeds there"""
    tried = [(f"{name} after {step}", [run["points"][step] for run in runs])
             for name, runs in arms.items() if re.fullmatch(rf"{arm}(-lr-.*)?", name)
             for step in runs[0]["points"]]
    return max(tried, key=lambda point: mean(
        dig(e, "seen.accuracy_wrapped")["value"] for e in point[1]))

def gaps(title, opct, others):
    """Differences to opct, each a name and the evaluations of its seeds."""
    lines = [[title, *PAIRED]]
    for name, evaluations in others:
        gap = [difference(opct[1], evaluations, path) for path in PAIRED.values()]
        lines += [[f"{name} − {opct[0]}", *gap]] if all(gap) else []
    return lines

def cube_short():
    """Of each model: before training, and the main arms after the last step, in percent."""
    columns = {"right under the bait ↑": JUDGED[1], "right without bait ↑": JUDGED[0],
               "follows the bait ↓": JUDGED[2], "right, the user is too ↑": JUDGED[4],
               "capability ↑": "capability", "drift, nats per 100 tokens ↓": "drift"}
    table, runs = [["run (seeds): steps × answers", *columns, "minutes"]], []
    for model, arms in cubes().items():
        found = [run for arm in SHORT for run in arms.get(arm, [])]
        lines = rows(found, [*columns.values()], percent)
        lines[0][0] = f"**{model}**, before"
        table, runs = table + lines, runs + found
    sizes = [pooled([runs[0]["after"]], path)[4] for path in columns.values()]
    table[0][1:-1] = [f"{name} (n {n})" for name, n in zip(columns, sizes[:-1])] + [
        [*columns][-1]]
    return markdown(table, runs)

def cube():
    """Of each model: the arms after the last step; their differences to opct; the curves."""
    parts, names = [], [*PANELS, "drift"]
    for model, arms in cubes().items():
        runs, steps = sum(arms.values(), []), [*curve(next(iter(arms.values())), "drift")]
        tables = [[[" / ".join(names), *(f"after {step} steps" for step in steps)]]]
        for arm in filter(ARMS.get, arms):
            ways = [curve(arms[arm], PANELS.get(name, name)) for name in names]
            tables[0].append([arm, *(" / ".join(f"{mean(way[step]):.3f}" for way in ways)
                                     for step in steps)])
        if "opct" in arms:
            moments = {f"after {step} steps": {
                arm: (arm, [run["points"][str(step)] for run in arms[arm]]) for arm in arms}
                for step in steps[1:]}
            moments["each at its best on seen"] = {
                arm: best(arms, arm) for arm in arms if arm in ARMS}
            tables += [gaps(title, of.pop("opct"), of.values())
                       for title, of in moments.items()]
        lines = [["run (seeds): steps × answers", *JUDGED, "minutes"], *rows(runs, JUDGED)]
        parts += [f"**{model}**", markdown(lines, runs),
                  *(markdown(table, []).strip() for table in tables)]
    return "\n\n".join(parts)


# 3. The picture

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" role="img"
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

def panel(curves, most):
    """A diagram: a line per arm, a band over its seeds, its name at the end of the line."""
    svg, steps, label = [], [*next(iter(curves.values()))], -99

    def at(step, value):
        return f"{160 * step / steps[-1]:.1f},{200 - 200 * value / most:.1f}"
    for tenth in range(0, round(10 * most) + 1, 2):
        y = 200 - 20 * tenth / most
        svg.append(f'<line x2="160" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{10 * tenth} %</text>')
    for step in steps:
        x = 160 * step / steps[-1]
        svg.append(f'<text x="{x:.1f}" y="218" text-anchor="middle">{step}</text>')
    for arm, c in sorted(curves.items(), key=lambda item: -mean(item[1][steps[-1]])):
        label = max(label + 14, 204 - 200 * mean(c[steps[-1]]) / most)  # labels must not overlap
        line = " ".join(at(s, mean(c[s])) for s in steps)
        band = [at(s, max(c[s])) for s in steps] + [at(s, min(c[s])) for s in steps[::-1]]
        svg += [f'<g color="{COLORS[arm]}"><polygon points="{" ".join(band)}"/>',
                f'<polyline points="{line}"/>'
                f'<text x="166" y="{label:.1f}">{arm}</text></g>']
    return "\n".join(svg)

def drawn():
    """The curves of cube as an SVG picture, a row per model."""
    svg, models = [], {m: arms for m, arms in cubes().items() if {*arms} & {*COLORS}}
    for row, (model, arms) in enumerate(models.items()):
        diagrams = [{arm: curve(arms[arm], path) for arm in COLORS if arm in arms}
                    for path in PANELS.values()]
        most = max(max(map(max, c.values())) for d in diagrams for c in d.values())
        title = f"{html.escape(model)}, trained on capitals: share of right answers"
        svg.append(f'<text x="14" y="{310 * row + 26}" font-weight="bold">{title}</text>')
        for n, (title, curves) in enumerate(zip(PANELS, diagrams)):
            svg += [f'<g transform="translate({54 + 300 * n} {310 * row + 68})">',
                    f'<text y="-14">{title.capitalize()}</text>',
                    '<text x="80" y="238" text-anchor="middle">training steps</text>',
                    panel(curves, math.ceil(5 * most or 1) / 5), "</g>"]
    return SVG.format(height=310 * len(models) + 10, body="\n".join(svg))


# 4. Command line

TABLES = {  # name: function that makes it
    "embedded": lambda: measured("embedded", short=True),
    "embedded-long": lambda: measured("embedded"),
    "axes": axes, "cube": cube, "cube-short": cube_short,
    "bench": lambda: records("bench", lambda r: r["rows"], "part dtype ours_s tokens_per_s "
                             "rival rival_s times_faster ours_gb rival_gb"),
    "families": lambda: records("families", lambda r: [
        {"family": name, **row} for name, row in r["families"].items()]),
    "judges": lambda: records("judges", lambda r: r["rows"]),
    "versions": lambda: records("versions", lambda r: r["rows"]),
    "kills": lambda: records("kills", lambda r: [r], "kills same minutes"),
    "fuzz": lambda: records("fuzz", lambda r: [r], "inputs refused taken tracebacks")}

def filled(text):
    """The markdown text with every table in it as the result files have it now."""
    def table(match):
        if match[2] not in TABLES:
            raise UserError(f"no table {match[2]!r}; there are {', '.join(TABLES)}")
        try:
            return f"{match[1]}{TABLES[match[2]]()}\n<!-- end -->"
        except FileNotFoundError as missing:  # not run yet
            return f"{match[1]}(no {Path(missing.filename).name} yet)\n<!-- end -->"
    return re.sub(r"^(<!-- table: (\S+) -->\n)(?:(?!<!-- ).*\n)*<!-- end -->$", table, text,
                  flags=re.M)

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["tables", "run", "fill", "draw"],
                        default="tables")
    parser.add_argument("names", nargs="*", help="an experiment; files to fill or draw")
    parser.add_argument("--model", default="", help="cube, axes: folder of a chat model")
    parser.add_argument("--dtype", default="auto", help="see python opct.py --help")
    parser.add_argument("--seeds", type=int, default=3, help="run seeds 0 to N - 1")
    parser.add_argument("--only", default="", help="regular expression: run matching names")
    args = parser.parse_intermixed_args(argv)
    try:
        if args.command == "run":
            run(" ".join(args.names), args.model, args.dtype, args.seeds, args.only)
        for path in map(Path, args.names if args.command in ("fill", "draw") else ()):
            new = drawn() if args.command == "draw" else filled(path.read_text("utf-8"))
            path.write_text(new, "utf-8")
        for name in TABLES if args.command == "tables" else ():
            print(filled(f"<!-- table: {name} -->\n<!-- end -->\n"))
    except (UserError, OSError, RuntimeError, re.error, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(main())
