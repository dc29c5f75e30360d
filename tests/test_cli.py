"""The command line's habits: help, JSON, exit codes, no torch where none is needed."""

import json
import shlex
import subprocess
import sys
import tomllib

import pytest
import torch
import typer
from command import ROOT, answer, python, run

import foveate as fv
from foveate.cli.app import app


def test_knowing_commands_load_no_torch():
    script = """
import json, sys
from foveate.cli import main
codes = [main(["--help"])]
light = [name for name in ("torch", "timm", "lightning", "numpy", "matplotlib", "sklearn") if name in sys.modules]
commands = ["--version", "models", "models nano --json", "methods", "methods spvit --json", "train --help", "bench -h",
            "count deit_small_patch16_224 --plan spvit-deit-small", "count swin_tiny_patch4_window7_224 --json", "count spvit-nano --json", "count nothing --plan x",
            "train foveate_nano_p4 --recipe none --out x", "report nowhere"]
codes += [main(command.split()) for command in commands]
heavy = [name for name in ("torch", "timm", "lightning") if name in sys.modules]
print("\\n" + json.dumps([codes, light, heavy]))
"""
    done = python("-c", script)
    codes, light, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * 11 + [2] * 3, done.stderr
    assert not light
    assert not heavy


def test_module_and_entry_point_are_the_same():
    assert python("-m", "foveate", "--version").stdout == f"foveate {fv.__version__}\n"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["foveate"] == "foveate.cli:main"
    assert python("-m", "foveate", "count").returncode == 2


def test_a_reader_who_has_gone_is_no_error():
    with subprocess.Popen([sys.executable, "-m", "foveate", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def commands() -> dict:
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("name", commands())
def test_help_needs_no_manual(name):
    command = commands()[name]
    assert len(command.help.split()) > 4
    assert all(option.help for option in command.params), name
    examples = [line.split(": ", 1)[-1].replace("\\[", "[") for line in command.epilog.split("\n\n")]
    for line in examples:
        program, word, *rest = shlex.split(line)
        assert (program, word) == ("foveate", name)
        command.make_context(word, rest, resilient_parsing=False).close()


def test_commands_of_the_contract_are_there():
    assert {"models", "methods", "count", "train", "adapt", "eval", "inspect", "bench", "predict", "report", "demo"} <= set(commands())


def test_help_names_what_exists():
    from foveate.insight import WHAT
    from foveate.train.data import _IN_MEMORY, SPLITS
    from foveate.train.recipe import RECIPES

    helps = {name: " ".join(str(option.help) for option in command.params) for name, command in commands().items()}
    for name in ("train", "adapt"):
        assert all(recipe in helps[name] for recipe in RECIPES)
        assert all(data in helps[name] for data in _IN_MEMORY)
    assert all(split in helps["eval"] for split in SPLITS)
    assert all(what in helps["inspect"] for what in WHAT)


def test_models(capsys):
    found = answer(capsys, "models", "deit_small_patch16")["models"]
    assert [model["model"] for model in found] == ["deit_small_patch16_224"]
    assert found[0]["macs"] == pytest.approx(4.5989e9, rel=1e-4)
    assert found[0]["tokens"] == 197
    assert "deit_small_patch16_224" in run(capsys, "models")[1]


def test_methods_explain_every_setting(capsys):
    found = {method["method"]: method for method in answer(capsys, "methods")["methods"]}
    assert set(found) >= {"spvit", "random", "structure"}
    for method in found.values():
        assert all(setting["meaning"] for setting in method["settings"]), method["method"]
    assert [s["setting"] for s in found["spvit"]["settings"]][:3] == ["after", "keep", "select"]
    assert found["spvit"]["settings"][2]["default"] == "topk"
    assert "spvit-deit-small" in run(capsys, "methods", "spvit")[1]


def test_count(capsys):
    plan = "spvit(after=[3,6,9],keep=[0.637,0.406,0.259])"
    found = answer(capsys, "count", "deit_small_patch16_224", "--plan", plan)
    assert found["macs"] == pytest.approx(2.65e9, rel=0.01)
    assert found["params"] == pytest.approx(22.138e6, rel=1e-4)
    assert found["macs_dense"] == pytest.approx(4.5989e9, rel=1e-4)
    blocks = answer(capsys, "count", "deit_small_patch16_224", "--plan", plan, "--include", "blocks")
    assert 0 < found["macs"] - blocks["macs"] < 0.1e9
    text = run(capsys, "count", "deit_small_patch16_224", "--plan", plan)[1]
    assert "qkv" in text
    assert "% of the dense" in text


def test_count_of_a_data_dependent_plan_says_what_it_is(capsys):
    plan = "spvit(after=[3,6,9],keep=[0.637,0.406,0.259],select=argmax)"
    bound = answer(capsys, "count", "deit_small_patch16_224", "--plan", plan)
    assert bound["label"] == "dense upper bound"
    assert "--trace" in run(capsys, "count", "deit_small_patch16_224", "--plan", plan)[2]
    tokens = answer(capsys, "count", "deit_small_patch16_224", "--plan", plan, "--tokens", "127,82,54")
    assert tokens["macs"] == pytest.approx(2.65e9, rel=0.02)


def test_train_makes_the_base_that_a_script_would(capsys, monkeypatch, tmp_path):
    """`foveate train` with a recipe's name is timm.create_model after manual_seed, and fit with that recipe."""
    import timm

    from foveate.train.recipe import RECIPES

    seen = {}
    monkeypatch.setattr("foveate.train.base.fit", lambda model, out, sets, recipe, **options: seen.update(model=model, recipe=recipe, **options))
    code, *_ = run(capsys, "train", "foveate_nano_p4", "--data", "fashion-mnist-subset", "--recipe", "base-nano", "--epochs", 12, "--split",
                   "train+validation", "--out", tmp_path / "run")  # fmt: skip
    assert code == 0
    torch.manual_seed(0)
    expected = timm.create_model("foveate_nano_p4").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in seen["model"].state_dict().items())
    assert seen["recipe"] == RECIPES["base-nano"].but(epochs=12, split="train+validation")
    assert seen["command"].startswith("foveate train foveate_nano_p4 --data fashion-mnist-subset")


def test_interruption_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise SystemExit(1)  # what Lightning does on Ctrl-C

    monkeypatch.setattr("foveate.train.base.train_base", stopped)
    code, out, err = run(capsys, "train", "foveate_nano_p4", "--out", tmp_path / "run")
    assert (code, out) == (130, "")
    assert "--resume" in err


def test_a_bug_shows_its_traceback(capsys, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("a wheel came off")

    monkeypatch.setattr("foveate.train.base.train_base", broken)
    code, out, err = run(capsys, "train", "foveate_nano_p4", "--out", tmp_path / "run")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert "a wheel came off" in err
    assert "foveate train foveate_nano_p4" in err


def test_demo_is_wired(capsys, monkeypatch, tmp_path):
    from foveate.report import Results, Row

    def demo(out, quick, console):
        console.print("a table")
        return Results("demo", rows=(Row("dense", 1e9, 10),))

    monkeypatch.setattr("foveate.demo.run_demo", demo)
    found = answer(capsys, "demo", "--quick", "--out", tmp_path)
    assert found["report"] == str(tmp_path / "report.html")
    assert found["rows"][0]["plan"] == "dense"


def test_chatter_of_other_libraries_stays_out(capsys, monkeypatch):
    import logging
    import warnings

    def noisy(*_, **__):
        print("printed by a library")
        warnings.warn_explicit("a foreign warning", UserWarning, "/elsewhere/lib.py", 1)
        warnings.warn_explicit("two images were left out", UserWarning, str(ROOT / "foveate" / "train" / "images.py"), 1)
        logging.getLogger("timm").warning("a log line")
        return ()

    monkeypatch.setattr("foveate.embedded.embedded_runs", noisy)
    code, out, err = run(capsys, "models", "nano", "--json")
    assert code == 0
    assert json.loads(out)["runs"] == []
    assert "foreign" not in err
    assert "log line" not in err
    assert "note: two images were left out" in err
    assert logging.root.manager.disable == 0
