"""How fast, against what: every figure beside its rival or its floor, measured in the same run.

    python tests/bench.py                                 on this machine's processor
    python tests/bench.py --write data/results/bench.json    the same, kept
    python tests/bench.py --device cuda --shape Qwen3-8B --prompts 1 --answers 1    on a GPU

Random weights in a real model's shape; every answer has the full length. Parts: sampling against
generate(); reading forward and backward; head and KL in chunks against at once; the whole step
against TRL's SDFTTrainer, and how it grows. TRL is timed when it can be imported; install it aside
(pip install trl peft), it is no requirement of this project.

Each side runs in processes of its own, the sides in turn, so that peak memory is its own and a
noisy machine hits both. Floors are reckoned from the work that cannot be left out and the rate of
large matrix products and copies measured here. N weights cost 2 N operations a token forward, and
4 N in the student's reading (frozen weights need no gradient of their own).
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402

import opct  # noqa: E402
from data import fast, memory, report, tables  # noqa: E402


# ---- the workload

def make_model(folder, shape, times=1):
    """Random weights, with the embedded tokenizer and no end token: every answer has full length.
    times: how much larger the vocabulary is than the shape's."""
    config = memory.SHAPES[shape]()
    config.update({"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
                   "vocab_size": int(config.vocab_size * times)})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(opct.HERE / "data/tiny").save_pretrained(folder)


def load(args):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)).to(args.device)
    model.generation_config.eos_token_id = [-1]
    return model.eval().requires_grad_(False)


def prompts(args):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(300, 4000, (args.prompt_tokens,), generator=generator).tolist()
            for _ in range(args.prompts)]


def answers(args):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(300, 4000, (args.prompts, args.answers, args.new_tokens),
                         generator=generator).tolist()


def timed(fn, args):
    """Seconds of each run after two that warm up (a GPU's graphs are recorded in them)."""
    wait, seconds = torch.cuda.synchronize if args.device == "cuda" else int, []
    for _ in range(args.runs + 2):
        wait()
        began = time.perf_counter()
        fn()
        wait()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[2:]}


# ---- the sides: each in a process of its own

def rates(args):
    """Operations a second of a large matrix product; bytes a second of a large copy."""
    n = 8192 if args.device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=args.device, dtype=getattr(torch, args.dtype)) for _ in "ab")
    much = torch.zeros(n * 2 ** 17 if args.device == "cuda" else n * 2 ** 16, dtype=torch.uint8,
                       device=args.device)
    there = torch.zeros_like(much)
    product, copy = timed(lambda: [a @ b for _ in range(5)], args), timed(
        lambda: there.copy_(much), args)
    return {"operations": 5 * 2 * n ** 3 / statistics.median(product["seconds"]),
            "bytes": 2 * len(much) / statistics.median(copy["seconds"]), "seconds": [0.0]}


def sample_ours(args):
    model = load(args)
    dice = torch.Generator(model.device)
    return timed(lambda: opct.sample(model, prompts(args), args.answers, args.new_tokens, 1.0, {-1},
                                     dice), args)


def sample_generate(args):
    model, new = load(args), args.new_tokens
    model.generation_config.eos_token_id = None
    ids = torch.tensor([p for p in prompts(args) for _ in range(args.answers)], device=model.device)
    with torch.no_grad():
        return timed(lambda: model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
            temperature=1.0, min_new_tokens=new, max_new_tokens=new, pad_token_id=0), args)


def reading(args, backward=False, lean=False):
    model = load(args)
    opct.add_lora(model, 16, 32)
    if lean:
        fast.recompute_layers(model)
    rows = list(zip(prompts(args), answers(args)))

    def read():
        for prompt, group in rows:
            with torch.set_grad_enabled(backward):
                hidden = opct.read(model, opct.pack([prompt], [group]))
                if backward:
                    hidden.float().square().mean().backward()
    return timed(read, args)


def reading_forward(args):
    return reading(args)


def reading_backward(args):
    return reading(args, True)


def reading_recomputed(args):
    return reading(args, True, True)


def kl(args, chunk):
    model = load(args)
    n = args.kl_tokens
    dice = torch.Generator(model.device).manual_seed(0)
    student, teacher = (torch.randn(n, model.config.hidden_size, device=model.device,
                                    dtype=model.dtype, generator=dice) for _ in range(2))
    student.requires_grad_(True)
    before = peak(args)

    def both(s, t):
        with torch.no_grad():
            t = opct.head(model, t)
        return opct.token_kl(opct.head(model, s), t)

    def step():
        student.grad = None
        loss = opct.in_chunks(both, chunk, student, teacher) if chunk else both(student, teacher)
        loss.mean().backward()
    return {**timed(step, args), "above": peak(args) - before}


def kl_chunked(args):
    return kl(args, 256)


def kl_plain(args):
    return kl(args, 0)


def step_ours(args):
    model, phases = load(args), []
    params = opct.add_lora(model, 16, 32)
    optimizer = torch.optim.Adam(params, lr=1e-4)
    cfg = opct.Config(samples=args.answers, max_new_tokens=args.new_tokens,
                      token_budget=args.token_budget)
    batch, dice = [(p, p[:100] + p[101:]) for p in prompts(args)], torch.Generator(model.device)

    def step():
        loss, metrics = opct.opct_loss(model, batch, cfg, dice)
        with opct.timed(metrics["seconds"], "student", model):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        phases.append(metrics["seconds"])
    took = timed(step, args)
    return {**took, "phases": {name: statistics.median(p[name] for p in phases[2:])
                               for name in phases[0]}}


def step_trl(args):
    """The same work by TRL: full-logits reverse KL, base model as teacher, LoRA on all linear
    layers, gradient checkpointing off on both sides."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    texts, seconds = [tokenizer.decode(p) for p in prompts(args)], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.began)
    with tempfile.TemporaryDirectory() as out:
        config = SDFTConfig(
            output_dir=out, max_steps=args.runs + 1, num_generations=args.answers,
            per_device_train_batch_size=args.prompts * args.answers,
            max_completion_length=args.new_tokens, max_prompt_length=args.prompt_tokens + 8,
            distillation_mode="full_logits", distillation_alpha=1.0, temperature=1.0,
            teacher_model_kind="base", gradient_checkpointing=False, learning_rate=1e-4,
            report_to=[], save_strategy="no", logging_strategy="no", bf16=args.dtype == "bfloat16",
            use_cpu=args.device == "cpu", disable_tqdm=True, dataloader_pin_memory=False,
            generation_kwargs={"min_new_tokens": args.new_tokens})
        model = load(args)
        model.generation_config.eos_token_id = None
        SDFTTrainer(
            model=model, args=config, processing_class=tokenizer, callbacks=[Clock()],
            train_dataset=Dataset.from_list(
                [{"prompt": t, "privileged_context": "x"} for t in texts]),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).train()
    return {"seconds": seconds[1:]}


def peak(args):
    """GB this process has held at most."""
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


# ---- floors, in operations

def work(args):
    """Operations that cannot be left out: of sampling, of one reading forward, of a whole step.
    Every prompt is read once; the head is taken only where a token is predicted."""
    config = memory.SHAPES[args.shape]()
    N = config.num_hidden_layers * sum(i * o for i, o in memory.linears(config))
    tokens = args.prompts * (args.prompt_tokens + args.answers * args.new_tokens)
    head = 2 * config.vocab_size * config.hidden_size * args.prompts * args.answers * (
        args.new_tokens)
    sampling, forward = 2 * N * tokens + head, 2 * N * tokens
    return {"sampling": sampling, "forward": forward, "backward": 2 * forward,
            "step": sampling + (forward + head) + (2 * forward + 2 * head)}


def weight_bytes(args):
    config = memory.SHAPES[args.shape]()
    size = 4 if args.dtype == "float32" else 2
    return size * (config.num_hidden_layers * sum(i * o for i, o in memory.linears(config))
                   + config.vocab_size * config.hidden_size)


# ---- what is compared

def apart(side, args, **other):
    """Run one side in a process of its own -> what it returns, and its peak memory in GB."""
    flags = {**vars(args), **other, "side": side.__name__}
    argv = [f"--{k.replace('_', '-')}={v}" for k, v in flags.items()
            if k not in ("write", "growth_only")]
    done = subprocess.run([sys.executable, __file__, *argv], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side.__name__} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(sides, args):
    """-> for each side its median seconds and its peak memory, over rounds in turn."""
    got = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            got[side].append(apart(side, args))
    return [{**runs[0], "runs": len(runs) * args.runs, "gb": max(r["gb"] for r in runs),
             "s": statistics.median(s for r in runs for s in r["seconds"])}
            for runs in got.values()]


def measure(args, trl):
    """The rows of the table for one dtype."""
    floor, rate = work(args), apart(rates, args)
    generated = args.prompts * args.answers * args.new_tokens
    read = args.prompts * (args.prompt_tokens + args.answers * args.new_tokens)

    def row(part, ours, rival=None, name="", operations=0, seconds=0, tokens=0, **more):
        least = max(operations / rate["operations"], seconds)
        return {"part": part, "dtype": args.dtype, "runs": ours["runs"], "ours_s": ours["s"],
                "ours_gb": ours["gb"], "tokens_per_s": tokens / ours["s"], "rival": name,
                **({"rival_s": rival["s"], "rival_gb": rival["gb"],
                    "times_faster": rival["s"] / ours["s"]} if rival else {}),
                **({"floor_s": least, "share_of_floor": least / ours["s"]} if least else {}),
                **more}
    ours, rival = in_turn([sample_ours, sample_generate], args)
    yield row("sampling", ours, rival, "generate()", floor["sampling"],
              args.new_tokens * weight_bytes(args) / rate["bytes"], generated)
    forward, backward, lean = in_turn([reading_forward, reading_backward, reading_recomputed], args)
    yield row("reading, forward", forward, None, "", floor["forward"], 0, read)
    yield row("reading, forward and backward", backward, None, "", floor["backward"], 0, read)
    yield row("the same, gradient checkpointing", lean, backward, "without it", floor["backward"],
              0, read)
    ours, rival = in_turn([kl_chunked, kl_plain], args)
    yield row(f"head and KL of {args.kl_tokens} tokens", ours, rival, "all at once", 0, 0,
              args.kl_tokens, ours_above_gb=ours["above"], rival_above_gb=rival["above"])
    sides = [step_ours, step_trl] if trl else [step_ours]
    ours, rival = (*in_turn(sides, args), None)[:2]
    yield row("whole step", ours, rival, "TRL SDFTTrainer" if rival else "", floor["step"], 0,
              generated, phases=ours["phases"], reckoned_gb=memory.memory(
                  memory.SHAPES[args.shape](), args.prompts, args.answers, args.prompt_tokens,
                  args.new_tokens, args.token_budget, bytes_each=4 if args.dtype == "float32"
                  else 2)["peak"])


def growth(args):
    """Seconds of a step when one of its numbers is halved and doubled, the others being as usual.
    The rows are long enough for the longest prompt and all its answers."""
    rows, args = {}, argparse.Namespace(**{**vars(args), "token_budget": 1024})
    for name in ("answers", "prompt_tokens", "new_tokens"):
        usual = getattr(args, name)
        rows[name] = {n: statistics.median(apart(step_ours, args, **{name: n})["seconds"])
                      for n in (usual // 2, usual, usual * 2)}
    usual, rows["vocabulary"] = memory.SHAPES[args.shape]().vocab_size, {}
    for times in (0.5, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            make_model(folder, args.shape, times)
            rows["vocabulary"][int(usual * times)] = statistics.median(
                apart(step_ours, args, model=folder)["seconds"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shape", default="SmolLM2-135M", choices=list(memory.SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="", help="float32, bfloat16; empty: both")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=245)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--kl-tokens", type=int, default=1024)
    parser.add_argument("--token-budget", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", default="")
    parser.add_argument("--growth-only", action="store_true",
                        help="measure how the step grows, the rest is in the file of --write")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        got = globals()[args.side](args)
        return print(json.dumps({**got, "gb": peak(args)}))
    try:
        import trl
        found = {"trl": trl.__version__}
    except ImportError:
        found = {}
        print("TRL cannot be imported: the whole step is not compared", file=sys.stderr)
    result = {"workload": vars(args).copy(), "versions": {**report.versions(), **found},
              "hardware": report.hardware(torch.empty(0, device=args.device)), "rows": [],
              "growth": {}}

    def keep():
        if args.write:
            Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    if args.growth_only:
        result = json.loads(Path(args.write).read_text())
    with tempfile.TemporaryDirectory() as args.model:
        make_model(args.model, args.shape)
        for args.dtype in [args.dtype] if args.dtype else ["float32", "bfloat16"]:
            for row in measure(args, bool(found)) if not args.growth_only else ():
                result["rows"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                keep()
        result["growth"] = growth(args)  # in the last dtype
    keep()
    print(tables.bench_of(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
