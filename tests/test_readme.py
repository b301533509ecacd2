"""The README names commands, flags and files that exist."""
import re
import shlex

from conftest import ROOT

import opct
import train_sft

README = (ROOT / "README.md").read_text(encoding="utf-8")

def test_every_command_is_understood():
    block = README.split("<!-- commands -->")[1].split("<!-- end -->")[0]
    commands = re.findall(r"python ((?:opct|train_sft)\.py[^\n#&`]*)", block)
    assert any(command.startswith("opct.py") for command in commands)
    for command in commands:
        script, *flags = shlex.split(command)
        config = train_sft.Config if script == "train_sft.py" else opct.Config
        if "--resume" not in flags:  # which needs a run
            opct.parse_config(flags, config)

def test_the_recipe_to_talk_to_the_result_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    opct.main("--category capitals --steps 2 --eval-questions 2 --prompts 2".split())
    recipe = README.split("```python\nimport contextlib")[1].split("```")[0]
    exec("import contextlib" + recipe, {})
    last = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in last] == ["base", "trained"] and "is" in last[0]

def test_it_can_be_read_in_one_sitting_and_the_files_it_names_exist():
    assert len(README.splitlines()) <= 200
    named = re.findall(r"\b(?:data|tests)/[\w./-]*\w", README)
    assert [name for name in named if not (ROOT / name).exists()] == []
