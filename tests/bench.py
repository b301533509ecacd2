"""How fast, and in how much memory: sampling beside transformers' generate(), one training
step beside TRL's SDFTTrainer, and what reading costs, all measured in one run.

    python tests/bench.py                                    on this machine's processor
    python tests/bench.py --write data/results/bench.json    the same, kept
    python tests/bench.py --device cuda --shape Qwen3-8B --dtype bfloat16       on a GPU

Random weights in a real model's shape; every answer has its full length. TRL is timed where
it can be imported (pip install trl peft); it is no requirement of this project. Each side
runs in processes of its own, in turn: its peak memory is its own, and noise hits all sides.
"""
import argparse
import json
import os
import platform
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

SHAPES = {  # as published in the models' config.json
    "SmolLM2-135M": lambda: transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True, head_dim=64),
    "Qwen3-8B": lambda: transformers.Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40960, tie_word_embeddings=False)}

# ---- the workload

def make_model(folder, shape, device):
    """Random weights, the embedded tokenizer, and no end token: no answer ends early."""
    config = SHAPES[shape]()
    config.update({"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0})
    torch.manual_seed(0)
    with torch.device(device):  # 8 billion random numbers take a processor minutes
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(opct.DATA / "tiny").save_pretrained(folder)

def load(args):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)).to(args.device)
    return model.eval().requires_grad_(False)

def random_tokens(args, seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(300, 4000, shape, generator=generator).tolist()

def prompts(args):
    return random_tokens(args, 0, args.prompts, args.prompt_tokens)

def timed(run, args):
    """Seconds of each run after one that warms up."""
    wait, seconds = torch.cuda.synchronize if args.device == "cuda" else int, []
    for _ in range(args.runs + 1):
        wait()
        began = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]

# ---- the sides: each in a process of its own -> seconds of its runs

def sample_ours(args):
    model = load(args)
    rng = torch.Generator(model.device)
    return timed(lambda: opct.sample(model, prompts(args), args.answers, args.new_tokens,
                                     1.0, {-1}, rng), args)

def sample_generate(args):
    model, new = load(args), args.new_tokens
    ids = torch.tensor([p for p in prompts(args) for _ in range(args.answers)],
                       device=args.device)  # (B*K, P)
    with torch.no_grad():
        return timed(lambda: model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
            temperature=1.0, min_new_tokens=new, max_new_tokens=new, pad_token_id=0), args)

def read_forward(args, backward=False):
    model = load(args)
    opct.add_lora(model, 16, 32)
    answers = random_tokens(args, 1, args.prompts, args.answers, args.new_tokens)

    def read():
        for prompt, group in zip(prompts(args), answers):
            with torch.set_grad_enabled(backward):
                logits = opct.read(model, opct.pack([prompt], [group]))
                if backward:
                    logits.float().square().mean().backward()
    return timed(read, args)

def read_backward(args):
    return read_forward(args, backward=True)

def step_ours(args):
    """The loop of opct.train(), without its files."""
    model = load(args)
    params = opct.add_lora(model, 16, 32)
    optimizer, rng = torch.optim.Adam(params, lr=1e-4), torch.Generator(model.device)
    batch = [(p, p[:100] + p[101:]) for p in prompts(args)]  # wrapped, clean

    def step():
        answers = opct.sample(model, [wrapped for wrapped, _ in batch], args.answers,
                              args.new_tokens, 1.0, {-1}, rng)
        tokens = sum(len(y) for group in answers for y in group)
        for wrapped, clean, ys in opct.micro_batches(batch, answers, args.token_budget):
            with opct.teacher(model), torch.no_grad():
                t = opct.read(model, opct.pack(clean, ys))
            s = opct.read(model, opct.pack(wrapped, ys))
            (opct.token_kl(s, t).sum() / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return timed(step, args)

def step_trl(args):
    """The same by TRL: reverse KL over the whole vocabulary, the base model as teacher,
    LoRA on all linear layers."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    tokenizer, seconds = transformers.AutoTokenizer.from_pretrained(args.model), []
    texts = tokenizer.batch_decode(prompts(args))
    rows = [{"prompt": text, "privileged_context": "x"} for text in texts]

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
            report_to=[], save_strategy="no", logging_strategy="no",
            bf16=args.dtype == "bfloat16", use_cpu=args.device == "cpu", disable_tqdm=True,
            dataloader_pin_memory=False,
            generation_kwargs={"min_new_tokens": args.new_tokens})
        SDFTTrainer(
            model=load(args), args=config, processing_class=tokenizer, callbacks=[Clock()],
            train_dataset=Dataset.from_list(rows), peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear")).train()
    return seconds[1:]

def peak(args):
    """GB (1e9 bytes) that this process has held at most."""
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

# ---- what is compared

def apart(side, args):
    """Run one side in a process of its own -> {"seconds": [...], "gb": peak}."""
    flags = {**vars(args), "side": side.__name__, "write": ""}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    done = subprocess.run([sys.executable, __file__, *argv], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side.__name__} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])

def row(part, tokens, args, ours, rival=None, name=""):
    """Measure one row of the table: median seconds and peak memory over rounds in turn."""
    got = {side: [] for side in (ours, rival) if side}
    for _ in range(args.rounds):
        for side in got:
            got[side].append(apart(side, args))
    s = {side: statistics.median(x for r in runs for x in r["seconds"])
         for side, runs in got.items()}
    gb = {side: max(r["gb"] for r in runs) for side, runs in got.items()}
    out = {"part": part, "dtype": args.dtype, "runs": args.rounds * args.runs,
           "ours_s": s[ours], "ours_gb": gb[ours], "tokens_per_s": tokens / s[ours],
           "rival": name}
    return out if not rival else {**out, "rival_s": s[rival], "rival_gb": gb[rival],
                                  "times_faster": s[rival] / s[ours]}

def measure(args, trl):
    """The rows of the table for one dtype."""
    generated = args.prompts * args.answers * args.new_tokens
    read = generated + args.prompts * args.prompt_tokens
    yield row("sampling", generated, args, sample_ours, sample_generate, "generate()")
    yield row("reading, forward", read, args, read_forward)
    yield row("reading, forward and backward", read, args, read_backward)
    rival = (step_trl, "TRL SDFTTrainer") if trl else ()
    yield row("one training step", generated, args, step_ours, *rival)

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shape", default="SmolLM2-135M", choices=list(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="", help="float32, bfloat16; empty: both")
    for name, default in dict(prompts=2, prompt_tokens=245, answers=8, new_tokens=32,
                              token_budget=512, runs=3, rounds=2).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--write", default="")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return print(json.dumps({"seconds": globals()[args.side](args), "gb": peak(args)}))
    found, file = {}, Path(args.write)
    kept = json.loads(file.read_text()) if file.is_file() else {}  # of other devices
    try:
        import trl
        found = {"trl": trl.__version__}
    except ImportError:
        print("TRL cannot be imported: the step is not compared", file=sys.stderr)
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    workload = {k: v for k, v in vars(args).items() if k not in ("write", "side", "model")}
    hardware = {"cpu": platform.machine(), "gpu": gpu, "threads": torch.get_num_threads()}
    result = {"workload": workload, "versions": {**opct.VERSIONS, **found},
              "hardware": hardware, "rows": []}
    with tempfile.TemporaryDirectory() as args.model:
        make_model(args.model, args.shape, args.device)
        for args.dtype in [args.dtype] if args.dtype else ["float32", "bfloat16"]:
            for line in measure(args, bool(found)):
                result["rows"].append(line)
                print(json.dumps(line), flush=True)
                if args.write:
                    kept[args.device] = result
                    file.write_text(json.dumps(kept, indent=1) + "\n")

if __name__ == "__main__":
    main()
