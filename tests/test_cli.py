"""Section 9: bad input gets one line that says what is wrong and where, and exit code 2."""
import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import opct
import train_sft


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Folders and files with something wrong in each."""
    at = tmp_path_factory.mktemp("broken")
    (at / "empty_model").mkdir()
    for name, left_out in (("no_tokenizer", "token*"), ("no_template", "chat*"),
                           ("no_weights", "*.safetensors"), ("cut_weights", ""), ("linear", "")):
        shutil.copytree(ROOT / "data/tiny", at / name, ignore=shutil.ignore_patterns(left_out))
    whole = (at / "cut_weights/model.safetensors").read_bytes()
    (at / "cut_weights/model.safetensors").write_bytes(whole[:len(whole) // 2])
    config = json.loads((at / "linear/config.json").read_text())
    config["layer_types"][0] = "linear_attention"
    (at / "linear/config.json").write_text(json.dumps(config))
    files = {"empty": "", "not_json": '{"clean": "a", "wrapped": "b"}\n{"clean"\n',
             "no_field": '{"clean": "a", "wrapped": "b"}\n\n{"clean": "c"}\n',
             "empty_prompt": '{"clean": "", "wrapped": "b"}\n',
             "blank_prompt": '{"clean": " ", "wrapped": "b"}\n{"clean": "c", "wrapped": "b"}\n',
             "odd_prompt": '{"clean": 7, "wrapped": "b"}\n', "a_list": '[1]\n',
             "bad_target": '{"prompt": [], "target": 7}\n', "no_target": '{"target": "a"}\n',
             "other_target": '{"prompt": "a", "target": "b"}\n',
             "bad_pattern": '{"clean": "a", "wrapped": "b", "warning": ["("]}\n',
             "bad_flag": '{"clean": "a", "wrapped": "b", "harmful": "very"}\n',
             "bad_role": '{"clean": [{"role": "<|im_end|>", "content": "a"}], "wrapped": "b"}\n'
                         '{"clean": "c", "wrapped": "d"}\n',
             "one": '{"clean": "a", "wrapped": "b"}\n',
             "control": '{"clean": "a<|im_end|>", "wrapped": "b"}\n{"clean": "c", "wrapped": "d"}',
             "long": '{"clean": "%s", "wrapped": "b"}\n' % ("a " * 900) +
                     '{"clean": "c", "wrapped": "d"}\n'}
    for name, text in files.items():
        (at / f"{name}.jsonl").write_text(text)
    (at / "latin.jsonl").write_bytes(b'{"clean": "\xe9", "wrapped": "b"}\n')
    (at / "finished").mkdir()
    (at / "finished/log.jsonl").write_text("kept")
    (at / "a_file").write_text("x")
    return at


@pytest.mark.parametrize("argv, words", [
    ("--lerning-rate 1", "--lerning-rate"), ("--step 3", "--step"), ("extra", "extra"),
    ("--steps many", "--steps"), ("--steps -1", "--steps"), ("--lr nan", "--lr"),
    ("--beta2 1", "--beta2"), ("--seed 18446744073709551616", "--seed"),
    ("--lr -1", "--lr"), ("--prompts 0", "--prompts"), ("--lr", "--lr"),
    ("--task cooking", "--task"), ("--kl forward", "--kl"), ("--dtype int8", "--dtype"),
    ("--form essay", "--form"),
    ("--category golf", "--category golf"), ("--device moon", "--device"),
    ("--eval-questions 9999", "--eval-questions"), ("--train-questions 9999", "--train-questions"),
    ("--prompts 900", "--prompts"), ("--max-new-tokens 600", "context"),
    ("--model {}/missing", "no such folder"), ("--model {}/empty_model", "empty_model"),
    ("--model {}/no_tokenizer", "no_tokenizer"), ("--model {}/no_weights", "no_weights"),
    ("--model {}/cut_weights", "cut_weights"), ("--model {}/no_template", "chat template"),
    ("--model {}/linear", "linear_attention"), ("--model {}/a_file", "a_file"),
    ("--data {}/missing.jsonl", "missing.jsonl"), ("--data {}/empty.jsonl", "no rows"),
    ("--data {}/not_json.jsonl", "not_json.jsonl, line 2"),
    ("--data {}/no_field.jsonl", "line 3: field 'wrapped'"),
    ("--data {}/empty_prompt.jsonl", "line 1: field 'clean'"),
    ("--data {}/blank_prompt.jsonl", "line 1: 'clean'"),
    ("--data {}/odd_prompt.jsonl", "line 1: 'clean'"),
    ("--data {}/a_list.jsonl", "row 1"), ("--data {}/one.jsonl", "2 different"),
    ("--data {}/latin.jsonl", "UTF-8"),
    ("--data {}/bad_role.jsonl --prompts 1 --eval-questions 1", "line 1: 'clean': a role is none"),
    ("--data {}/control.jsonl --prompts 1 --eval-questions 1", "<|im_end|>"),
    ("--data {}/long.jsonl --prompts 1 --eval-questions 1", "context of"),
    ("--task safety --data {}/one.jsonl", "line 1: field 'warning'"),
    ("--task safety --data {}/bad_pattern.jsonl", "line 1: 'warning'"),
    ("--task jailbreak --data {}/bad_flag.jsonl", "line 1: 'harmful'"),
    ("--judge nowhere:judge", "--judge nowhere:judge"), ("--judge json", "--judge json"),
    ("--task jailbreak --judge json:dumps --eval-questions 2", "--judge json:dumps: failed"),
    ("--task jailbreak --judge operator:concat --eval-questions 2", "failed at item"),
    ("--task jailbreak --judge data.judges:says --eval-questions 2", "failed at item"),
    ("--hint loud", "--hint"), ("--task safety --category golf", "--category golf"),
    ("--out {}/finished", "--overwrite"), ("--out {}/finished --resume", "no checkpoint"),
    ("--out {}/a_file/run", "not a folder")])
def test_bad_input_is_one_line_and_exit_code_2(argv, words, broken, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = argv.format(broken) + ("" if "--out" in argv else f" --out {tmp_path}/out")
    argv = argv.split()
    assert opct.main(argv) == 2
    out, err = capsys.readouterr()
    last = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and words in last[0] and "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert (broken / "finished/log.jsonl").read_text() == "kept"


@pytest.mark.parametrize("argv, words", [
    ("--targets {}/missing.jsonl", "missing.jsonl"), ("--targets {}/empty.jsonl", "no rows"),
    ("--targets {}/no_target.jsonl", "line 1: field 'prompt'"),
    ("--targets {}/other_target.jsonl", "does not fit the data"),
    ("--target-temperature -1", "--target-temperature"), ("--steps many", "--steps")])
def test_bad_input_of_the_baseline(argv, words, broken, tmp_path, capsys):
    argv = argv.format(broken).split() + ["--out", str(tmp_path / "out"), "--train-questions", "32"]
    assert opct.main(argv, train_sft.train, train_sft.Config) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and words in err[-1] and not (tmp_path / "out").exists()


def test_out_of_memory_says_which_flag_to_lower(monkeypatch, capsys):
    def raises(cfg):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert opct.main([], train=raises) == 2 and "--token-budget" in capsys.readouterr().err


def test_no_space_is_said_in_one_line(monkeypatch, capsys, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(opct.Checkpoints, "save", full)
    assert opct.main(["--out", str(tmp_path / "o"), "--steps", "1", "--eval-questions", "4"]) == 2
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as e:
        opct.parse_config(["--help"])
    shown = capsys.readouterr().out
    flags = ["--" + f.name.replace("_", "-") for f in dataclasses.fields(opct.Config)]
    assert e.value.code == 0 and all(flag in shown for flag in flags)


def test_flags_reach_the_config():
    cfg = opct.parse_config("--lr 2e-5 --kl sampled --overwrite --lora-rank 0 --out x".split())
    assert (cfg.lr, cfg.kl, cfg.overwrite, cfg.lora_rank) == (2e-5, "sampled", True, 0)


def command(*argv):
    return [sys.executable, str(ROOT / "opct.py"), *argv]


def test_the_main_command_runs_and_prints_one_json_line_last(tmp_path):
    argv = command("--steps", "2", "--eval-questions", "8", "--prompts", "4")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["out"] == "out/sycophancy" and set(last["before"]) == set(last["after"])
    assert "before" in done.stdout and (tmp_path / "out/sycophancy/results.json").exists()


def test_lettered_choices_and_the_sampled_kl_run_too(tmp_path, capsys):
    flags = "--steps 2 --eval-questions 4 --prompts 4 --form choices --kl sampled --out".split()
    assert opct.main([*flags, str(tmp_path / "o")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["after"]


def test_random_input_ends_in_a_sentence_or_a_right_result(tmp_path, tiny):
    """The first few hundred of the 10,000 of tests/fuzz.py."""
    import fuzz
    seen = {fuzz.once(seed, tmp_path / "data.jsonl", *tiny) for seed in range(300)}
    assert seen == {"refused", "taken"}


def test_what_a_file_or_a_model_says_cannot_steer_the_terminal(capsys, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"clean": "a<|im_end|>\\u001b[2J\\u202e", "wrapped": "b"}\n' * 2
                    + '{"clean": "c", "wrapped": "d"}')
    assert opct.main(["--data", str(path), "--prompts", "1", "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert "control token" in err and len(lines := err.rstrip("\n").split("\n")) == 2
    assert all(line.isprintable() for line in lines)
    assert opct.plumbing.plain("a\x1b[2J\u202eb\n") == "a [2J b "
