"""foveate sweep: one run a plan or a value, resumed and not repeated, and what it refuses."""

import json

import pytest

import foveate as fv
from command import answer, run
from foveate.cli.sweep import named, varied

TINY = ("--data", "digits", "--epochs", 1, "--batch-size", 256, "--recipe", "vitality-nano")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from foveate.cli import main

    out = tmp_path_factory.mktemp("sweep") / "base"
    size = ("--model-set", "img_size=32", "--model-set", "patch_size=8", "--model-set", "depth=2", "--model-set", "embed_dim=24")
    arguments = ("train", "deit_tiny_patch16_224", "--data", "digits", "--epochs", 1, "--batch-size", 256, *size, "--out", out)
    assert main([str(a) for a in arguments]) == 0
    return out


def test_every_value_gets_a_run_and_finished_runs_are_not_repeated(base, tmp_path, capsys):
    command = ("sweep", base, "--plan", "vitality()", "--vary", "mode=lowrank,sparse", *TINY, "--out", tmp_path / "all")
    found = answer(capsys, *command)
    assert [entry["name"] for entry in found["runs"]] == ["vitality-mode=lowrank", "vitality-mode=sparse"]
    assert [entry["plan"] for entry in found["runs"]] == ["vitality(mode=lowrank)", "vitality(mode=sparse)"]
    assert "vitality_density_block_1" in found["runs"][1]["last_epoch"] and found["base_seconds"] > 0
    assert found["seconds"] == pytest.approx(sum(entry["seconds"] for entry in found["runs"]))
    for entry in found["runs"]:
        assert fv.load(entry["run"]).plan == fv.Plan.parse(entry["plan"])
    assert (tmp_path / "all" / "report.html").is_file()
    code, _, err = run(capsys, *command)
    assert code == 2 and "already holds a run" in err or "--resume" in err
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "all").rglob("model.safetensors")}
    again = answer(capsys, *command, "--resume")
    assert again["runs"] == found["runs"] and before == {p: p.stat().st_mtime_ns for p in before}


def test_plan_files_give_their_names(base, tmp_path, capsys):
    for name, skip in (("effort-1", (1,)), ("effort-2", ())):
        (tmp_path / f"{name}.json").write_text(fv.Plan([fv.PIVOT(skip=skip)]).to_json())
    plans = [part for name in ("effort-1", "effort-2") for part in ("--plan", tmp_path / f"{name}.json")]
    found = answer(capsys, "sweep", base, *plans, *TINY, "--out", tmp_path / "efforts")
    assert [entry["name"] for entry in found["runs"]] == ["effort-1", "effort-2"]
    assert found["runs"][0]["macs"] < found["runs"][1]["macs"]
    assert json.loads((tmp_path / "efforts" / "effort-1" / "plan.json").read_text())["methods"][0]["skip"] == [1]


def test_all_combinations_are_named_after_their_values():
    plans = varied("x", fv.Plan([fv.ViTALiTy(), fv.SPViT(after=2, keep=0.5)]), ["mode=lowrank,lowrank+sparse", "keep=[0.5],[0.25]"])
    assert list(plans) == ["x-mode=lowrank-keep=[0.5]", "x-mode=lowrank-keep=[0.25]", "x-mode=lowrank+sparse-keep=[0.5]", "x-mode=lowrank+sparse-keep=[0.25]"]
    assert plans["x-mode=lowrank+sparse-keep=[0.25]"] == fv.Plan([fv.ViTALiTy(mode="lowrank+sparse"), fv.SPViT(after=2, keep=0.25)])


@pytest.mark.parametrize("vary, words", [("speed=1,2", "threshold"), ("threshold", "KEY=V1"), ("threshold=", "KEY=V1"), ("threshold=2,3", "\\(0, 1\\]")])
def test_wrong_settings_are_refused(vary, words):
    with pytest.raises(fv.FoveateError, match="(?s)given:.*" + words):
        varied("", fv.Plan([fv.ViTALiTy()]), [vary])


def test_inline_plans_of_the_same_methods_are_told_apart():
    plans = {text: fv.Plan.parse(text) for text in ("pivot(skip=[2, 3])", "pivot(skip=[])", "vitality()")}
    assert list(named(plans, [])) == ["pivot-skip=2,3", "pivot-skip=", "vitality"]
    both = {text: plan for text, plan in plans.items() if text != "vitality()"}
    found = named(both, ["entropy_weight=0,1"])
    assert [(name, plan.methods[0].skip) for name, plan in found.items()] == [
        ("pivot-skip=2,3-entropy_weight=0", (2, 3)), ("pivot-skip=2,3-entropy_weight=1", (2, 3)),
        ("pivot-skip=-entropy_weight=0", ()), ("pivot-skip=-entropy_weight=1", ())]  # fmt: skip


def test_two_plans_of_one_name_are_refused(base, tmp_path, capsys):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.json").write_text(fv.Plan([fv.PIVOT(skip=())]).to_json())
    code, _, err = run(capsys, "sweep", base, "--plan", tmp_path / "a" / "one.json", "--plan", tmp_path / "b" / "one.json", "--out", tmp_path / "twice")
    assert code == 2 and "same name" in err
    code, _, err = run(capsys, "sweep", base, "--plan", tmp_path / "a" / "one.json", "--plan", tmp_path / "b" / "one.json",
                       "--vary", "entropy_weight=0,1", "--out", tmp_path / "twice")  # fmt: skip
    assert code == 2 and "same name" in err and not (tmp_path / "twice").exists()


def test_a_finished_run_of_another_plan_is_not_taken_for_this_one(base, tmp_path, capsys):
    command = ("sweep", base, *TINY, "--out", tmp_path / "runs")
    answer(capsys, *command, "--plan", "pivot(skip=[1])")
    code, _, err = run(capsys, *command, "--plan", "pivot(skip=[2])", "--resume")
    assert code == 2 and "which was trained with pivot(skip=[1])" in err
    code, _, err = run(capsys, *command, "--plan", "vitality()", "--plan", "pivot(skip=[1])")
    assert code == 2 and "already holds a run" in err and not (tmp_path / "runs" / "vitality").exists()
