"""The README says what the files and the code say."""
import json
import re
import shlex
import subprocess
import sys

from conftest import ROOT

import opct
import train_sft
from data import glossary

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = README.splitlines()


def test_tables_are_what_the_result_files_give():
    sys.path.insert(0, str(ROOT / "data"))
    import tables
    assert tables.filled(README) == README
    printed = subprocess.run([sys.executable, "data/tables.py"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout
    for table in tables.TABLES.values():
        assert table() in printed and table() in README


def test_result_files_name_no_place_and_hold_what_they_should():
    files = sorted((ROOT / "data/results").glob("*.json"))
    for arm in ("opct", "sft"):
        for task in ("sycophancy", "jailbreak", "safety"):
            assert len([f for f in files if f.name.startswith(f"tiny-{task}-{arm}-")]) >= 3
    for f in files:
        result = json.loads(f.read_text())
        assert {"versions", "hardware"} <= set(result)
        assert not re.search(r'": "/|/home|/tmp', f.read_text()), f


def test_every_command_of_the_readme_is_understood():
    lines = [line.strip() for line in LINES if line.startswith("    python ")]
    commands = [shlex.split(line.split("#")[0])[1:] for line in lines]
    assert len(commands) >= 6
    for script, *flags in commands:
        if script in ("opct.py", "train_sft.py"):
            config = opct.Config if script == "opct.py" else train_sft.Config
            assert opct.parse_config(flags, config).model
        assert (ROOT / script).exists(), script


def test_the_two_commands_do_all_set_up():
    block = README.split("<!-- commands -->")[1].split("<!-- end -->")[0]
    commands = [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]
    assert commands == ["pip install -r requirements.txt && python opct.py",
                        "pip install -r requirements.txt && pytest -q"]


def test_requirements_are_the_five():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert [re.split("[<>=]", line)[0] for line in lines] == [
        "torch", "transformers", "tokenizers", "numpy", "pytest"]
    assert all("<" in line and ">=" in line for line in lines)


def test_the_five_lines_are_those_of_the_docstring():
    core = README.split("```python\n")[1].split("```")[0].splitlines()
    assert len(core) == 5
    for line in core:
        assert line.split("#")[0].strip() in opct.__doc__


def test_the_glossary_names_every_metric_and_logged_figure(tmp_path):
    names, out = set(), tmp_path / "o"
    for file in (ROOT / "data/results").glob("tiny-*-opct-seed0.json"):
        after = json.loads(file.read_text())["after"]
        names |= set(after) | set(after["unseen"]) | set(after["capability"])
    assert {"follow_wrapped", "defended", "warned", "drift", "n"} <= names
    for main in (opct.main, lambda argv: opct.main(argv, train_sft.train, train_sft.Config)):
        assert main(f"--steps 1 --eval-questions 2 --overwrite --out {out}".split()) == 0
        names |= set(json.loads((out / "log.jsonl").read_text().splitlines()[1]))
        after = json.loads((out / "results.json").read_text())["after"]
        names |= set(after) | set(after["unseen"])
    known = {name for names in glossary.METRICS for name in names.split(", ")}
    assert names <= known, names - known


def test_every_flag_has_a_text():
    for config in (opct.Config, train_sft.Config):
        for name, _, _, choices, note in opct.plumbing.flags(config):
            assert note or choices, name


def recipes():
    """-> files {name: text}, commands, Python snippets of the section Recipes."""
    section = README.split("## Recipes")[1].split("\n## ")[0]
    files = re.findall(r"`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)```", section, re.S)
    commands = "".join(re.findall(r"```bash\n(.*?)```", section, re.S)).splitlines()
    return dict(files), commands, re.findall(r"```python\n(from .*?)```", section, re.S)


def test_the_recipes_run(tmp_path, monkeypatch, capsys):
    """As they are written, but for a step, with few questions, and with the embedded model in the
    place of the hub's."""
    files, commands, snippets = recipes()
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert {"pairs.jsonl", "my_judge.py"} == set(files) and len(commands) >= 9
    short = ["--steps", "1", "--max-new-tokens", "4"]
    for command in commands:
        _, script, *argv = shlex.split(command.replace("HuggingFaceTB/SmolLM2-135M-Instruct",
                                                       "data/tiny").replace("Qwen/Qwen3-0.6B",
                                                                            "data/tiny"))
        if argv[0] not in ("--show", "--compare"):
            argv += short + ["--eval-questions", "1" if "--data" in argv else "4"]
            argv += ["--train-questions", "32"] if script == "train_sft.py" else []
        kind = train_sft if script == "train_sft.py" else opct
        assert opct.main(argv, kind.train, kind.Config) == 0, (command, capsys.readouterr().err)
    for snippet in snippets:
        exec(snippet, {})


def test_links_lead_somewhere_and_nothing_is_left_to_fill_in():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        slugs = ["#" + re.sub(r"[^\w ]", "", h).lower().replace(" ", "-")
                 for h in re.findall(r"^#+ (.*)", README, re.M)]
        assert target in slugs or (ROOT / target).exists(), target
    assert not re.search(r"@[A-Z]+@", README + opct.__doc__)
