"""foveate export: artifacts of runs, from the command line to an answer without foveate."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, answer, run
from PIL import Image

import foveate as fv
from foveate.cli.targets import target_of
from foveate.runtime import installed_backends
from foveate.train.data import load_data

README = (ROOT / "README.md").read_text()
needs_onnx = pytest.mark.skipif("onnxruntime" not in installed_backends(), reason="onnxruntime, onnx or onnxscript is not installed")
needs_openvino = pytest.mark.skipif("openvino" not in installed_backends(), reason="openvino is not installed")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo of the test images as a file."""
    path = tmp_path_factory.mktemp("photo") / "shoe.png"
    pixels = load_data("fashion-mnist-subset", "test").batch(range(1)).images[0]
    Image.fromarray(((pixels * 0.353 + 0.286) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(path)
    return path


@needs_onnx
def test_the_readmes_lines_run_where_foveate_cannot_be_imported(tmp_path, photo, capsys):
    """`foveate export` as the README has it, then its Python, in a process in which foveate and torch are blocked."""
    command, snippet = re.search(r"^foveate (export spvit-nano .*?)(?:  #.*)?$", README, re.M)[1], re.search(r"```py\n(.*?)```", README, re.S)[1]
    made = answer(capsys, *command.split(), "--out", tmp_path / "shoes")
    assert made["artifact"] == str(tmp_path / "shoes") and made["parity"]["source"] == "fashion-mnist-subset, validation, 32 images"
    assert made["parity"]["worst"] < 1e-5 and made["parity"]["decisions"]["equal"] and made["provenance"]["run"] == "spvit-nano"
    assert len(snippet.splitlines()) <= 10
    code = f"import sys\nfor name in ('foveate', 'torch', 'timm'): sys.modules[name] = None\n{snippet}"
    (tmp_path / "shoe.png").write_bytes(Path(photo).read_bytes())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    best = answer(capsys, "predict", "spvit-nano", photo)["predictions"][0]["top"][0]["class"]
    assert done.stdout.strip() == best


@needs_openvino
def test_an_exported_run_predicts_as_the_run_does(tmp_path, photo, capsys):
    code, out, err = run(capsys, "export", "foveate_nano_p4", "--to", "openvino", "--images", 4, "--out", tmp_path / "dense")
    assert code == 0 and not err.strip(), err
    assert "openvino fp32" in out and "0.07" in out and "foveate predict" in out
    ours = answer(capsys, "predict", tmp_path / "dense", photo, "--top", 3)
    theirs = answer(capsys, "predict", "foveate_nano_p4", photo, "--top", 3)
    assert (ours["backend"], ours["plan"]) == ("openvino", "dense")
    for one, other in zip(ours["predictions"][0]["top"], theirs["predictions"][0]["top"], strict=True):
        assert one["class"] == other["class"] and abs(one["probability_percent"] - other["probability_percent"]) < 0.01
    code, _, err = run(capsys, "predict", tmp_path / "dense", photo, "--plan", "dense")
    assert code == 2 and "another plan" in err


@needs_openvino
def test_a_run_of_unknown_data_is_compared_on_synthetic_images(tmp_path, capsys):
    fv.save(fv.load(target_of("random-nano").folder), tmp_path / "run")
    made = answer(capsys, "export", tmp_path / "run", "--to", "openvino", "--batch", 2, "--images", 4)
    assert made["artifact"] == str(tmp_path / "run" / "openvino") and made["batch"] == 2
    assert made["parity"]["source"] == "4 synthetic images"


@pytest.mark.parametrize("arguments, word", [
    (["--to", "tensorrt"], "tensorrt"),
    (["--to", "torch", "--precision", "int4"], "int4"),
    (["--to", "torch", "--out", "."], "something else"),
])  # fmt: skip
def test_mistakes_are_answered_in_three_parts(arguments, word, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    code, out, err = run(capsys, "export", "foveate_nano_p4", "--images", 2, *arguments)
    assert code == 2 and word in err and all(part in err for part in ("given:", "allowed:", "do:")) and not out
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_artifact_that_was_damaged_is_no_run(tmp_path, capsys, photo):
    (tmp_path / "artifact.json").write_text(json.dumps({"foveate_artifact": 99, "foveate": "9.9"}))
    code, _, err = run(capsys, "predict", tmp_path, photo)
    assert code == 2 and "written by foveate 9.9" in err
