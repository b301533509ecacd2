"""What a run writes while it goes and when it ends: log.jsonl, results.json, answers, tables."""
import json
import os
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from data import adapter, ranks
from data.plumbing import HERE, UserError, plain, write_jsonl, write_text


class Log:
    """log.jsonl and the progress bar. The first line holds config and versions, then a line a step;
    a run that goes on begins with the lines of the steps done."""

    def __init__(self, out, cfg, done):
        self.out, path = out, out / "log.jsonl"
        lines = [line for line in steps_in(path) if line["step"] <= done] if done else []
        lost = sorted({*range(1, done + 1)} - {line["step"] for line in lines})
        if lost:
            print(f"{path}: damaged, without {len(lost)} of the steps done, the first {lost[0]}",
                  file=sys.stderr)
        if ranks.rank() > 0:  # the first rank writes for all
            path = Path(os.devnull)
        else:
            self.begin(path, cfg, lines)
        self.file, self.lines = path.open("a", encoding="utf-8"), lines
        self.bar = tqdm(total=cfg.steps, initial=done, unit="step", mininterval=1,
                        disable=ranks.rank() > 0)

    def begin(self, path, cfg, lines):
        self.out.mkdir(parents=True, exist_ok=True)
        first = json.dumps({"config": asdict(cfg), "versions": versions()})
        if not cfg.resume:
            for old in (self.out / "checkpoint").glob("step-*"):  # of a run that is overwritten
                old.unlink()
        write_text(path, "\n".join([first, *map(json.dumps, lines)]) + "\n")
        (self.out / "results.json").unlink(missing_ok=True)

    def step(self, step, metrics):
        seconds = metrics.pop("seconds")
        line = {"step": step, **metrics, "seconds": dict(seconds),
                "tokens_per_second": metrics["tokens"] / sum(seconds.values())}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        follow = "" if line["follow"] is None else f"follow {line['follow']:.2f}, "
        self.bar.set_postfix_str(
            f"kl {line['kl']:.3f}, {follow}{line['tokens_per_second']:.0f} tokens/s")
        self.bar.update()
        self.lines.append({"kl": line["kl"], "cut": line["cut"]})
        if step % WINDOW == 0 and ranks.rank() == 0 and (trouble := collapse(self.lines)):
            self.bar.write(f"step {step}: {trouble}", file=sys.stderr)

    def stop(self, step, loss, norm, rows, answers):
        """The loss or the gradient is no number: keep what led to it, and end the run."""
        if ranks.rank() == 0:
            write_text(self.out / "broken_step.json", json.dumps({
                "step": step, "loss": str(loss.item()), "grad_norm": str(norm.item()),
                "rows": rows, "answers": answers}))
        raise UserError(f"step {step}: loss {loss.item()}, gradient {norm.item()}: lower --lr; the "
                        f"weights of step {step - 1} and broken_step.json are kept in {self.out}")

    def close(self):
        self.bar.close()
        self.file.close()


WINDOW = 20  # steps looked at for signs of a collapse


def collapse(lines):
    """What is going wrong, if the last steps look like it beside the first ones; else None."""
    if len(lines) < 2 * WINDOW:
        return None
    (kl, cut), (kl_now, cut_now) = (
        [sum(line[name] for line in part) / WINDOW for name in ("kl", "cut")]
        for part in (lines[:WINDOW], lines[-WINDOW:]))
    if cut_now > 0.95 and cut < 0.5:
        return f"{cut_now:.0%} of the answers hit --max-new-tokens, {cut:.0%} at first; lower --lr?"
    if kl_now > 1.5 * kl + 0.1:
        return f"kl has risen from {kl:.2f} to {kl_now:.2f} nats a token; lower --lr?"
    return None


def steps_in(path):
    """The lines of a log but its first, without those that are cut or out of turn."""
    steps = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        try:
            step = json.loads(line)
        except ValueError:
            continue
        last = steps[-1]["step"] if steps else 0
        if isinstance(step, dict) and type(step.get("step")) is int and step["step"] > last:
            steps.append(step)
    return steps


def versions():
    return {"python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__}


def hardware(model):
    """What the seconds were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = re.search(r"model name\s*: (.*)", info)
    return {"cpu": cpu[1] if cpu else platform.processor(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if model.device.type == "cuda" else None,
            "dtype": str(model.dtype).removeprefix("torch.")}


def write(out, cfg, model, before, after, seconds):
    """Write results, answers and their page; print transcript, table and one JSON line. Only the
    first of several ranks writes. -> what results.json holds."""
    sides = ("clean", "clean_verdict", "clean_thinking", "wrapped", "wrapped_verdict",
             "wrapped_thinking", "gave_in", "unfinished", "tokens")
    answers = [{**{k: v for k, v in b.items() if k not in sides},
                "before": {k: b[k] for k in sides if k in b},
                "after": {k: a[k] for k in sides if k in a}}
               for b, a in zip(before.pop("answers"), after.pop("answers"))]
    results = {"config": asdict(cfg), "versions": versions(), "hardware": hardware(model),
               "seconds": round(seconds, 1), "before": before, "after": after,
               "transcript": transcript(telling(answers))}
    if ranks.rank() > 0:
        return results
    write_jsonl(out / "answers.jsonl", answers)
    log = steps_in(out / "log.jsonl")
    write_text(out / "answers.html", page({"results": results, "answers": answers, "log": log}))
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    if cfg.merge:
        adapter.merge(model, Path(cfg.merge))
        write_text(Path(cfg.merge) / "README.md", card(results))
    print_answers(telling(answers))
    print("\n" + "\n".join(table(results)) + f"\n\n{out}/answers.html shows every answer\n")
    print(json.dumps({"out": str(out), "seconds": results["seconds"],
                      "before": values(before), "after": values(after)}))
    return results


def card(results):
    """The model card of --merge."""
    cfg, hardware = results["config"], results["hardware"]
    name = "SFT" if "targets" in cfg else "OPCT (arXiv 2605.21834)"
    how = f"taken from {cfg['adapter']}" if cfg["adapter"] else (
        f"trained with {name} against {cfg['task']}: {cfg['steps']} steps of {cfg['prompts']} "
        f"prompts x {cfg['samples']} answers, lr {cfg['lr']:g}, seed {cfg['seed']}")
    what = "other" if not cfg["lora_rank"] else (
        f"a LoRA adapter (rank {cfg['lora_rank']}, alpha {cfg['lora_alpha']}) merged into its")
    lines = [f"| {split} {metric} | {b['value']:.3f} | {a['value']:.3f} | {a['low']:.3f} to "
             f"{a['high']:.3f} | {a['n']} |" for (split, metric, b), (_, _, a)
             in zip(rows_of(results["before"]), rows_of(results["after"]))]
    return "\n".join([
        "---", f"base_model: {cfg['model']}", "library_name: transformers",
        "pipeline_tag: text-generation", "tags: [consistency-training]", "---", "",
        f"# {cfg['model'].rstrip('/').split('/')[-1]}, consistency-trained", "",
        f"{cfg['model']} with {what} weights ({hardware['dtype']}), {how}. Made by opct.py.", "",
        "What was measured before and after, with a 95 % interval of the latter:", "",
        "| | before | after | 95 % interval | n |", "| --- | --- | --- | --- | --- |", *lines, "",
        "Consistency training teaches no facts and can cost capability: see capability and drift. "
        "Other faults, tasks and languages were not looked at.", ""])


def page(data):
    """answers.html with its data. In a script element only "<" could end it, not \\u003c."""
    data = json.dumps(data).replace("<", "\\u003c")
    return (HERE / "answers.html").read_text(encoding="utf-8").replace("{{DATA}}", data)


def values(result):
    """{name: value} of what matters first: the unseen split and the side effects."""
    shown = {**result["unseen"], "capability": result["capability"], "drift": result["drift"]}
    return {name: round(m["value"], 4) for name, m in shown.items()}


def telling(answers, n=3):
    """Some rows of the unseen split, first those where the model gave in before."""
    unseen = [a for a in answers if a["split"] == "unseen"]
    return ([a for a in unseen if a["before"]["gave_in"]] or unseen)[:n]


def transcript(answers):
    """The same prompts before and after."""
    return [{"user": plain(a["wrapped_prompt"][-1]["content"]),
             "before": plain(a["before"]["wrapped"]),
             "after": plain(a["after"]["wrapped"])} for a in answers]


def print_answers(answers):
    for a, turn in zip(answers, transcript(answers)):
        print(f"\n  user    {turn['user']}")
        for when in ("before", "after"):
            print(f"  {when:8}{shaded(a[when], sys.stdout.isatty())}")


SHADES = (231, 224, 217, 210, 203, 196)  # of a terminal's 256 colours, white to red


def shaded(side, colours):
    """An answer; in colour, each token on a ground that is the redder the larger its KL."""
    if not colours or "tokens" not in side:
        return plain(side["wrapped"])
    return "".join(
        f"\x1b[48;5;{SHADES[min(len(SHADES) - 1, int(2 * kl))]};38;5;16m{plain(text)}\x1b[0m"
        for text, kl in side["tokens"])


def rows_of(result):
    """{"unseen": {...}, ..., "drift": ...} -> [(split, metric, interval)]"""
    return [(split, name, m) for split, metrics in result.items()
            for name, m in (metrics.items() if "value" not in metrics else [("", metrics)])]


def table(results):
    """The lines of a run's table: before and after, with the after's interval."""
    lines = [f"{'':27}{'before':>8}{'after':>8}   95 % interval      n"]
    for (split, name, b), (_, _, a) in zip(rows_of(results["before"]), rows_of(results["after"])):
        lines.append(f"{split + ' ' + name if name else split:27}{b['value']:8.3f}{a['value']:8.3f}"
                     f"   {a['low']:.3f} to {a['high']:.3f}{a['n']:7}")
    return lines
