"""foveate paths: the best path of every effort on a tiny run, its files, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command import answer, run

import foveate as fv
import foveate.backbones  # noqa: F401  registers foveate_nano_p4
from foveate.cli import main
from foveate.methods.pivot.paths import best_paths, path_score
from foveate.redundancy import cka_matrix, sampled
from foveate.report import load_results
from foveate.train.data import load_data
from foveate.train.preprocessing import Preprocessing

DATA = ("--data", "digits", "--images", "24")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A dense run with 5 blocks, 16x16 pixels and 10 classes."""
    torch.manual_seed(0)
    model = timm.create_model("foveate_nano_p4", img_size=16, depth=5, embed_dim=48, num_heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return fv.save(model, tmp_path_factory.mktemp("runs") / "base")


@pytest.fixture(scope="module")
def found(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("paths")
    assert main(["paths", str(base), *DATA, "--efforts", "2-5", "--out", str(out), "--json"]) == 0
    return out


def test_the_matrix_is_that_of_the_library_and_the_paths_are_its_best(base, capsys):
    told = answer(capsys, "paths", base, *DATA, "--batch-size", 7)
    assert (told["images"], told["features"], told["residual"], told["estimator"], told["split"]) == (24, "tokens", "before", "exact", "train")
    model = fv.load(base)
    as_run = Preprocessing.from_json((base / "preprocessing.json").read_text())
    data = load_data("digits", "train", preprocessing=as_run)
    expected = cka_matrix(model, data.batch(sampled(len(data), 24)).images)
    matrix = np.array([[np.nan if value is None else value for value in row] for row in told["cka"]])
    np.testing.assert_allclose(matrix, expected, atol=1e-5, equal_nan=True)
    assert [one["effort"] for one in told["efforts"]] == [3, 2, 1], "a quarter to three quarters of 5"
    best = best_paths(matrix)
    for one in told["efforts"]:
        assert tuple(one["skip"]) == best[one["effort"]].skip and one["score"] == pytest.approx(path_score(matrix, one["skip"]))
        assert fv.Plan.parse(one["plan"]).methods == (fv.PIVOT(skip=one["skip"]),)
        assert one["macs"] == fv.count(model, one["plan"]).macs


def test_the_design_space_is_told(base, capsys):
    space = answer(capsys, "paths", base, *DATA, "--efforts", "2,3,4")["design_space"]
    assert space["paths"] == {"2": 10, "3": 10, "4": 5} and space["pivot"] == 3
    assert space["pairs"] == [{"low": 2, "high": 3, "paths": 100}, {"low": 2, "high": 4, "paths": 50}, {"low": 3, "high": 4, "paths": 50}]
    assert space["random"] == 200 and space["ratio"] == pytest.approx(200 / 3)


def test_people_see_the_picture_and_the_plans(base, capsys):
    code, text, err = run(capsys, "paths", base, *DATA, "--efforts", "2-4")
    assert code == 0, err
    lines = [line.split() for line in text.splitlines()]
    drawn = {line[1]: line[2:7] for line in lines if line[:1] == ["effort"] and line[1:2] and line[1].isdigit()}
    assert {effort: squares.count("■") for effort, squares in drawn.items()} == {"4": 4, "3": 3, "2": 2}
    plans = {line[0]: line[1] for line in lines if len(line) > 1 and line[1].startswith("pivot(skip=[")}
    for effort, plan in plans.items():
        skip = fv.Plan.parse(plan).methods[0].skip
        assert [i + 1 for i, square in enumerate(drawn[effort]) if square == "□"] == list(skip)
    assert "3 pairs of efforts" in text and "200" in text


def test_the_files_are_plans_a_matrix_and_a_page(found, base, capsys):
    plans = {path.stem: fv.Plan.parse(str(path)) for path in found.glob("plan-*.json")}
    assert set(plans) == {f"plan-effort-{n}" for n in (2, 3, 4, 5)} and plans["plan-effort-5"] == fv.Plan([fv.PIVOT(skip=())])
    assert all(len(plans[f"plan-effort-{n}"].methods[0].skip) == 5 - n for n in (2, 3, 4))
    kept = json.loads((found / "cka.json").read_text())
    assert kept["cka"][0][0] is None and 0 < kept["cka"][0][1] <= 1 and kept["images"] == 24 and kept["seed"] == 0
    page = (found / "report.html").read_text()
    assert "CKA of MLPs and later attentions" in page and "24 images of digits, train" in page and "src=\"http" not in page
    results = load_results(found)
    assert results.made.command.startswith("foveate paths") and results.matrices[0].values.shape == (5, 5)
    assert "GMACs" in run(capsys, "count", base, "--plan", found / "plan-effort-3.json")[1]


@pytest.mark.parametrize("options", [("--features", "mean"), ("--residual", "after"), ("--estimator", "minibatch", "--batch-size", "8"), ("--seed", "3")])
def test_options_change_what_is_compared(options, base, found, capsys):
    told = answer(capsys, "paths", base, *DATA, *options)
    kept = json.loads((found / "cka.json").read_text())["cka"]
    assert [value is None for row in told["cka"] for value in row] == [value is None for row in kept for value in row]
    assert told["cka"] != kept
    assert told[options[0].removeprefix("--")] == (int(options[1]) if options[0] == "--seed" else options[1])


def test_a_run_that_skips_attentions_is_no_base(base, capsys, tmp_path):
    skipping = fv.save(fv.adapt(fv.restore(fv.load(base)), fv.Plan([fv.PIVOT(skip=(2,))])), tmp_path / "low")
    code, out, err = run(capsys, "paths", skipping, *DATA)
    assert (code, out) == (2, "") and "block 2" in err and "dense run" in err
    code, out, err = run(capsys, "eval", skipping, "--data", "digits", "--plan", "dense")
    assert (code, out) == (2, "") and "not saved" in err
    told = answer(capsys, "bench", skipping, "--backend", "torch", "--batch", 1, "--repetitions", 2, "--warmup", 0)
    assert told["baseline"] == "dense", "time does not depend on the weights"


@pytest.mark.parametrize("arguments, word", [
    (("--efforts", "0-3"), "from 1 to 5"), (("--efforts", "3-9"), "from 1 to 5"), (("--efforts", "5-3"), "--efforts 5-3"), (("--efforts", "many"), "many"),
    (("--efforts", "1-2-3"), "1-2-3"), (("--features", "cls"), "features='cls'"), (("--residual", "no"), "residual='no'"),
    (("--estimator", "fast"), "estimator='fast'"), (("--images", "2"), "--images"), (("--split", "all"), "all")])
def test_what_makes_no_paths_is_refused(arguments, word, base, capsys):
    code, out, err = run(capsys, "paths", base, *DATA, *arguments)
    assert (code, out) == (2, "") and word in err


def test_inspect_draws_the_matrix(base, capsys, tmp_path):
    told = answer(capsys, "inspect", "cka", base, "--data", "digits", "--count", 16, "--out", tmp_path)
    assert told["images"] == 16 and len(told["cka"]) == 5 and (tmp_path / "report.html").is_file()
