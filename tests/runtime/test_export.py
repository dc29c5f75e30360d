"""export: artifacts that answer as the model does, say so, and are not written or not loaded where anything is wrong."""

import json
from importlib.util import find_spec

import pytest
import tiny
import torch

import foveate as fv
from foveate.calibration import calibrate
from foveate.runtime import artifact, export, graph_files, installed_backends, load_artifact, read_artifact
from foveate.runtime.artifact_engine import in_groups

TOPK = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])
EXITS = fv.Plan([fv.EarlyExit(after=(2, 4))])
PRUNED_EXITS = fv.Plan([fv.SPViT(after=(1,), keep=(0.7,)), fv.EarlyExit(after=(2, 4))])
DENSE = fv.Plan()
needs_openvino = pytest.mark.skipif("openvino" not in installed_backends(), reason="openvino is not installed")
needs_onnx = pytest.mark.skipif("onnxruntime" not in installed_backends(), reason="onnxruntime, onnx or onnxscript is not installed")
KINDS = [pytest.param("onnx", marks=needs_onnx), pytest.param("ort", marks=needs_onnx), pytest.param("openvino", marks=needs_openvino), "torch"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An artifact of a plan in a kind, made once."""
    made = {}

    def artifact_of(plan, kind, **settings):
        key = (plan, kind, *settings.items())
        if key not in made:
            made[key] = export(tiny.adapted(plan).eval(), tmp_path_factory.mktemp("artifact") / "here", kind, images=tiny.images(count=6), **settings)
        return made[key]

    return artifact_of


def refused(word, call, *arguments, **settings):
    with pytest.raises(fv.FoveateError) as caught:
        call(*arguments, **settings)
    assert word in str(caught.value) and caught.value.do, str(caught.value)
    return caught.value


def answers_as(engine, model, counts=(1, 5), **close):
    for count in counts:
        images = tiny.images(count=count, seed=count)
        with torch.no_grad():
            torch.testing.assert_close(engine(images), model(images), **(dict(atol=1e-4, rtol=1e-4) | close))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], "torch"])
def test_an_artifact_answers_as_its_model_and_says_so(kind, shared):
    made = shared(TOPK, kind)
    answers_as(load_artifact(made.folder), tiny.adapted(TOPK).eval())
    data = json.loads((made.folder / "artifact.json").read_text())
    assert data["input"]["shape"] == ["batch", 3, 32, 32] and data["batch"] == "dynamic" and data["plan_digest"] == TOPK.digest()
    assert data["tokens"] == {"fixed": True, "blocks": [17, 13, 13, 9]} and 0 < data["macs"] < data["macs_dense"]
    parity = data["parity"]
    assert parity["images"] == 7 and parity["worst"] < 1e-5 and parity["same_answer_percent"] == 100 and parity["source"] == "synthetic images"
    assert parity["decisions"] == {"equal": True, "stages": [{"after": block, "overlap": 1, "equal_percent": 100} for block in (1, 3)]}
    assert set(data["files"]) == {path.name for path in made.folder.iterdir()} - {"artifact.json", "README.txt"}
    readme = (made.folder / "README.txt").read_text()
    assert len(readme.splitlines()) == 10 and f"model.{graph_files.SUFFIX[kind]}" in readme and "[batch, 3, 32, 32]" in readme


@needs_onnx
def test_the_format_for_phones_answers_as_well_in_8_bits(shared):
    made = shared(DENSE, "ort", precision="int8")
    assert (made.folder / "model.ort").read_bytes()[4:8] == b"ORTM" and "decisions" not in made.data["parity"]
    assert 1e-5 < made.data["parity"]["worst"] < made.data["parity"]["tolerance"] == 0.1
    answers_as(load_artifact(made.folder), tiny.adapted(DENSE).eval(), atol=0.25, rtol=0)


@needs_openvino
def test_per_image_counts_are_exported_at_batch_one_and_run_for_any_number(shared):
    made = shared(ARGMAX, "openvino")
    assert made.data["batch"] == 1 and made.data["input"]["shape"][0] == 1 and not made.data["tokens"]["fixed"]
    assert made.data["parity"]["decisions"]["equal"]
    answers_as(load_artifact(made.folder), tiny.adapted(ARGMAX).eval(), (1, 4))
    refused("batch=4", export, tiny.adapted(ARGMAX), made.folder.parent / "four", "openvino", images=tiny.images(count=4), batch=4)


@needs_openvino
def test_a_fixed_batch_fills_up_its_last_group(shared):
    made = shared(TOPK, "openvino", batch=4)
    assert made.data["input"]["shape"][0] == 4
    answers_as(load_artifact(made.folder), tiny.adapted(TOPK).eval(), (1, 4, 6))


def test_groups_are_filled_and_cut():
    sizes = []
    run = in_groups(lambda images: sizes.append(len(images)) or images.flatten(1), 3)
    for count in (1, 3, 7):
        images = torch.randn(count, 3, 2, 2)
        assert torch.equal(run(images), images.flatten(1))
    assert set(sizes) == {3} and len(sizes) == 5


@pytest.mark.parametrize("kind, plan", [pytest.param("openvino", PRUNED_EXITS, marks=needs_openvino), ("torch", EXITS)])
def test_exits_become_a_graph_a_segment(kind, plan, shared):
    made = shared(plan, kind)
    model, images = tiny.adapted(plan).eval(), tiny.images(count=7, seed=5)
    assert [(graph["block"], graph["inputs"][0]) for graph in made.data["graphs"]] == [(2, "images"), (4, "x")]
    engine = load_artifact(made.folder)
    with torch.no_grad():
        expected, trace = model.traced(images)
        assert set(trace.exits) == {2, 4}, "all images leave at one exit: this test shows nothing"
        torch.testing.assert_close(engine(images), expected, atol=1e-4, rtol=1e-4)
    assert engine.run.ran == [7, trace.exits.count(4)]


@needs_openvino
def test_a_cascade_becomes_a_graph_an_effort(tmp_path):
    images = tiny.images(count=24, seed=5)
    model = calibrate(fv.Cascade([tiny.adapted(TOPK), tiny.adapted(fv.Plan())], fv.Entropy(0.5)), (images, torch.arange(24) % 7), 0.6)
    made = export(model, tmp_path / "two", "openvino", images=images[:6])
    assert [graph["file"] for graph in made.data["graphs"]] == ["effort-1.xml", "effort-2.xml"] and len(made.data["gates"]) == 1
    engine = load_artifact(made.folder)
    with torch.no_grad():
        expected, trace = model.traced(images)
        torch.testing.assert_close(engine(images), expected, atol=1e-4, rtol=1e-3)
    assert engine.run.ran == [24, trace.efforts.count(2)] and 0 < trace.efforts.count(2) < 24
    assert "Efforts, cheapest first" in (made.folder / "README.txt").read_text()


@pytest.mark.parametrize("kind", [KINDS[2], "torch"])
def test_half_precision_is_named_and_held_to_its_own_tolerance(kind, shared):
    made = shared(DENSE, kind, precision="bf16")
    assert made.data["precision"] == "bf16" and 1e-5 < made.data["parity"]["worst"] < 0.1 == made.data["parity"]["tolerance"]
    answers_as(load_artifact(made.folder), tiny.adapted(DENSE).eval(), atol=0.2, rtol=0.1)


@pytest.mark.skipif(find_spec("nncf") is None or find_spec("openvino") is None, reason="nncf or openvino is not installed")
def test_8_bits_are_judged_by_the_accuracy_that_they_cost(tmp_path):
    model, images = tiny.adapted(fv.Plan([fv.SPViT(after=(2,), keep=(0.5,))])).eval(), tiny.images(count=24)
    right = model(images).argmax(1)
    made = export(model, tmp_path / "here", "openvino", "int8", images, answers=right, calibration=tiny.images(count=16, seed=3))
    lost = 100 - made.data["parity"]["same_answer_percent"]
    assert made.data["precision"] == "int8" and 0 <= lost <= 4.01 and abs(made.data["parity"]["lost_percent"] - lost) < 1e-4
    assert 0.8 < made.data["parity"]["decisions"]["stages"][0]["overlap"] <= 1
    answers_as(load_artifact(made.folder), model, atol=0.5, rtol=0)


@needs_openvino
def test_a_timm_model_is_exported_with_its_labels(tmp_path):
    made = export(tiny.model(), tmp_path / "dense", "openvino", labels=list("abcdefg"), provenance={"run": "none"})
    assert made.data["plan"] == "dense" and made.data["labels"] == list("abcdefg") and made.data["provenance"] == {"run": "none"}


# what is not written


@needs_openvino
def test_logits_beyond_the_tolerance_are_refused_and_an_older_artifact_stays(tmp_path, monkeypatch):
    model, folder = tiny.adapted(DENSE).eval(), tmp_path / "here"
    export(model, folder, "openvino")
    before = (folder / "artifact.json").read_text()
    other, real = tiny.adapted(DENSE).eval(), graph_files._converted
    other.head.weight.data.mul_(1.1)
    monkeypatch.setattr(graph_files, "_converted", lambda kind, module, *rest: real(kind, other, *rest))
    error = refused("nothing was written", export, model, folder, "openvino")
    assert "differ by" in error.given and "--tolerance" in error.do
    assert (folder / "artifact.json").read_text() == before and load_artifact(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert export(model, folder, "openvino", tolerance=0.5).data["parity"]["worst"] > 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    model = tiny.adapted(TOPK).eval()
    refused("'tensorrt'", export, model, tmp_path / "a", "tensorrt")
    refused("'int4'", export, model, tmp_path / "a", "torch", "int4")
    refused("'bf16'", export, model, tmp_path / "a", "onnx", "bf16") if "onnxruntime" in installed_backends() else None
    refused("batch=0", export, model, tmp_path / "a", "torch", batch=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    refused("something else", export, model, tmp_path / "full", "torch")
    refused("something else", export, model, tmp_path / "full" / "thesis.txt", "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (tmp_path / "full" / "thesis.txt").exists()
    monkeypatch.setattr("foveate.runtime.openvino_backend.openvino", None)
    assert "foveate[openvino]" in refused("not installed", export, model, tmp_path / "a", "openvino").do


# what is not loaded


@pytest.fixture
def copied(shared, tmp_path):
    """A copy of an artifact, to be damaged, and its artifact.json."""
    made = shared(TOPK, "torch")
    for path in made.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, json.loads((tmp_path / "artifact.json").read_text())


@pytest.mark.parametrize("change, word", [
    (lambda folder, data: (folder / "model.pt2").write_bytes((folder / "model.pt2").read_bytes()[:-9]), "truncated or changed"),
    (lambda folder, data: (folder / "model.pt2").unlink(), "without model.pt2"),
    (lambda folder, data: (folder / "artifact.json").unlink(), "without artifact.json"),
    (lambda folder, data: (folder / "artifact.json").write_text(json.dumps(data)[:-20]), "not JSON"),
    (lambda folder, data: (folder / "artifact.json").write_text("[]"), "'foveate_artifact'"),
    (lambda folder, data: (folder / "artifact.json").write_text(json.dumps(data | {"graphs": 3})), "'graphs'"),
    (lambda folder, data: (folder / "artifact.json").write_text(json.dumps(data | {"kind": "tflite"})), "'kind'"),
    (lambda folder, data: (folder / "artifact.json").write_text(json.dumps(data | {"files": {"../model.pt2": "0"}})), "without ../model.pt2"),
    (lambda folder, data: (folder / "artifact.json").write_text(json.dumps(data | {"foveate_artifact": 2, "foveate": "9.0"})), "written by foveate 9.0"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_damaged_artifact_is_refused(copied, change, word):
    folder, data = copied
    assert read_artifact(folder).data == data
    change(folder, data)
    refused(word, load_artifact, folder)


def test_a_file_that_its_backend_does_not_read_is_named(copied):
    folder, data = copied
    (folder / "model.pt2").write_bytes(b"no graph")
    data["files"]["model.pt2"] = artifact.digest_of(folder / "model.pt2")
    (folder / "artifact.json").write_text(json.dumps(data))
    refused("model.pt2, which torch cannot load", load_artifact, folder)


def test_an_artifact_whose_backend_is_not_installed_names_the_command(copied, monkeypatch):
    folder, data = copied
    monkeypatch.setattr("foveate.runtime.onnx_backend.onnxruntime", None)
    (folder / "artifact.json").write_text(json.dumps(data | {"kind": "onnx"}))
    assert "foveate[onnx]" in refused("not installed", load_artifact, folder).do


def test_images_of_another_size_are_refused(shared):
    engine = load_artifact(shared(TOPK, "torch").folder)
    assert "32x32" in refused("[2, 3, 16, 16]", engine, torch.zeros(2, 3, 16, 16)).do
    refused("[0, 3, 32, 32]", engine, torch.zeros(0, 3, 32, 32))
