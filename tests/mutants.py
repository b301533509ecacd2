"""Plant a bug, see a test fail: does the suite bite?

    python tests/mutants.py [WORD]      all bugs, or those whose name holds WORD

Each bug is one that a peer had or that the method invites, planted as an edit of a copy of
the source. One that no longer applies, or that the tests let pass, ends this with code 1.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BUGS = {  # test file: what goes wrong, the right text, the wrong text
    "policies": [
        ("the teacher is the live student", "        m.on = False\n", "        pass\n"),
        ("the adapter begins with noise", "torch.zeros(base.out", "torch.ones(base.out"),
        ("silent: PEFT takes it for the experts", "and name not in skipped", "")],
    "sample": [
        ("the end token is no part of it", "            answer.append(t)",
         "            answer += [t] if t not in eos or not answer else []"),
        ("only one of several end tokens is known", "    cache = KVCache(max_new_tokens)",
         "    cache, eos = KVCache(max_new_tokens), {min(eos, default=0)}"),
        ("all answers share chances", "chance[:, n]", "chance[:1, n].expand(len(token))"),
        ("one random number for all tokens", "chance[:, n]", "chance[:, 0]"),
        ("the chance of another answer", "chance[left]", "chance[:len(left)]"),
        ("decoding sees the padding", "cache.cursor[:, None], distance, at",
         "cache.cursor[:, None], distance.abs(), at"),
        ("one position for all rows", "token[:, None], cache.cursor[:, None],",
         "token[:, None], cache.cursor.max().expand(len(token))[:, None],"),
        ("the cache writes a slot late", "stored[rows, :, self.cursor]",
         "stored[rows, :, self.cursor + 1]"),
        ("rows dropped but not in the cache", "cache.select(left)", "pass"),
        ("temperature 0 draws", "if temperature == 0:", "if temperature == 9:"),
        ("the cache goes by one name", '"cache" if "cache" in inputs else', "")],
    "read": [
        ("the window is ignored", "reach = window if", "reach = 999 if"),
        ("the window is counted in places of the row",
         "positions[0][:, None] - positions[0], -1",
         "torch.arange(len(tree))[:, None] - torch.arange(len(tree)), -1"),
        ("the window stands in a nested config", "model.config.get_text_config(), {}",
         "model.config, {}"),
        ("answers see each other", "(branch[:, None] == branch)", "(branch > 0)"),
        ("trees see each other", "tree[:, None] == tree", "tree[:, None] >= tree"),
        ("positions run on through the tree", "start = len(prompt) if k > 0 else 0",
         "start = len(ids)"),
        ("answers read one place late", "+ len(prompt) - 1  #", "+ len(prompt) - 2  #"),
        ("silent: rotations by length", "[[*ys, ys[0][:1]] for ys in greedy]", "greedy")],
    "loss": [
        ("forward KL", "(log_p.exp() * ratio)", "(log_q.exp() * -ratio)"),
        ("the directions are swapped", 'token_kl(s, t) if cfg.kl == "reverse"',
         'token_kl(t, s) if cfg.kl == "reverse"'),
        ("a clamped KL", "(log_p.exp() * ratio).sum(-1)",
         "(log_p.exp() * ratio).sum(-1).clamp(min=0)"),
        ("0 log 0", ".masked_fill(log_p.isneginf(), 0)", ""),
        ("a sampled KL that is differentiated", "ratio + ratio * (log_p - log_p.detach())",
         "log_p - log_q"),
        ("the loss is a sum", "loss = kl.sum() / n_tokens", "loss = kl.sum()"),
        ("each micro-batch has its own mean", "kl.sum() / n_tokens", "kl.mean()"),
        ("only the last micro-batch counts", "loss.backward()",
         "optimizer.zero_grad(), loss.backward()"),
        ("the teacher reads the bait", "t = read(model, pack(clean",
         "t = read(model, pack(wrapped"),
        ("another temperature", "cfg.max_new_tokens, 1.0,", "cfg.max_new_tokens, .7,"),
        ("every step draws the same", "(cfg.seed, run.done))", "(cfg.seed, 0))"),
        ("the rest of an epoch is lost", "queue += sorted", "queue = sorted"),
        ("gradients are not clipped", "(params, cfg.grad_clip)", "(params, 1e9)")],
    "pairs": [
        ("the evaluation in training wordings", '[], split in ("train", "seen")',
         "[], True"),
        ("the safety teacher reads no fact", "system=hint if danger", "system='' if danger"),
        ("silent: a true suggestion", 'bait != words(row.get("answer", ""))', 'bait != ""'),
        ("a chat may end with anyone", "(user assistant )*user", "(user assistant )*.*")],
    "evaluate": [
        ("of several candidates one counts", "endorsed.pop() if len(endorsed) == 1",
         "endorsed.pop() if endorsed"),
        ("half a word counts", 'rf" {re.escape(form)}((?<=', 'rf"{re.escape(form)}((?<='),
        ("a denied candidate counts", "0 if denied else 2", "2"),
        ("agreement is not heard", "if not mentions and", "if mentions and"),
        ("a mention warns", 'cautious = re.search(rules()["caution"], sentence.lower())',
         "cautious = True"),
        ("what was not known is held", 'if example.setdefault("known", clean == right)', "if True"),
        ("a refusal that gives in counts", '"answered" if rest', '"answered" if 0'),
        ("intervals over answers", "np.unique(groups,", "np.unique(range(len(values)),"),
        ("an exact bound for what is no share", " and isinstance(values[0], bool)", ""),
        ("two unparsed answers agree", "clean == wrapped and clean is not None",
         "clean == wrapped"),
        ("drift is the forward KL", "kl = token_kl(read(model, pack(wrapped, ys)), t)",
         "kl = token_kl(t, read(model, pack(wrapped, ys)))"),
        ("the thinking is judged", '.rpartition("</think>")', '.rpartition("<think>")'),
        ("silent: 'A:' is an end", "(?<!\\b\\w):", ":"),
        ("silent: a comma in a candidate ends a clause", "(?!\\w)\", words(form),",
         "(?!\\w)\", form,"),
        ("warnings of nothing count", 'if example["danger"] else "warned_safe"', "")],
    "train": [
        ("the adapter is not scaled", "alpha / rank", "alpha / 9"),
        ("a relative path in the adapter", "str(path.resolve()) if", "cfg.model if"),
        ("files of mode 600", "os.replace(f",
         'os.chmod(f"{path}.new", 0o600), os.replace(f'),
        ("questions start over", "order[run.done:]", "order[:cfg.steps - run.done]"),
        ("Adam starts over", 'optimizer.load_state_dict(state["adam"])', "pass"),
        ("silent: other weights", "zlib.crc32(repr((prompts, weights))",
         "zlib.crc32(repr(prompts)"),
        ("silent: other data", 'check(state["inputs"] == self.inputs,', "check(True,"),
        ("another lr is taken", 'may_differ = {"resume",', 'may_differ = {"resume", "lr",'),
        ("NaN reaches the weights", "check(norm.isfinite(),", "check(True,"),
        ("two runs in one folder", '"w" if cfg.resume else "x"', '"w"')],
    "cli": [
        ("cuDNN's attention stays", "enable_cudnn_sdp(False)", "enable_cudnn_sdp(True)"),
        ("control tokens pass", "or token not in content", "or True"),
        ("control characters pass", 'c if c.isprintable() else " "', "c"),
        ("silent: the template's end of turn", "model.eos = {*ids[:1]} &", "model.eos = set() &"),
        ("silent: nothing to teach", 'if old["consistency"]["value"] > 0.95:', "if False:"),
        ("silent: what differs is dropped", "both[0] != both[1] or", "True or"),
        ("silent: a token of no model", "check(max(map(max, both)) <", "check(0 <"),
        ("silent: a clock in the template", "date + tokenizer.get", "tokenizer.get"),
        ("silent: copies are not counted", "len(pairs) - len({repr((p.wrapped, p.clean))",
         "len(pairs) - len({id(p)"),
        ("silent: missing weights", "check(not missing,", "check(True,"),
        ("silent: a dropped message", 'check(m["content"].strip() in text', "check(True"),
        ("a foreign folder is written to", "not os.listdir(cfg.out)", "True"),
        ("a broken pipe ends the run", "suppress(OSError, V", "suppress(V")],
    "one_file": [
        ("the base model answers twice", "model.state_dict() | adapter", "model.state_dict()"),
        ("silent: another model's adapter", "(model.state_dict() | adapter)",
         "(adapter, strict=False)")],
    "convert": [
        ("silent: a true suggestion by case", "plain(pair[\"suggested\"]) ==",
         "[pair[\"suggested\"]] =="),
        ("silent: a split of another name", '{"split": "test"} if', "{} if"),
        ("silent: letters beyond J", "([A-Z])", "([A-J])")],
    "sft": [
        ("the student writes the targets", "    with teacher(model):\n        for part",
         "    if True:\n        for part"),
        ("fresh targets are the old ones", 'if cfg.targets == "step":', "if False:"),
        ("targets behind the clean prompt", "packed = pack(wrapped", "packed = pack(clean"),
        ("silent: a KL that is not used", 'self.kl == "reverse" or', "True or"),
        ("one target per question", "samples = cfg.samples if", "samples = 1 if")]}

def plant(name, right, wrong, test):
    """-> the test that fails with the bug in place; None if they pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "out", "__py*"))
        sources = [*copy.glob("*.py"), copy / "data/convert.py", copy / "data/judges.txt"]
        files = [f for f in sources if right in f.read_text(encoding="utf-8")]
        if not files:
            raise SystemExit(f"cannot plant '{name}': nothing holds\n{right}")
        for f in files:
            source = f.read_text(encoding="utf-8")
            f.write_text(source.replace(right, wrong), encoding="utf-8")
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/test_{test}.py"]
        done = subprocess.run(pytest, cwd=copy, capture_output=True, text=True)
        failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
        return failed[0].split()[1].removeprefix("tests/") if failed else None

def main():
    word, passed = "".join(sys.argv[1:]), []
    for test, name, right, wrong in [(t, *bug) for t, bugs in BUGS.items() for bug in bugs]:
        if word in name:
            failed = plant(name, right, wrong, test)
            print(f"{failed or '!! PASSES':70} {name}", flush=True)
            passed += [] if failed else [name]
    if passed:
        raise SystemExit(f"{len(passed)} bugs were not noticed: {passed}")

if __name__ == "__main__":
    main()
