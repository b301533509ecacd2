"""Sections 1, 9 and 10: what cannot be right is refused in one line, with exit code 2."""
import io
import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch as st
import torch
from conftest import ROOT
from tokenizers.processors import TemplateProcessing

import opct
import train_sft

SHORT = ("--category capitals --eval-questions 4 --prompts 2 --samples 2 "
         "--max-new-tokens 6").split()
COMMAND = [sys.executable, str(ROOT / "opct.py"), *SHORT]

def error_of(argv, capsys):
    """Run it: it has to fail in one line. -> that line"""
    assert opct.main([*argv]) == 2
    err = capsys.readouterr().err.split("\n")[:-1]
    assert [line.startswith("error: ") for line in err] == [False] * (len(err) - 1) + [True]
    assert all(line.isprintable() for line in err)
    return err[-1]

@pytest.mark.parametrize("argv, words", [(argv, argv.split()[0]) for argv in [
    "--lerning-rate 1", "--step 3", "extra", "--steps many", "--steps -1", "--lr", "--lr 0",
    "--lr nan", "--prompts 0", "--samples 0", "--grad-clip 0", "--seed -1",
    "--seed 18446744073709551616", "--task cooking", "--kl exact", "--device moon",
    "--target-temperature 1"]] + [
    ("--prompts 900", "394"), ("--category capitals,golf", "'golf'"),
    ("--data missing.jsonl", "missing.jsonl"), ("--resume missing", "--resume missing")])
def test_a_bad_flag_is_named_before_a_model_is_loaded(argv, words, capsys, monkeypatch):
    monkeypatch.setattr(opct, "load_model", None)
    assert words in error_of(argv.split(), capsys)

@pytest.mark.parametrize("settings", [
    {"task": "foo"}, {"kl": "Reverse"}, {"grad_clip": 0.0}, {"lr": -1}, {"lr": "1e-3"},
    {"lr": float("inf")}, {"steps": 1.5}, {"prompts": True}, {"dtype": torch.float32},
    {"data": None}, {"out": ROOT}])
def test_a_notebook_gets_the_same_message(settings):
    with pytest.raises(opct.UserError, match="--" + [*settings][0].replace("_", "-")):
        opct.Config(**settings)

def test_help_names_every_flag_and_flags_reach_the_config(capsys):
    with pytest.raises(SystemExit) as e:
        opct.parse_config(["--help"])
    shown = capsys.readouterr().out.replace("-", "_")
    assert e.value.code == 0 and all(f in shown for f in opct.Config.__dataclass_fields__)
    cfg = opct.parse_config("--lr 2e-5 --kl sampled --task safety --grad-clip 2".split())
    assert (cfg.lr, cfg.kl, cfg.grad_clip, cfg.max_new_tokens) == (2e-5, "sampled", 2, 48)
    assert cfg.out == "out/safety" and train_sft.Config().out == "out/sycophancy-sft"

def altered(folder, changes):
    """A copy of the embedded model. changes: {file: old bytes -> new bytes, or None}"""
    shutil.copytree(ROOT / "data/tiny", folder)
    for file, change in changes.items():
        path = folder / file
        new = change and change(path.read_bytes() if path.exists() else b"")
        path.unlink() if new is None else path.write_bytes(new)
    return str(folder)

def edited(**fields):
    return lambda old: json.dumps(json.loads(old) | fields).encode()

def weights(keep=lambda name: True, prefix=""):
    return lambda old: st.save({prefix + name: w for name, w in st.load(old).items()
                                if keep(name)}, {"format": "pt"})

TEMPLATE, WEIGHTS = "chat_template.jinja", "model.safetensors"
NO_SYSTEM = b"{% set messages = messages | rejectattr('role', 'eq', 'system') | list %}"

@pytest.mark.parametrize("file, change, words", [
    (WEIGHTS, None, ""), (WEIGHTS, lambda old: old[:len(old) // 2], ""),
    (WEIGHTS, weights(prefix="_orig_mod."), "lack 47 weights"),
    (WEIGHTS, weights(keep=lambda name: ".layers.3." not in name), "lack 11 weights"),
    ("config.json", edited(quantization_config={"quant_method": "gptq", "bits": 4}), ""),
    ("tokenizer.json", None, ""), ("config.json", None, ""),
    (TEMPLATE, None, "chat template"), (TEMPLATE, lambda old: NO_SYSTEM + old, "system"),
    (TEMPLATE, lambda _: b"{{ raise_exception('not me') }}", "not me"),
    (TEMPLATE, lambda _: b"{{ messages[0].content + messages[0].name }}", "broken"),
    ("adapter_config.json", lambda _: b"{}", "merge")])
def test_a_model_that_cannot_be_right_is_refused(file, change, words, capsys, tmp_path):
    model = altered(tmp_path / "broken", {file: change})
    line = error_of([*SHORT, "--task", "safety", "--category", "food", "--model", model,
                     "--out", f"{tmp_path}/o"], capsys)
    assert "broken" in line and words in line and not (tmp_path / "o").exists()
    assert "nowhere" in error_of([*SHORT, "--model", f"{tmp_path}/nowhere"], capsys)

def test_the_end_of_turn_is_the_template_s_whatever_the_configs_name(tmp_path):
    other = edited(eos_token="<|endoftext|>", extra_special_tokens=["<|im_end|>"],
                   eos_token_id=0)
    files = ("config.json", "generation_config.json", "tokenizer_config.json")
    folder = altered(tmp_path / "model", dict.fromkeys(files, other))
    model, tokenizer = opct.load_model(opct.Config(model=folder))
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.eos == {0, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # pytorch/pytorch#196678

def pickled(_):
    torch.save(st.load_file(ROOT / "data/tiny" / WEIGHTS), buffer := io.BytesIO())
    return buffer.getvalue()

@pytest.mark.parametrize("changes", [{WEIGHTS: None, "pytorch_model.bin": pickled},
    {"tokenizer.json": edited(truncation={
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0})},
    {"config.json": edited(attention_dropout=0.5)},
    {"tokenizer_config.json": edited(pad_token="!", unk_token="")},
    {TEMPLATE: lambda old: b"{% generation %}{% endgeneration %}" + old},
    {"config.json": edited(auto_map={"AutoModelForCausalLM": "own.Model"}),
     "own.py": lambda _: b"1 / 0"}])
def test_what_stands_in_a_folder_beside_the_model_changes_nothing(changes, tiny, tmp_path):
    model, tokenizer = opct.load_model(opct.Config(model=altered(tmp_path / "m", changes)))
    ids, right = (opct.encode(t, opct.chat("Why! " * 30)) for t in (tokenizer, tiny[1]))
    logits = [m(torch.tensor([right])).logits for m in (model, tiny[0])]
    assert ids == right and torch.equal(*logits)

def test_code_of_a_model_folder_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    folder = altered(tmp_path / "m", {"own.py": lambda _: b"open('ran', 'w')",
        "config.json": edited(model_type="own", auto_map={"AutoConfig": "own.Config"})})
    with pytest.raises(opct.UserError, match="custom code"):
        opct.load_model(opct.Config(model=folder))
    assert not (tmp_path / "ran").exists()

def test_a_clock_in_the_template_stands_still_and_a_prompt_begins_once(tmp_path, tiny):
    clock = {TEMPLATE: lambda old: b"{{ strftime_now('%f') }}" + old}
    tokenizer = opct.load_model(opct.Config(model=altered(tmp_path / "m", clock)))[1]
    assert opct.encode(tokenizer, opct.chat("a")) == opct.encode(tokenizer, opct.chat("a"))
    tokenizer = opct.load_model(opct.Config())[1]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    assert tokenizer("a")["input_ids"][0] == 0
    assert opct.encode(tokenizer, opct.chat("a")) == opct.encode(tiny[1], opct.chat("a"))

def one_more(old):
    tokens = json.loads(old)
    new = dict(tokens["added_tokens"][0], id=5120, content="<|new|>")
    return json.dumps(tokens | {"added_tokens": [*tokens["added_tokens"], new]}).encode()

HONEY = {"wrapped": "I eat honey.", "clean": opct.chat("I eat honey.", system="honey")}

@pytest.mark.parametrize("changes, row, words", [
    ({TEMPLATE: lambda old: b"{% set messages = messages[-1:] %}" + old}, HONEY,
     "what differs"),
    ({TEMPLATE: lambda old: b"<|new|>" + old, "tokenizer.json": one_more}, HONEY,
     "model lacks"),
    ({}, {"clean": "a<|im_end|>\x1b[2J\u202e", "wrapped": "b"}, "control token"),
    ({}, {"clean": "a <|endoftext|>", "wrapped": "b"}, "control token"),
    ({}, {"clean": "word " * 600, "wrapped": "b"}, "context of 512")])
def test_a_prompt_that_is_misread_is_refused(changes, row, words, capsys, tmp_path):
    rows = [row | {"split": "train"}, {"clean": "c", "wrapped": "d", "split": "test"}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = error_of(["--data", f"{tmp_path}/own.jsonl", "--prompts", "1", "--model",
                     altered(tmp_path / "m", changes), "--out", f"{tmp_path}/o"], capsys)
    assert "own.jsonl, line 1" in line and words in line

def test_a_prompt_ends_where_the_answer_begins_and_asks_for_no_thinking(tiny, monkeypatch):
    tokenizer, ask = tiny[1], opct.chat("Why?")
    assert tokenizer.decode(opct.encode(tokenizer, ask)) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0].content }} "
                        "{{ enable_thinking }} {{ thinking }}")
    assert tokenizer.decode(opct.encode(tokenizer, ask)) == "Why? False False"

@pytest.mark.parametrize("name, words", [
    ("results.json", "not empty"), ("log.jsonl", "--resume"), ("", "directory")])
def test_a_folder_that_is_taken_is_not_touched(name, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(opct, "load_model", None)
    (tmp_path / (name or "o")).write_text("mine")
    line = error_of(["--out", str(tmp_path if name else tmp_path / "o")], capsys)
    assert words in line and [p.read_text() for p in tmp_path.iterdir()] == ["mine"]

def test_the_outcome_is_printed_first_also_in_plain_ascii(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = subprocess.run([*COMMAND, "--steps", "2", "--out", "käse"], cwd=tmp_path,
                          capture_output=True, text=True)
    first, *table = done.stdout.splitlines()
    assert all(w in first for w in ("%", "n = 4", "--resume", "--ask"))
    assert {"follow_wrapped", "capability", "drift"} < {line.split()[0] for line in table}
    assert done.returncode == 0 and (tmp_path / "käse/results.json").exists()

@pytest.mark.parametrize("where", ["2>&1 | head -c 300", "2>&-"])
def test_a_reader_that_is_gone_costs_no_step(where, tmp_path):
    text = " ".join([*COMMAND, "--steps", "3", "--save-every", "2", "--out", "o"])
    subprocess.run(f"{text} {where}", cwd=tmp_path, shell=True, check=True)
    assert torch.load(tmp_path / "o/checkpoint.pt")["step"] == 3
    assert (tmp_path / "o/results.json").exists()

@pytest.mark.parametrize("steps, ruined", [("5", True), ("0", False)])
def test_a_run_that_ruins_the_model_says_so(steps, ruined, capsys, tmp_path):
    assert opct.main([*SHORT, "--steps", steps, "--lr", "5", "--eval-questions", "12",
                      "--out", f"{tmp_path}/o"]) == 0
    out, err = capsys.readouterr()
    assert ("capability fell" in out) == ("--max-new-tokens" in out) == ruined
    assert "unseen: 0% alike, KL " in err and "little to t" not in out

def test_a_task_with_nothing_to_teach_says_so(capsys, tmp_path):
    rows = [{"wrapped": "a", "clean": "b", "split": "train", "answer": "c"}] * 2 + [
        {"wrapped": f"{n} + 1?", "clean": f"{n} + 1?", "split": "test"} for n in range(9)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opct.main(["--data", f"{tmp_path}/own.jsonl", "--prompts", "1", "--steps", "0",
                      "--eval-questions", "9", "--out", f"{tmp_path}/o"]) == 0
    out, err = capsys.readouterr()
    assert "1 duplicates, 0 with wrapped = " in err and "answer 2, suggested 0" in err
    assert "100% alike, KL 0.000" in err and "little to teach" in out
