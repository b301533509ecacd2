"""The README's tables, out of the result files that runs left in data/results/.

    python data/tables.py            prints them
    python data/tables.py --write    puts them into the README, between their markers
"""
import difflib
import json
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import opct  # noqa: E402
import train_sft  # noqa: E402
from data import glossary, memory, plumbing, sweep  # noqa: E402

HERE = Path(__file__).resolve().parent
SHOWN = [  # split, metric, how the README calls it
    ("unseen", "follow_wrapped", "follows the wrong suggestion"),
    ("unseen", "accuracy_wrapped", "answers right, with the suggestion"),
    ("unseen", "accuracy_clean", "answers right, without it"),
    ("unseen", "consistency", "same answer with and without"),
    ("unseen", "unparsed", "names none or several answers"),
    ("unseen", "kl", "KL to the base model without bait, nats a token"),
    ("seen", "follow_wrapped", "follows, in wordings of the training"),
    ("control", "accuracy_wrapped", "answers right when the suggestion is right"),
    ("capability", "", "capability: add, copy, reverse, sort"),
    ("drift", "", "drift from the base model, nats a token")]
COST = [("capability", "", "capability", ""), ("drift", "", "drift, nats a token", "")]
COMPARED = {  # split, metric, label, the paper's base / SFT / OPCT
    "sycophancy": [
        ("unseen", "follow_wrapped", "follows the wrong suggestion", ".154 / .112 / .081"),
        ("unseen", "accuracy_wrapped", "right, with the suggestion", ""),
        ("unseen", "accuracy_clean", "right, without it", ""),
        ("unseen", "consistency", "same answer with and without", ".836 / .873 / .894"),
        ("control", "accuracy_wrapped", "right, when what is suggested is right", ""), *COST],
    "jailbreak": [
        ("unseen", "defended", "declines a framed bad request", "– / .87 / .99"),
        ("unseen", "defended_clean", "declines it asked plainly", ""),
        ("unseen", "answered_benign", "answers a framed harmless one", ""), *COST],
    "safety": [
        ("unseen", "warned", "warns of the hidden danger", ""),
        ("unseen", "warned_hinted", "the same when told the fact", ""),
        ("unseen", "warned_safe", "warns where there is none", ""),
        ("unseen", "ausc", "AUSC, 101 thresholds", ".526 / .829 / .876"),
        ("unseen", "model_score", "facts with every prompt warned", ""), *COST]}


def load(pattern):
    """The result files of one model, by seed."""
    return [json.loads(p.read_text()) for p in sorted((HERE / "results").glob(pattern))]


def metric(side, split, name):
    return side[split][name] if name else side[split]


def runs_table(pattern):
    """Before and after over the seeds: mean, range over seeds, and an interval that holds the 95 %
    interval of every seed."""
    runs = load(pattern)
    lines = ["| unseen questions, unseen wordings | before | after | range over seeds "
             "| 95 % interval | n |", "| --- | --- | --- | --- | --- | --- |"]
    for split, name, label in SHOWN:
        before = metric(runs[0]["before"], split, name)
        after = [metric(r["after"], split, name) for r in runs]
        values = [m["value"] for m in after]
        lines.append(
            f"| {label} | {before['value']:.3f} | **{sum(values) / len(values):.3f}** | "
            f"{min(values):.3f} to {max(values):.3f} | {min(m['low'] for m in after):.3f} to "
            f"{max(m['high'] for m in after):.3f} | {after[0]['n']} |")
    config, hardware = runs[0]["config"], runs[0]["hardware"]
    alone = "training_seconds" in runs[0]
    minutes = [r["training_seconds" if alone else "seconds"] / 60 for r in runs]
    took = ("minutes of training, evaluations aside" if alone else
            "minutes a run, evaluations included")
    lines.append(
        f"\n{len(runs)} seeds, {config['steps']} steps of {config['prompts']} prompts × "
        f"{config['samples']} answers, lr {config['lr']:g}, LoRA rank {config['lora_rank']}; "
        f"{min(minutes):.1f} to {max(minutes):.1f} {took}, on "
        f"{hardware['threads']} threads of an {hardware['cpu']}, {hardware['dtype']}.")
    return "\n".join(lines)


def tasks(names):
    """names: {task: how its result files begin} -> (task, its rows, {arm: its runs}) of each."""
    return [(task, COMPARED[task], {arm: load(f"{name}-{task}-{arm}-seed*.json")
                                    for arm in ("sft", "opct")}) for task, name in names.items()]


def cell(runs, split, name):
    """Mean over the seeds, their range, and an interval that holds the 95 % one of every seed."""
    got = [metric(r["after"], split, name) for r in runs]
    values = [m["value"] for m in got]
    d = digits(split)
    low, high = (f"{x:.{d}f}" for x in (min(values), max(values)))
    spread = f"{low}–{high} " if low != high else ""
    return (f"**{sum(values) / len(values):.{d}f}** {spread}"
            f"[{min(m['low'] for m in got):.{d}f}, {max(m['high'] for m in got):.{d}f}]")


def digits(split):
    return 4 if split == "drift" else 3


def compared(names):
    """Base, SFT and OPCT on every task that was run."""
    lines = ["| task | unseen items and wrappers | base | SFT | OPCT | n | paper |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for shown, rows, runs in tasks(names):
        for split, key, label, paper in rows:
            base = metric(runs["opct"][0]["before"], split, key)
            lines.append(f"| {shown} | {label} | {base['value']:.3f} | "
                         f"{cell(runs['sft'], split, key)} | {cell(runs['opct'], split, key)} | "
                         f"{base['n']} | {paper} |")
            shown = ""
    lines.append("\n" + budget(names))
    return "\n".join(lines)


def budget(names):
    """What the arms had in common, and what they took."""
    minutes, steps, threads = {"sft": [], "opct": []}, [], set()
    for task, _, arms in tasks(names):
        for arm, runs in arms.items():
            minutes[arm] += [r["training_seconds"] / 60 for r in runs]
            threads |= {str(r["hardware"]["threads"]) for r in runs}
        config, hardware = runs[0]["config"], runs[0]["hardware"]
        only = f" ({config['category']})" if config["category"] else ""
        steps.append(f"{config['steps']} of {config['prompts'] * config['samples']} answers in "
                     f"{task}{only}")
    took = {arm: f"{min(m):.1f} to {max(m):.1f}" for arm, m in minutes.items()}
    return (f"Mean over {len(runs)} seeds, their range, and in brackets an interval that holds the "
            f"95 % interval of every seed. Steps of both arms: {', '.join(steps)}; lr "
            f"{config['lr']:g}, LoRA rank {config['lora_rank']}, {hardware['dtype']}. Minutes of "
            f"training, evaluations aside: SFT {took['sft']}, OPCT {took['opct']}, on "
            f"{' or '.join(sorted(threads))} threads of an {hardware['cpu']}.")


def curves(names):
    """How the fault, capability and drift go with training time: means over the seeds."""
    stages = list(tasks(names)[0][2]["opct"][0]["curve"])
    lines = [f"| task | | arm | 0 | {' | '.join(stages)} |",
             "| --- | --- | --- | --- |" + " --- |" * len(stages)]
    for shown, rows, arms in tasks(names):
        for split, key, label, _ in [rows[0], *COST]:
            for arm, runs in arms.items():
                start = metric(runs[0]["before"], split, key)["value"]
                means = [sum(metric(r["curve"][s], split, key)["value"] for r in runs) / len(runs)
                         for s in stages]
                lines.append(f"| {shown} | {label} | {arm.upper()} | {start:.{digits(split)}f} | "
                             + " | ".join(f"{m:.{digits(split)}f}" for m in means) + " |")
                shown = label = ""
    lines.append(f"\nEach seed at step {stages[-1]}, with its 95 % interval:")
    for shown, _, arms in tasks(names):
        for split, key, label, _ in COST:
            for arm, runs in arms.items():
                got = [metric(r["curve"][stages[-1]], split, key) for r in runs]
                d = digits(split)
                seeds = ", ".join(f"{m['value']:.{d}f} [{m['low']:.{d}f}, {m['high']:.{d}f}]"
                                  for m in got)
                lines.append(f"- {shown}, {label}, {arm.upper()}: {seeds}")
    return "\n".join(lines)


def loop_diff():
    """The real difference of the two training loops."""
    sources = [(HERE.parent / f).read_text(encoding="utf-8") for f in ("opct.py", "train_sft.py")]
    loops = [s[s.index("def train(cfg)"):].split("\n\n\n")[0].splitlines() for s in sources]
    diff = difflib.unified_diff(*loops, "opct.py", "train_sft.py", n=0, lineterm="")
    return "\n```diff\n" + "\n".join(d for d in diff if not d.startswith("@@")) + "\n```\n"


def transcript():
    """One prompt of each task at which the model gave in, before and after; the shortest of three.
    """
    turns = []
    for task in COMPARED:
        first = load(f"tiny-{task}-opct-seed0.json")[0]["transcript"]
        turn = min(first, key=lambda turn: len(turn["user"]))
        turns.append("\n".join(textwrap.fill(
            text, 98, initial_indent=f"    {who:8}", subsequent_indent=" " * 12)
            for who, text in turn.items()))
    return "\n\n".join(turns)


def bench_of(bench):
    """The table of tests/bench.py: each figure beside its rival and its floor."""
    lines = ["| | dtype | ours | rival | | of the floor | memory, ours | rival |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for r in bench["rows"]:
        rival, faster, gb = "", "", ""
        if "rival_s" in r:
            rival = f"{seconds(r['rival_s'])}, {r['rival']}"
            faster, gb = f"**{r['times_faster']:.1f}×**", gigabytes(r, "rival")
        share = f"{r['share_of_floor']:.0%}" if "share_of_floor" in r else ""
        lines.append(f"| {r['part']} | {r['dtype']} | {seconds(r['ours_s'])}, "
                     f"{r['tokens_per_s']:,.0f} tokens/s | {rival} | {faster} | {share} | "
                     f"{gigabytes(r, 'ours')} | {gb} |")
    w, v, h = bench["workload"], bench["versions"], bench["hardware"]
    trl = f", TRL {v['trl']}" if "trl" in v else ""
    where = h["gpu"] or f"{h['threads']} threads of an {h['cpu']}"
    lines.append(
        f"\nRandom weights in the shape of {w['shape']}, {w['prompts']} prompts of "
        f"{w['prompt_tokens']} tokens, {w['answers']} answers each of {w['new_tokens']} tokens; "
        f"medians of {min(r['runs'] for r in bench['rows'])} runs after two that warm up; {where}, "
        f"torch {v['torch']}, transformers {v['transformers']}{trl}. Floor: the operations that "
        "cannot be left out, at the rate of a large matrix product measured in the same run.")
    steps = [r for r in bench["rows"] if r["part"] == "whole step"]
    for r in steps:
        whole = sum(r["phases"].values())
        parts = ", ".join(f"{name} {s / whole:.0%}" for name, s in r["phases"].items())
        lines.append(f"\nA step in {r['dtype']}: {parts}.")
    names = {"answers": "answers a prompt", "prompt_tokens": "prompt tokens",
             "new_tokens": "answer tokens", "vocabulary": "vocabulary"}
    for name, got in bench["growth"].items():
        half, usual, double = got.values()
        lines.append(f"{names[name].capitalize()} halved or doubled: {half / usual:.2f} and "
                     f"{double / usual:.2f} times as long.")
    return "\n".join(lines)


def gigabytes(row, side):
    above = row.get(side + "_above_gb")
    return f"{row[side + '_gb']:.1f} GB" + (f", {above:.2f} over the weights" if above else "")


def seconds(s):
    return f"{s:.2f} s" if s >= 1 else f"{s * 1000:.0f} ms"


def memory_table():
    """What a step needs, reckoned, beside what was measured."""
    lines = ["| GB, bf16 | weights | adapter, Adam | sampling | reading | peak | "
             "peak with --gradient-checkpointing |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name in ("Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B"):
        plain, lean = (memory.memory(memory.SHAPES[name](), gradient_checkpointing=g)
                       for g in (False, True))
        lines.append(f"| {name} | " + " | ".join(
            f"{plain[k]:.1f}" for k in ("weights", "adapter", "sampling", "reading", "peak"))
            + f" | {lean['peak']:.1f} |")
    lines.append("\n8 prompts of 256 tokens, 4 answers each of 256, --token-budget 2048, rank 16.")
    rows = {(r["part"].split()[0], r["dtype"]): r for r in load("bench.json")[0]["rows"]}
    for dtype in ("float32", "bfloat16"):
        step, head = rows["whole", dtype], rows["head", dtype]
        loaded = head["ours_gb"] - head["ours_above_gb"]
        lines.append(
            f"The step of the table above in {dtype}, on a CPU: reckoned {step['reckoned_gb']:.1f} "
            f"GB, measured {step['ours_gb']:.1f} GB for the process, of which {loaded:.1f} GB with "
            "the model loaded and nothing done.")
    return "\n".join(lines)


def sweep_table():
    """What data/sweep.py left: one choice at a time away from the defaults."""
    metrics = [("unseen", "follow_wrapped", "follows"),
               ("unseen", "accuracy_wrapped", "right, with the suggestion"),
               ("unseen", "accuracy_clean", "right, without"), *(c[:3] for c in COST)]
    lines = ["| | " + " | ".join(label for _, _, label in metrics) + " | minutes |",
             "| --- |" + " --- |" * (len(metrics) + 1)]
    for choice in sweep.CHOICES:
        runs = load(sweep.file_name(choice) + "-sycophancy-opct-seed*.json")
        cells = []
        for split, name, _ in metrics:
            got = [metric(r["after"], split, name)["value"] for r in runs]
            low, high = (f"{x:.{digits(split)}f}" for x in (min(got), max(got)))
            cells.append(low if low == high else f"{low}–{high}")
        minutes = sum(r["training_seconds"] for r in runs) / len(runs) / 60
        lines.append(f"| {choice} | {' | '.join(cells)} | {minutes:.1f} |")
    n = metric(runs[0]["after"], "unseen", "follow_wrapped")["n"]
    first = load(sweep.file_name("defaults") + "-sycophancy-opct-seed*.json")[0]
    d = first["config"]
    lines.append(f"\nThe lower and the higher of {len(runs)} seeds, n = {n} questions. Defaults: "
                 f"{d['steps']} steps of {d['prompts']} prompts x {d['samples']} answers of at "
                 f"most {d['max_new_tokens']} tokens, lr {d['lr']:g}, rank {d['lora_rank']}; alpha "
                 f"is twice the rank. Minutes of training on {first['hardware']['threads']} threads "
                 f"of an {first['hardware']['cpu']}.")
    return "\n".join(lines)


def families(result):
    """The matrix of tests/families.py."""
    names = {"sampling": "sampling", "tree": "reading", "gradients": "gradients", "head": "head",
             "adapter off": "adapter off"}
    lines = ["| family | read | " + " | ".join(names.values()) + " |",
             "| --- | --- |" + " --- |" * len(names)]
    for family, got in result["families"].items():
        cells = []
        for name in names:
            exact = name == "adapter off" or name == "sampling" and got["read"] == "alone"
            cells.append(("the same" if got[name] == 0 else "NOT the same") if exact
                         else f"{got[name]:.0e}" if got[name] else "0")
        lines.append(f"| {family} | {got['read']} | {' | '.join(cells)} |")
    lines.append(f"\nRefused by name: {', '.join(result['refused'])} and other encoders and "
                 f"encoder-decoders. transformers {result['versions']['transformers']}, torch "
                 f"{result['versions']['torch']}, fp32, tiny random weights.")
    return "\n".join(lines)


def flags_table():
    """Every flag, from the comments of Config."""
    lines = ["| flag | default | |", "| --- | --- | --- |"]
    for script, Config in (("", opct.Config), ("train_sft.py only: ", train_sft.Config)):
        for name, kind, default, choices, note in plumbing.flags(Config):
            if script and name in opct.Config.__dataclass_fields__:
                continue
            shown = f"{default:g}" if kind is float else str(default)
            shown = "" if shown in ("", "False") else shown
            note = (f"({', '.join(choices)}) " if choices else "") + note
            lines.append(f"| --{name.replace('_', '-')} | {shown} | {script}{note} |")
    return "\n".join(lines)


def metrics_table():
    return "\n".join(["| metric | |", "| --- | --- |"] + [
        f"| {name} | {text} |" for name, text in glossary.METRICS.items()])


def reliability():
    """What tests/kills.py, tests/fuzz.py and a long run left."""
    kills, fuzz = load("kills.json")[0], load("fuzz.json")[0]
    long = load("long-sycophancy-opct-seed*.json")
    notices = sum(len(r["collapse"]) for r in long)
    ends = [metric(r["after"], "unseen", "follow_wrapped")["value"] for r in long]
    first, last = ([r["kl_by_20_steps"][i] for r in long] for i in (0, -1))
    return "\n".join([
        "| | | |", "| --- | --- | --- |",
        f"| killed at a random moment, then continued | {kills['same']} of {kills['kills']} end "
        f"bitwise the same | {kills['minutes']} minutes |",
        f"| random data files | {fuzz['tracebacks']} tracebacks in {fuzz['inputs']:,}: "
        f"{fuzz['refused']:,} refused in one line, {fuzz['taken']:,} taken | "
        f"{fuzz['minutes']} minutes |",
        f"{long[0]['config']['steps']} steps on the embedded model, {len(long)} seeds | {notices} "
        f"notices of a collapse; kl {min(first):.2f} to {max(first):.2f} nats in the first 20 "
        f"steps, {min(last):.3f} to {max(last):.3f} in the last; follows {min(ends):.3f} to "
        f"{max(ends):.3f} | {sum(r['training_seconds'] for r in long) / 60:.1f} minutes |"])


TINY = dict.fromkeys(COMPARED, "tiny")
SMOLLM2 = {**dict.fromkeys(COMPARED, "smollm2"), "sycophancy": "smollm2-short"}
TABLES = {"transcript": lambda: "\n" + transcript() + "\n",
          "compared": lambda: compared(TINY), "loops": loop_diff,
          "curves": lambda: curves(TINY),
          "compared-smollm2": lambda: compared(SMOLLM2),
          "smollm2": lambda: runs_table("smollm2-sycophancy-opct-seed*.json"),
          "smollm2-capitals": lambda: runs_table("smollm2-capitals-sycophancy-opct-seed*.json"),
          "sweep": sweep_table, "families": lambda: families(load("families.json")[0]),
          "reliability": reliability, "flags": flags_table, "metrics": metrics_table,
          "bench": lambda: bench_of(load("bench.json")[0]), "memory": memory_table}


def filled(readme):
    """The README's text with every table as the files have it."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        readme, found = re.subn(pattern, lambda m: f"{m[1]}{table()}\n{m[2]}", readme, flags=re.S)
        if found != 1:
            raise SystemExit(f"README.md has no place for the table {name}")
    return readme


if __name__ == "__main__":
    path = HERE.parent / "README.md"
    if "--write" in sys.argv:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(table() for table in TABLES.values()))
