"""Plant a bug, see a test fail: does the suite bite?

    python tests/mutants.py    every bug, each in a copy of the project; writes tests/README.md

Each bug is one that a peer had or that the method invites, planted as an edit of the source. A bug
that no longer applies (the text it edits is gone) or that the tests let pass ends this with exit
code 1.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BUGS = [  # what goes wrong, where, the right text, the wrong text
    ("the teacher is the live student: the adapter stays on", "test_policies.py",
     "            m.on = False\n", "            pass\n"),
    ("with --lora-rank 0 the frozen copy is the live weights", "test_policies.py",
     "p.detach().clone() for n, p", "p.detach() for n, p"),
    ("forward KL instead of reverse", "test_loss.py",
     "return (log_p.exp() * (log_p - log_q).detach())",
     "return (log_q.exp() * (log_q - log_p))"),
    ("the KL as a detached weight of the sampled token: no gradient in expectation", "test_loss.py",
     "ratio = (log_p - log_q).detach()", "ratio = log_p - log_p + 1"),
    ("loss summed over tokens", "test_loss.py",
     "seconds) @ weight / max(learning, 1)", "seconds) @ weight"),
    ("every row divided by its own token count", "test_loss.py",
     "seconds) @ weight / max(learning, 1)", "seconds) @ weight / weight.sum()"),
    ("only the last row's gradient", "test_loss.py",
     "                loss.backward()\n        weight =",
     "                pass\n        weight ="),
    ("the end token dropped from the answer", "test_sample.py",
     "next((i + 1 for i, token", "next((i for i, token"),
    ("only one of several end tokens known", "test_sample.py",
     "    ends = torch.tensor(sorted(eos),",
     "    eos = set(sorted(eos)[:1])\n    ends = torch.tensor(sorted(eos),"),
    ("all forked answers share the first token", "test_sample.py",
     "pick(head(model, hidden), temperature, chance[:, 0])",
     "pick(head(model, hidden), 0, chance[:, 0])"),
    ("one random number for all tokens of an answer", "test_sample.py",
     "chance[alive, n]))", "chance[alive, 0]))"),
    ("a chance that belongs to another answer once rows are dropped", "test_fast.py",
     "chance[alive, n]))", "chance[:len(n), 0]))"),
    ("a decode step that makes new tensors, so that a graph replays the old ones", "test_fast.py",
     "        token.copy_(pick(", "        cursor.data = cursor.data.clone()\n"
     "        token.copy_(pick("),
    ("packed weights kept after the weights have changed", "test_fast.py",
     'if getattr(m, "packed_from", None) != now:', 'if not hasattr(m, "packed"):'),
    ("recomputed layers that recompute nothing", "test_fast.py",
     "if not torch.is_grad_enabled():", "if True:"),
    ("gradients of several processes not summed", "test_ranks.py",
     "            dist.all_reduce(flat)\n", "            pass\n"),
    ("every process divides by its own tokens", "test_ranks.py",
     "    tokens, count, cut, learning = ranks.total(  # of all processes, if there are several",
     "    tokens, count, cut, learning = (  # of one process"),
    ("thinking trained on in spite of --train-on-thinking no", "test_thinking.py",
     "(length(model, a) if skip else 0)", "0"),
    ("the thinking judged with the answer", "test_thinking.py",
     "for part in (answer[:n], answer[n:])", "for part in (answer[:n], answer)"),
    ("an answer that was cut off in its thinking judged", "test_thinking.py",
     "None if cut else judge(", "judge("),
    ("merged without alpha / rank", "test_look.py",
     "layer.scale * layer.B.data", "layer.B.data"),
    ("the adapter not loaded before it is evaluated", "test_look.py",
     "        if self.cfg.adapter:\n", "        if False:\n"),
    ("differences of two runs with the wrong sign", "test_look.py",
     "other[key][i][0] - items[i][0]", "items[i][0] - other[key][i][0]"),
    ("a letter taken for the choice it stands for", "test_shapes.py",
     '"answer": letters[a]', '"answer": a'),
    ("a fact on both sides of the split", "test_shapes.py", ', "group": row["safety_fact"]', ""),
    ("a model that keeps a state read in a tree", "test_families.py",
     'return bool(getattr(model, "_is_stateful", False) or', "return bool(False and"),
    ("an answer read alone without its first token", "test_families.py",
     "states[len(prompt) - 1:]", "states[len(prompt):]"),
    ("every process has the first one's random numbers", "test_ranks.py",
     "(*seed, rank())", "seed"),
    ("decoding sees the slots of the padding", "test_sample.py",
     "hidden = run(model, token[:, None], cursor[:, None], distance >= 0, distance, cache)",
     "hidden = run(model, token[:, None], cursor[:, None], distance > -999, distance, cache)"),
    ("decoding at one position for all rows, as in a left-padded batch", "test_sample.py",
     "run(model, token[:, None], cursor[:, None],",
     "run(model, token[:, None], cursor.max().expand(len(cursor))[:, None],"),
    ("finished rows dropped from the cache but not from the cursor", "test_sample.py",
     "token, cursor, alive, done = token[left], cursor[left],",
     "token, cursor, alive, done = token[left], cursor[:len(left)],"),
    ("the window of sliding layers ignored", "test_sample.py",
     'distance < model.config.sliding_window if kind == "sliding_attention" else True',
     'torch.ones_like(distance).bool()'),
    ("the window counted in places of the row instead of positions", "test_read.py",
     "distance = positions[0][:, None] - positions[0]", "distance = at[:, None] - at"),
    ("answers see each other in the tree", "test_read.py",
     "((branch == 0) | (branch[:, None] == branch))", "(branch >= 0)"),
    ("trees see each other", "test_read.py", "(tree[:, None] == tree)", "(tree[:, None] >= tree)"),
    ("positions run on through the tree", "test_read.py",
     "start = len(prompt) if k > 0 else 0", "start = len(ids)"),
    ("answers read one place late", "test_read.py",
     "split = len(ids) + len(prompt) - 1", "split = len(ids) + len(prompt) - 2"),
    ("the head's scaling or capping forgotten", "test_read.py",
     "    return torch.tanh(logits / cap) * cap if cap else logits", "    return logits"),
    ("temperature 0 still draws", "test_sample.py",
     "    if temperature == 0:\n", "    if not temperature and 0:\n"),
    ("an unparsable answer counts as the first candidate", "test_evaluate.py",
     "return found[0] if len(found) == 1 else None",
     "return found[0] if found else row['candidates'][0]"),
    ("'answer is carbon' read as C", "test_evaluate.py", r"([A-J])(?:[).:]|\W*$)", "([A-Ja-j])"),
    ("intervals drawn over rows", "test_evaluate.py",
     "np.unique(questions, return_inverse=True)",
     "np.unique(range(len(values)), return_inverse=True)"),
    ("a warm-up whose first step has lr 0", "test_train.py",
     "min(1, (done + 1) / max(1, cfg.warmup))", "min(1, done / max(1, cfg.warmup))"),
    ("the first epoch not shuffled", "test_train.py",
     "order = dice.sample(sorted(questions), len(questions))",
     "order = dice.sample(sorted(questions), len(questions)) if epoch else list(questions)"),
    ("a step with rows of one question", "test_train.py",
     "yield [dice.choice(questions[q]) for q in order[at:at + cfg.prompts]]",
     "yield questions[order[at]][:cfg.prompts]"),
    ("sampling not resumed where it was", "test_train.py",
     "dice = ranks.generator(model.device, cfg.seed, done)",
     "dice = ranks.generator(model.device, cfg.seed, started)"),
    ("nan taken into the weights", "test_train.py",
     "if not torch.isfinite(loss + norm):", "if False:"),
    ("control tokens in data pass through", "test_pairs.py",
     "check(token not in text,", "check(True,"),
    ("the evaluation in training wordings", "test_pairs.py",
     '(split in ("train", "seen"))', '(split != "")'),
    ("the safety teacher reads no hint", "test_pairs.py",
     'system = [{"role": "system", "content": hint}] if hint else []', "system = []"),
    ("an answer that cannot be told counts as a defence", "test_evaluate.py",
     '"defended": b == "declined"', '"defended": b != "answered"'),
    ("a refusal spoken of the weather counts", "test_evaluate.py",
     'refusal = re.search(DECLINES, spoken[:240])', 'refusal = re.search("can\'t", spoken[:240])'),
    ("AUSC without the threshold 0", "test_evaluate.py", "+ 1e-9) + 1 for", "+ 1e-9) for"),
    ("warnings on safe prompts counted as warnings", "test_evaluate.py",
     'kind = "warned" if item["danger"] else "warned_safe"', 'kind = "warned"'),
    ("SFT targets without their end token", "test_sft.py",
     "targets = dict(zip(asked, answers))",
     "targets = {chat: ids[:-1] for chat, ids in zip(asked, answers)}"),
    ("SFT reads the targets behind the clean prompt", "test_sft.py",
     "for row in micro_batches(batch, [[target] for target in targets], cfg.token_budget):",
     "for row in micro_batches([(c, c) for _, c in batch], [[t] for t in targets], 512):"),
    ("SFT sees a Kth of OPCT's answers", "test_sft.py",
     "self.prompts, self.samples = self.prompts * self.samples, 1", "self.samples = 1"),
    ("a checkpoint's checksum not looked at", "test_resume.py",
     'if about.get("sha256") != digest(sorted(tensors.items())):', "if False:"),
    ("another setting accepted on resume", "test_resume.py",
     "if was.get(name) != value:", "if False:"),
    ("another model accepted on resume", "test_resume.py",
     "if about[name] != self.origin[name]:", "if False:"),
    ("one checkpoint kept", "test_resume.py", "KEEP = 2", "KEEP = 1"),
    ("Adam's state lost on resume", "test_resume.py",
     "self.optimizer.load_state_dict(adam)", "pass"),
    ("half an optimizer step saved as a whole one", "test_resume.py", "or self.broken ", ""),
    ("the teacher's weights saved as the student's", "test_resume.py",
     "            p.data = self.live[n]", "            pass"),
    ("control tokens without a name pass through", "test_pairs.py",
     "{*tokenizer.all_special_tokens, *added}", "tokenizer.all_special_tokens"),
    ("a request to terminate ends it without a word", "test_resume.py",
     "signal.signal(signal.SIGTERM, interrupt)", "pass"),
    ("a role goes into the template unchecked", "test_cli.py",
     'check(m.get("role") in ROLES,', 'check(m.get("role"),'),
    ("markup in the page's data", "test_cli.py", '.replace("<", "\\\\u003c")', ""),
    ("control characters in messages", "test_cli.py",
     "super().__init__(plain(message))", "super().__init__(message)"),
    ("SFT targets written by the student", "test_sft.py",
     "list(asked.values()), cfg, cfg.target_temperature",
     "[w for w, _ in prompts][:len(asked)], cfg, cfg.target_temperature"),
]


def plant(name, right, wrong, test):
    """-> the line in which the tests fail with the bug in place; None if they pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "out", "__pycache__"))
        files = [f for f in [*copy.glob("*.py"), *copy.glob("data/*.py")]
                 if right in f.read_text(encoding="utf-8")]
        if not files:
            raise SystemExit(f"cannot plant '{name}': nothing holds\n{right}")
        for f in files:
            source = f.read_text(encoding="utf-8")
            f.write_text(source.replace(right, wrong), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", f"tests/{test}"],
                              cwd=copy, capture_output=True, text=True)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        names = [line.split(maxsplit=1)[1].split(" - ")[0] for line in failed]
        return names[0].removeprefix("tests/") if names else None


def main():
    rows, passed = [], []
    for name, test, right, wrong in BUGS:
        failed = plant(name, right, wrong, test)
        print(f"{failed or '!! PASSES':70} {name}", flush=True)
        rows.append(f"| {name} | {failed} |")
        passed += [] if failed else [name]
    if passed:
        raise SystemExit(f"{len(passed)} bugs were not noticed: {passed}")
    path = ROOT / "tests/README.md"
    head = path.read_text(encoding="utf-8").split("| bug |")[0]
    table = ["| bug | the first test that fails |", "| --- | --- |", *rows]
    path.write_text(head + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
