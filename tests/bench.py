"""How fast, against what: every figure beside its rival or its floor, measured in the same run.

    python tests/bench.py                    sampling against generate(), one step against TRL's
    python tests/bench.py --write FILE.json  the same, kept

The workload is random weights in the shape of SmolLM2-135M on the processor (or --model FOLDER), 2
prompts of 245 tokens, 8 answers each of 32 tokens. TRL is timed when it can be imported; install it
aside (pip install trl peft), it is no requirement of this project. Each side runs in processes of
its own, the sides in turn, so that peak memory is its own and a noisy machine hits both.
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

P, K, R, PROMPTS = 245, 8, 32, 2


def make_model(folder):
    """Random weights in SmolLM2-135M's shape, with the embedded tokenizer and no end token, so that
    every answer has R tokens."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(opct.HERE / "data/tiny").save_pretrained(folder)


def load(folder, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(300, 4000, (P,), generator=generator).tolist() for _ in range(PROMPTS)]


def timed(fn, runs):
    """Seconds of each run after one that warms up."""
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def sample_ours(folder, dtype, runs):
    model = load(folder, dtype)
    return timed(lambda: opct.sample(model, prompts(), K, R, 1.0, {-1}, torch.Generator()), runs)


def sample_generate(folder, dtype, runs):
    model = load(folder, dtype)
    ids = torch.tensor([p for p in prompts() for _ in range(K)])
    with torch.no_grad():
        return timed(lambda: model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
            temperature=1.0, min_new_tokens=R, max_new_tokens=R, pad_token_id=0), runs)


def step_ours(folder, dtype, runs):
    model = load(folder, dtype)
    model.generation_config.eos_token_id = [-1]
    params = opct.add_lora(model, 16, 32)
    optimizer = torch.optim.Adam(params, lr=1e-4)
    cfg = opct.Config(samples=K, max_new_tokens=R)
    batch = [(p, p[:100] + p[101:]) for p in prompts()]

    def step():
        loss, _ = opct.opct_loss(model, batch, cfg, torch.Generator())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return timed(step, runs)


def step_trl(folder, dtype, runs):
    """The same work by TRL: full-logits reverse KL, base model as teacher, LoRA on all linear
    layers, gradient checkpointing off on both sides."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.decode(p) for p in prompts()]
    seconds = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.began)
    with tempfile.TemporaryDirectory() as out:
        args = SDFTConfig(
            output_dir=out, max_steps=runs + 1, per_device_train_batch_size=PROMPTS * K,
            num_generations=K, max_completion_length=R, max_prompt_length=P + 8,
            distillation_mode="full_logits", distillation_alpha=1.0, temperature=1.0,
            teacher_model_kind="base", gradient_checkpointing=False, learning_rate=1e-4,
            report_to=[], save_strategy="no", logging_strategy="no", bf16=dtype == "bfloat16",
            use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
            generation_kwargs={"min_new_tokens": R})
        trainer = SDFTTrainer(
            model=load(folder, dtype), args=args, processing_class=tokenizer, callbacks=[Clock()],
            train_dataset=Dataset.from_list(
                [{"prompt": t, "privileged_context": "x"} for t in texts]),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        trainer.train()
    return seconds[1:]


PARTS = {"sampling": (sample_ours, sample_generate, "generate()"),
         "whole step": (step_ours, step_trl, "TRL SDFTTrainer")}


def apart(fn, folder, dtype, runs):
    """Run one side in a process of its own -> seconds of each run, peak memory in GB."""
    argv = [sys.executable, __file__, "--side", fn.__name__, "--model", folder, "--dtype", dtype,
            "--runs", str(runs)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{fn.__name__} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(part, folder, dtype, runs, rounds):
    ours, rival, name = PARTS[part]
    seconds, memory = {ours: [], rival: []}, {ours: 0, rival: 0}
    for _ in range(rounds):  # in turn
        for side in (ours, rival):
            got = apart(side, folder, dtype, runs)
            seconds[side] += got["seconds"]
            memory[side] = max(memory[side], got["gb"])
    a, b = (statistics.median(seconds[s]) for s in (ours, rival))
    return {"part": part, "dtype": dtype, "rival": name, "runs": len(seconds[ours]),
            "ours_s": round(a, 3), "rival_s": round(b, 3), "times_faster": round(b / a, 2),
            "ours_gb": round(memory[ours], 2), "rival_gb": round(memory[rival], 2),
            "ours_tokens_per_s": round(PROMPTS * K * R / a),
            "rival_tokens_per_s": round(PROMPTS * K * R / b)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", default="")
    args = parser.parse_args()
    if args.side:
        seconds = globals()[args.side](args.model, args.dtype, args.runs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"seconds": seconds, "gb": peak}))
        return
    parts = ["sampling"]
    try:
        import trl
        parts.append("whole step")
        versions = {**opct.report.versions(), "trl": trl.__version__}
    except ImportError:
        versions = opct.report.versions()
        print("TRL cannot be imported: the whole step is not compared", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            make_model(folder)
        model = args.model or folder
        rows = [compare(part, model, dtype, args.runs, args.rounds) for part in parts
                for dtype in ([args.dtype] if args.dtype else ["float32", "bfloat16"])]
        hardware = opct.report.hardware(load(model, "float32"))
    print("\n".join(opct.report.bench_table(rows)))
    name = Path(args.model).name if args.model else "random weights in the shape of SmolLM2-135M"
    workload = {"model": name, "prompts": PROMPTS, "prompt_tokens": P, "answers": K,
                "new_tokens": R}
    result = {"workload": workload, "versions": versions, "hardware": hardware, "rows": rows}
    if args.write:
        Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
