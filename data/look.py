"""Looking at runs that are done: --show RUN, and --compare RUN RUN ... in one table."""
import json
import sys
from pathlib import Path

from data import judges
from data.plumbing import UserError, check, interval, read_jsonl
from data.report import print_answers, rows_of, steps_in, table, telling

def asked(argv=None):
    """Do what --show or --compare asks for, if one of them is what is asked for."""
    flag, *runs = (sys.argv[1:] if argv is None else argv) or [""]
    if flag not in ("--show", "--compare"):
        return False
    check(len(runs) == 1 if flag == "--show" else len(runs) > 1,
          "--show takes the folder of a run, --compare those of two or more")
    show(Path(runs[0])) if flag == "--show" else compare([Path(run) for run in runs])
    return True


def load(run):
    """-> results, answers of a run. UserError if the folder holds no finished one."""
    try:
        return (json.loads((run / "results.json").read_text(encoding="utf-8")),
                read_jsonl(run / "answers.jsonl", ("split", "before", "after")))
    except (OSError, ValueError) as e:
        raise UserError(f"{run}: holds no run that has ended ({e})")


def method(results):
    return "SFT" if "targets" in results["config"] else "OPCT"


def show(run):
    """Print a run: what it did to some answers, token by token, its curve and its table."""
    results, answers = load(run)
    cfg = results["config"]
    print(f"{run}: {cfg['model']}, {cfg['task']}, {cfg['steps']} steps of {method(results)}")
    print_answers(telling(answers, 5))
    log = steps_in(run / "log.jsonl") if (run / "log.jsonl").exists() else []
    if log:
        print()
    for name, unit in (("kl", " nats a token"), ("follow", "")):
        values = [line[name] for line in log if line.get(name) is not None]
        if values:
            print(f"  {name:8}{spark(values)}  {values[0]:.2f} to {values[-1]:.2f}{unit}")
    print("\n" + "\n".join(table(results)))
    print(f"\n{(run / 'answers.html').resolve().as_uri()} shows every answer")


def spark(values, width=60):
    """Numbers as a line of bars, means of equal parts of them."""
    n = min(width, len(values))
    parts = [values[i * len(values) // n:(i + 1) * len(values) // n] for i in range(n)]
    means = [sum(part) / len(part) for part in parts]
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * m / (max(means) or 1)))] for m in means)


def marks(results, answers):
    """{(split, metric): {item: (value, group)}} of a run's answers after training."""
    task, found = results["config"]["task"], {}
    for a in answers:
        item = {**a, **a["after"]}
        item["group"] = a.get("group", a["id"])
        for name, value in judges.MARKS[task](item).items():
            key = a["split"], name
            found.setdefault(key, {})[a["id"], a["wrapper"]] = value, item["group"]
    return found


def compare(runs):
    """Print every metric of every run, and in pairs how the others differ from the first on the
    same items."""
    loaded = [load(run) for run in runs]
    tasks = {results["config"]["task"] for results, _ in loaded}
    check(len(tasks) == 1, f"--compare: takes runs of one task, not of {', '.join(sorted(tasks))}")
    names = {chr(ord("A") + n) if len(runs) <= 26 else str(n): run for n, run in enumerate(runs)}
    for (name, run), (results, _) in zip(names.items(), loaded):
        cfg = results["config"]
        print(f"{name}: {run}, {cfg['model']}, {cfg['steps']} steps of {method(results)}, seed "
              f"{cfg['seed']}")
    values = [{(split, name): m for split, name, m in rows_of(results["after"])}
              for results, _ in loaded]
    print(f"\n{'':28}" + "".join(f"{name:23}" for name in names))
    for key in values[0]:
        cells = [f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" if (m := v.get(key)) else ""
                 for v in values]
        print(f"{' '.join(key).strip():28}" + "".join(f"{cell:23}" for cell in cells))
    first, *others = [marks(*run) for run in loaded]
    for name, other in zip(list(names)[1:], others):
        print(f"\n{name} - A on the same items, with 95 % interval{' ' * 12}n")
        for key, items in first.items():
            both = items.keys() & other.get(key, {}).keys()
            if not both:
                continue
            both = sorted(both)
            d = interval([other[key][i][0] - items[i][0] for i in both],
                         [items[i][1] for i in both])
            if d["value"] == d["low"] == 0:  # no item differs: either may be the better one
                d["low"] = -d["high"]
            same = " (not separated)" if d["low"] <= 0 <= d["high"] else ""
            print(f"{' '.join(key):28}{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
                  f"{d['n']:9}{same}")
    if any(results["before"] != loaded[0][0]["before"] for results, _ in loaded):
        print("\nThe models before training, or their items, were not the same.")
