"""Section 8: the loop, and what a run leaves."""
import itertools
import json

import pytest
import safetensors.torch
import torch
from conftest import ROOT

import opct

SHORT = dict(steps=4, prompts=4, samples=2, max_new_tokens=8, eval_questions=8, save_every=2,
             train_questions=8, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a"
    cfg = opct.Config(out=str(out), **SHORT)
    return cfg, out, opct.train(cfg)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_asks_different_questions_and_an_epoch_asks_all():
    cfg = opct.Config(prompts=10)
    pairs = opct.load_pairs(cfg, "train")
    steps = len({p.row["id"] for p in pairs}) // 10
    epoch = list(itertools.islice(opct.batches(pairs, cfg), steps))
    ids = [[pairs[i].row["id"] for i in step] for step in epoch]
    assert all(len(set(step)) == 10 for step in ids)
    assert len({i for step in ids for i in step}) == 10 * steps
    in_file = list(dict.fromkeys(p.row["id"] for p in pairs))
    assert ids[0] != in_file[:10]  # the first epoch is shuffled too
    assert epoch[0] != next(opct.batches(pairs, opct.Config(prompts=10, seed=1)))


def test_a_run_leaves_its_files(run):
    _, out, results = run
    assert {p.name for p in out.iterdir()} == {
        "log.jsonl", "results.json", "answers.jsonl", "answers.html", "adapter_model.safetensors",
        "adapter_config.json", "checkpoint"}
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    for m in (results["before"], results["after"]):
        assert {"unseen", "seen", "control", "capability", "drift"} == set(m)
        assert all(set(v) == {"value", "low", "high", "n"} for v in m["unseen"].values())


def test_every_step_is_logged_with_what_matters(run):
    first, *steps = lines(run[1] / "log.jsonl")
    assert first["config"]["steps"] == 4 and "torch" in first["versions"]
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    for s in steps:
        assert set(s) == {"step", "kl", "tokens", "answer_length", "cut", "follow", "grad_norm",
                          "lr", "tokens_per_second", "seconds"}
        assert set(s["seconds"]) == {"sample", "teacher", "student"} and s["grad_norm"] > 0
        assert s["lr"] == opct.Config.lr


def test_answers_hold_before_and_after_and_the_page_can_carry_no_markup(run):
    answers = lines(run[1] / "answers.jsonl")
    assert len(answers) == 24 and {a["split"] for a in answers} == {"unseen", "seen", "control"}
    assert all("wrapped" in a[when] and "clean_verdict" in a[when]
               for a in answers for when in ("before", "after"))
    page = (run[1] / "answers.html").read_text()
    data = page.split('type="application/json">')[1].split("</script>")[0]
    assert "<" not in data and len(json.loads(data)["answers"]) == 24


def test_adapter_is_in_the_format_of_peft(run):
    _, out, _ = run
    tensors = safetensors.torch.load_file(out / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    assert tensors[name.format("A")].shape[0] == config["r"] == 16
    assert tensors[name.format("B")].abs().max() > 0
    assert config["peft_type"] == "LORA" and "q_proj" in config["target_modules"]


def test_same_seed_same_run_and_another_seed_another(run, tmp_path):
    same = opct.train(opct.Config(out=str(tmp_path / "b"), **SHORT))
    other = opct.train(opct.Config(out=str(tmp_path / "c"), seed=1, **SHORT))
    assert same["after"] == run[2]["after"] and same["before"] == other["before"]
    a, b, c = ((p / "adapter_model.safetensors").read_bytes()
               for p in (run[1], tmp_path / "b", tmp_path / "c"))
    assert a == b != c


def test_resumed_run_ends_where_the_uninterrupted_one_does(run, tmp_path, monkeypatch):
    cfg = opct.Config(out=str(tmp_path / "r"), **SHORT)
    calls, loss = [], opct.opct_loss

    def breaks(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args)
    monkeypatch.setattr(opct, "opct_loss", breaks)
    with pytest.raises(opct.UserError, match="stopped after step 3"):
        opct.train(cfg)
    monkeypatch.setattr(opct, "opct_loss", loss)
    assert len(lines(tmp_path / "r/log.jsonl")) == 4 and not (tmp_path / "r/results.json").exists()
    cfg.resume = True
    assert opct.train(cfg)["after"] == run[2]["after"]
    assert (tmp_path / "r/adapter_model.safetensors").read_bytes() == \
        (run[1] / "adapter_model.safetensors").read_bytes()
    assert [s.get("step") for s in lines(tmp_path / "r/log.jsonl")] == [None, 1, 2, 3, 4]


def test_warm_up_moves_from_the_first_step(tmp_path):
    opct.train(opct.Config(out=str(tmp_path / "w"), **{**SHORT, "warmup": 4, "lr": 0.004}))
    lr = [s["lr"] for s in lines(tmp_path / "w/log.jsonl")[1:]]
    assert lr == pytest.approx([.001, .002, .003, .004])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_adapter(tmp_path, monkeypatch):
    calls, loss = [], opct.opct_loss

    def breaks(*args):
        calls.append(1)
        value, metrics = loss(*args)
        return (value * float("nan") if len(calls) == 3 else value), metrics
    monkeypatch.setattr(opct, "opct_loss", breaks)
    with pytest.raises(opct.UserError, match="step 3: loss nan"):
        opct.train(opct.Config(out=str(tmp_path / "n"), **SHORT))
    tensors = safetensors.torch.load_file(tmp_path / "n/adapter_model.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values())
    assert len(lines(tmp_path / "n/log.jsonl")) == 3


def test_training_all_weights_runs_and_leaves_a_model_folder(tmp_path):
    opct.train(opct.Config(out=str(tmp_path / "full"), **{
        **SHORT, "lora_rank": 0, "lr": 1e-4, "steps": 1}))
    model, _ = opct.load_model(opct.Config(model=str(tmp_path / "full/model")))
    assert model.config.model_type == "qwen3"


def test_own_pairs_train_end_to_end(tmp_path):
    rows = [{"clean": f"What is the capital of {c}?", "wrapped": f"Is {c}'s capital not Oslo?"}
            for c in ("France", "Spain", "Italy", "Greece", "Japan", "Peru")]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    results = opct.train(opct.Config(out=str(tmp_path / "own"), data=str(path), **{
        **SHORT, "eval_questions": 2, "steps": 1, "train_questions": 0}))
    assert set(results["after"]["unseen"]) == {"consistency", "unparsed", "kl"}


def test_nothing_refers_to_a_later_section_before_the_loop():
    """The file reads from top to bottom."""
    import ast
    source = (ROOT / "opct.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    blocks = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    defined = {n.name: n.lineno for n in blocks}
    section = [n for n, line in enumerate(source.splitlines(), 1) if line.startswith("# ----")]

    def of(line):
        return sum(start <= line for start in section)
    assert len(section) == 9
    for node in blocks:
        if of(node.lineno) < 8:
            for name in ast.walk(node):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load) and (
                        name.id in defined):
                    assert of(defined[name.id]) <= of(node.lineno), (node.name, name.id)
