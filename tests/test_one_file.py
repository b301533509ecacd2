"""opct.py is one file: it runs alone and in blocks. What README.md says of it is true."""
import ast
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, gen, greedy_alone, prompt_of, read_alone

import opct
import train_sft

README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCE = (ROOT / "opct.py").read_text(encoding="utf-8")
DATA_SCRIPTS = {path.stem for path in ROOT.glob("data/*.py")}

def test_copied_alone_it_trains_a_model_folder_on_pairs(tmp_path):
    shutil.copy(ROOT / "opct.py", tmp_path)
    shutil.copytree(ROOT / "data/tiny", tmp_path / "model")
    pairs = [{"clean": f"What is {n} + 1?", "suggested": "9",
              "wrapped": f"What is {n} + 1? I think it is 9."} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    flags = ("--model model --data pairs.jsonl --steps 2 --prompts 2 --samples 2 "
             "--max-new-tokens 4 --device cpu").split()
    done = subprocess.run([sys.executable, "opct.py", *flags], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0 and "judges.txt is missing" in done.stderr, done.stderr
    out = tmp_path / "out/sycophancy"
    results = json.loads((out / "results.json").read_text())
    assert (out / "adapter_model.safetensors").exists()
    [after] = results["after"].values()
    assert after.keys() == {"consistency", "unparsed", "unparsed_clean", "truncated", "kl"}

def cut(first, beyond):
    """What the sections from `first` up to `beyond` define, with the imports at the top."""
    imports = [node for node in ast.parse(SOURCE).body
               if isinstance(node, (ast.Import, ast.ImportFrom))]
    text = SOURCE[SOURCE.index(f"\n# {first}. "):SOURCE.index(f"\n# {beyond}. ")]
    names = {}
    exec("\n".join([*map(ast.unparse, imports), text]), names)
    return names

def test_section_4_runs_alone(llama):
    prompts = [prompt_of(n, n) for n in (3, 11)]
    got = cut(4, 5)["sample"](llama, prompts, 1, 8, 0.0, {2})
    assert got == [[greedy_alone(llama, p, 8, {2})] for p in prompts]

def test_sections_4_to_6_run_alone(adapted):
    model, _ = adapted
    mine, prompts = cut(4, 7), [prompt_of(9, 1), prompt_of(4, 2)]
    assert "teacher" not in mine and "Config" not in mine
    answers, swapped = mine["sample"](model, prompts, 2, 6, 1.0, {2}, gen()), prompts[::-1]
    s, t = (mine["read"](model, mine["pack"](side, answers)) for side in (prompts, swapped))
    p, q = (read_alone(model, side, answers).log_softmax(-1) for side in (prompts, swapped))
    torch.testing.assert_close(mine["token_kl"](s, t), (p.exp() * (p - q)).sum(-1),
                               atol=1e-4, rtol=1e-4)

def imported(path):
    """The dotted names of all that a file imports, inside its functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)

def test_opct_imports_what_requirements_bring_and_nothing_of_the_repository():
    allowed = {*sys.stdlib_module_names, "numpy", "safetensors", "torch", "transformers"}
    assert not {name.split(".")[0] for name in imported(ROOT / "opct.py")} - allowed
    ours = {"data", *DATA_SCRIPTS}
    ours |= {path.stem for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
    theirs = {name.split(".")[0] for name in imported(ROOT / "train_sft.py")}
    assert ours & theirs == {"opct"}

def test_nothing_imports_a_script_of_data_but_its_own_test():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("tests/*.py")]:
        parts = {part for name in imported(path) for part in name.split(".")}
        assert not DATA_SCRIPTS & parts - {path.stem.removeprefix("test_")}, path.name

@pytest.mark.parametrize("name, most", [("opct.py", 950), ("train_sft.py", 150)])
def test_a_file_is_short_in_lines_columns_and_functions(name, most):
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= most and max(map(len, lines)) <= 92
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []

def test_the_method_ends_by_line_470_a_run_has_at_most_24_settings_and_data_3_scripts():
    method, end, _ = SOURCE.partition("The method ends here")
    assert end and method.count("\n") < 470
    assert len(opct.Config.__dataclass_fields__) <= 24 and len(DATA_SCRIPTS) <= 3

def test_every_command_of_the_readme_is_understood():
    commands = re.findall(r"^    .*python ((?:opct|train_sft)\.py[^\n#&`]*)", README, re.M)
    assert len(commands) >= 3
    for command in commands:
        script, *flags = shlex.split(command)
        config = train_sft.Config if script == "train_sft.py" else opct.Config
        if "--resume" not in flags:  # which needs a run
            opct.parse_config(flags, config)

def test_its_command_to_talk_to_the_result_runs(capsys, monkeypatch):
    opct.main("--category capitals --steps 2 --eval-questions 2 --prompts 2".split())
    state = opct.read_checkpoint("out/sycophancy")
    babbles = {name: p + 1 for name, p in state["adapter"].items()}
    torch.save(state | {"adapter": babbles}, "out/sycophancy/checkpoint.pt")
    assert opct.main(shlex.split(re.search("opct.py (.* --ask .*)", README)[1])) == 0
    *_, base, trained = capsys.readouterr().out.splitlines()
    assert (base, trained[:9]) == ("base     The answer is Athens.", "trained  ")
    assert base[9:] not in trained
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # now it is a terminal
    monkeypatch.setattr(opct, "rules", dict)  # and there is no data/judges.txt
    opct.main(["--resume", "out/sycophancy", "--ask", "Hi."])
    shades = re.findall(r"\033\[30;48;5;(\d+)m", capsys.readouterr().out.splitlines()[-1])
    assert len(shades) > 1 and {*shades} <= {"231", "224", "217", "210", "203"} != {"231"}
    torch.save(state | {"adapter": {"other": torch.ones(1)}}, "out/sycophancy/checkpoint.pt")
    assert opct.main(["--resume", "out/sycophancy", "--ask", "Hi."]) == 2

def test_the_answers_it_begins_with_are_in_the_results():
    said = re.findall(r"^    (?:user|before|after) +(\S.*?)(?:   .*)?$", README, re.M)[:3]
    example = json.dumps(dict(zip(("prompt", "before", "after"), said)), separators=(",", ":"))
    assert any(example in f.read_text("utf-8") for f in ROOT.glob("data/results/cube-*"))

def test_its_rows_of_data_run(tmp_path):
    rows = re.findall("```json\n(.*)\n```", README)
    assert len(rows) == 2 and "system" in rows[1]
    for n, row in enumerate(rows):
        text = "\n".join(json.dumps({**json.loads(row), "group": str(k)}) for k in range(20))
        (tmp_path / f"{n}.jsonl").write_text(text, encoding="utf-8")
        flags = f"--data {n}.jsonl --out o{n} --prompts 1 --steps 1 --max-new-tokens 2"
        assert opct.main(flags.split()) == 0

def test_the_readme_can_be_read_in_one_sitting_and_the_files_it_names_exist():
    assert len(README.splitlines()) <= 200
    named = re.findall(r"\b(?:data|tests)/[\w./-]*\w", README)
    assert [name for name in named if not (ROOT / name).exists()] == []
