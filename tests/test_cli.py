"""The command line end to end: every command on tiny things, its JSON, its habits."""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import foveate as fv
from foveate.cli import main
from foveate.cli.app import app

ROOT = Path(__file__).parent.parent
TINY = ["--model-set", "depth=3", "--model-set", "embed_dim=48", "--model-set", "num_heads=2"]
SMALL = ["--data", "digits", "--epochs", "1", "--batch-size", "1024"]
PLAN = "spvit(after=[1,2], keep=[0.6,0.3], select=argmax)"
TOPK = "spvit(after=[1,2], keep=[0.6,0.3])"


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def answer(capsys, *arguments) -> dict:
    """The JSON object of a command that must succeed and print nothing else."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    assert main(["train", "foveate_nano_p4", *TINY, *SMALL, "--set", "precision=32-true", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pruned(base) -> Path:
    folder = base.parent / "pruned"
    command = ["adapt", str(base), "--plan", PLAN, "--epochs", "1", "--batch-size", "1024", "--set", "precision=32-true", "--out", str(folder)]
    assert main(command) == 0
    # Selectors that hardly learned keep everything; make their choices differ from image to image.
    model = fv.load(folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.spvit.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
    fv.save(model, folder, json.loads((folder / "preprocessing.json").read_text()), [str(digit) for digit in range(10)])
    return folder


def test_knowing_commands_load_no_torch():
    script = """
import json, sys
from foveate.cli import main
codes = [main(["--help"])]
light = [name for name in ("torch", "timm", "lightning", "numpy", "matplotlib", "sklearn") if name in sys.modules]
commands = ["--version", "models", "models nano --json", "methods", "methods spvit --json", "train --help", "bench -h",
            "count deit_small_patch16_224 --plan spvit-deit-small", "count swin_tiny_patch4_window7_224 --json", "count nothing --plan x",
            "train foveate_nano_p4 --recipe none --out x", "report nowhere"]
codes += [main(command.split()) for command in commands]
heavy = [name for name in ("torch", "timm", "lightning") if name in sys.modules]
print("\\n" + json.dumps([codes, light, heavy]))
"""
    done = python("-c", script)
    codes, light, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * 10 + [2] * 3, done.stderr
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


def test_train_leaves_a_run(base, capsys):
    record = json.loads((base / "run.json").read_text())
    assert record["steps"] == record["of_steps"] == 1
    assert record["test"]["n"] == 360
    assert record["command"].startswith("foveate train foveate_nano_p4 --model-set depth=3")
    assert fv.load(base).card.depth == 3


def test_pause_and_resume(capsys, tmp_path):
    command = ["train", "foveate_nano_p4", *TINY, "--data", "digits", "--batch-size", 1024, "--epochs", 2, "--out", tmp_path / "run"]
    paused = answer(capsys, *command, "--steps", 1)
    assert (paused["steps"], paused["of_steps"]) == (1, 2)
    assert "accuracy_percent" not in paused
    assert run(capsys, *command)[0] == 2
    done = answer(capsys, *command, "--resume")
    assert done["steps"] == 2
    assert 0 <= done["accuracy_percent"] <= 100
    assert answer(capsys, *command, "--resume") == done


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


def test_adapt_leaves_a_tested_run_with_its_trace(pruned, base):
    names = {"plan.json", "backbone.json", "preprocessing.json", "model.safetensors", "recipe.json", "run.json", "metrics.jsonl", "trace.json"}
    assert names <= {path.name for path in pruned.iterdir()}
    record = json.loads((pruned / "run.json").read_text())
    trace = fv.Trace.from_json((pruned / "trace.json").read_text())
    assert trace.images == record["test"]["n"] == 360
    assert record["test"]["tokens_mean"] == pytest.approx(trace.tokens_mean)
    assert fv.Plan.parse(str(pruned)) == fv.Plan.parse(PLAN)
    metrics = [json.loads(line) for line in (pruned / "metrics.jsonl").read_text().splitlines()]
    assert {"kl", "distillation", "spvit_ratio", "validation_accuracy_percent"} <= set(metrics[-1])


def test_eval_agrees_with_the_library(pruned, capsys):
    from foveate.train.data import load_data
    from foveate.train.preprocessing import Preprocessing

    found = answer(capsys, "eval", pruned, "--trace", "--limit", 100)
    model = fv.load(pruned)
    images = load_data("digits", "test", preprocessing=Preprocessing.from_json((pruned / "preprocessing.json").read_text())).batch(range(100))
    with torch.no_grad():
        logits, trace = model.traced(images.images)
    assert found["accuracy_percent"] == pytest.approx(100 * float((logits.argmax(1) == images.labels).float().mean()))
    assert found["tokens_mean"] == pytest.approx(trace.tokens_mean)
    assert len(set(trace.tokens[0])) > 1  # otherwise the trace would have nothing to say
    assert found["macs"] == pytest.approx(fv.count(model, trace=trace).macs)
    assert found["images"] == 100
    assert json.loads((pruned / "trace.json").read_text())["images"] == 100
    counted = answer(capsys, "count", pruned, "--trace", pruned)
    assert counted["macs"] == pytest.approx(found["macs"])
    assert "mean over 100 images" in counted["label"]


def test_a_run_takes_another_plan_with_its_weights(pruned, base, capsys):
    topk = answer(capsys, "eval", pruned, "--plan", TOPK, "--limit", 50)
    assert topk["tokens_mean"] == [1 + 29 + 1, 1 + 15 + 2]
    code, _, err = run(capsys, "eval", base, "--plan", TOPK, "--limit", 50)
    assert code == 0
    assert "untrained" in err


def test_bench_compares_with_the_dense_model(pruned, capsys, tmp_path):
    found = answer(capsys, "bench", pruned, "--plan", TOPK, "--backend", "torch", "--batch", 1, 2, "--repetitions", 3, "--warmup", 1, "--out", tmp_path)
    assert [row["batch"] for row in found["results"]] == [1, 2]
    for row in (found, *found["results"]):
        assert (row["backend"], row["precision"], row["baseline"]) == ("torch", "fp32", "dense")
        assert row["latency_ms"] > 0
        assert row["images_per_s"] == pytest.approx(1000 / row["latency_ms"])
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["verdict"] in ("helps", "no gain here")
    (tmp_path / "report.html").unlink()
    assert answer(capsys, "report", tmp_path)["report"] == str(tmp_path / "report.html")
    assert "dense" in (tmp_path / "report.html").read_text()


def test_bench_of_a_backbone_without_weights(capsys, monkeypatch):
    monkeypatch.setattr("foveate.cli.timing.TIMED_IMAGES", 2)
    found = answer(capsys, "bench", "vit_tiny_patch16_224", "--backend", "torch", "--batch", 1, "--repetitions", 1, "--warmup", 0)
    assert found["verdict"] == "baseline"
    assert found["plan"] == "dense"
    assert found["speedup"] == 1


def pictures(folder: Path) -> dict[str, Path]:
    """One 28x28 picture in many forms, all of which show the same; and some of other sizes."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8))
    forms = {"grey": grey, "rgb": grey.convert("RGB"), "rgba": grey.convert("RGBA"), "palette": grey.convert("P"), "la": grey.convert("LA")}
    forms["grey16"] = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    paths = {}
    for name, picture in forms.items():
        paths[name] = folder / f"{name}.png"
        picture.save(paths[name])
    for name, size in (("wide", (90, 30)), ("dot", (1, 1))):
        paths[name] = folder / f"{name}.jpg"
        grey.resize(size).save(paths[name])
    return paths


def test_predict_any_picture(pruned, capsys, tmp_path):
    paths = pictures(tmp_path)
    found = answer(capsys, "predict", pruned, *paths.values(), "--top", 3)["predictions"]
    by = {Path(one["image"]).stem: one for one in found}
    for name in ("rgb", "rgba", "palette", "la", "grey16"):
        assert [one["class"] for one in by[name]["top"]] == [one["class"] for one in by["grey"]["top"]], name
        chances = [[one["probability_percent"] for one in by[form]["top"]] for form in (name, "grey")]
        assert chances[0] == pytest.approx(chances[1], abs=1e-3), name
        assert by[name]["tokens"] == by["grey"]["tokens"]
    model, settings = fv.load(pruned), json.loads((pruned / "preprocessing.json").read_text())
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.asarray(Image.open(paths["rgb"])).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        chances, classes = model((pixels - mean) / std).softmax(-1)[0].topk(3)
    assert [one["index"] for one in by["grey"]["top"]] == classes.tolist()
    assert [one["probability_percent"] for one in by["grey"]["top"]] == pytest.approx((100 * chances).tolist(), abs=1e-3)
    assert by["dot"]["top"][0]["class"] in {str(digit) for digit in range(10)}
    assert "grey.png" in run(capsys, "predict", pruned, paths["grey"])[1]


def test_predict_with_weights_from_a_file(base, capsys, tmp_path):
    """Another head than timm's default is read off the checkpoint."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("foveate_nano_p4", num_classes=4)
    fv.save(model, tmp_path / "four")
    paths = pictures(tmp_path)
    found = answer(capsys, "predict", "foveate_nano_p4", paths["rgb"], "--weights", tmp_path / "four" / "model.safetensors", "--top", 9)
    assert {one["class"] for one in found["predictions"][0]["top"]} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("what", ["tokens", "heads", "cls-cka"])
def test_inspect(what, pruned, capsys, tmp_path):
    found = answer(capsys, "inspect", what, pruned, "--count", 4, "--out", tmp_path)
    page = Path(found["report"])
    assert page == tmp_path / "report.html"
    assert "foveate inspect" in page.read_text()


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
