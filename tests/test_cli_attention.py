"""profile attention and bench attention: what they print and write. No time is judged."""

import json

import pytest
import torch
import typer
from command import answer, run

from foveate.card import stored_card
from foveate.cli.app import app
from foveate.cli.attention_models import Dense, race_models
from foveate.cli.attention_tables import kernel_results, model_results
from foveate.measure.clock import Timing
from foveate.measure.race import Race, Setting, against_best
from foveate.report import load_results, render

FAST = ["--repetitions", 3, "--warmup", 0]


@pytest.fixture(autouse=True)
def threads():
    """Commands set the number of threads for the whole process."""
    yield
    torch.set_num_threads(1)


def test_profile_attention(capsys, tmp_path):
    found = answer(capsys, "profile", "attention", "foveate_nano", "--precision", "bf16", "--threads", 1, "--batch", 2, "--out", tmp_path, *FAST)
    assert (found["model"], found["batch"], found["precision"], found["threads"], found["repetitions"]) == ("foveate_nano", 2, "bf16", 1, 3)
    assert [one["step"] for one in found["taylor"]] == ["k_hat", "g", "sums", "t_d", "t_n", "z"]
    assert [one["step"] for one in found["mha"]] == ["qkv", "map", "score"] and [one["step"] for one in found["around"]] == ["proj", "mlp"]
    for part in ("taylor", "softmax", "mha"):
        assert sum(one["percent"] for one in found[part]) == pytest.approx(100)
        assert all(one["latency_ms_low"] <= one["latency_ms"] <= one["latency_ms_high"] for one in found[part])
    assert found["taylor_latency_ms"] == pytest.approx(sum(one["latency_ms"] for one in found["taylor"]))
    results = load_results(tmp_path)
    assert results.figures == json.loads(json.dumps(found)) and len(results.bars) == 2
    text = run(capsys, "profile", "attention", "foveate_nano", *FAST)[1]
    assert "3: sums" in text and "Table II" in text and "TX2" not in text
    assert "14.03" not in text, "the paper's column is of another machine"


def test_bench_attention(capsys, tmp_path):
    sizes = ["--tokens", 20, 10, "--precision", "fp32", "bf16", "--heads", 2, "--dim", 8]
    found = answer(capsys, "bench", "attention", *sizes, "--eager", "--out", tmp_path, *FAST)
    assert [(row["precision"], row["tokens"]) for row in found["results"]] == [("fp32", 10), ("fp32", 20), ("bf16", 10), ("bf16", 20)]
    for row in found["results"]:
        assert set(row["versions"]) == {"taylor eager", "fused eager", "explicit eager", "chunked eager"}
        softmax = {name: one["latency_ms"] for name, one in row["versions"].items() if name != "taylor eager"}
        assert row["baseline"] == min(softmax, key=softmax.get) and row["baseline_latency_ms"] == softmax[row["baseline"]]
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"] and row["verdict"] in ("helps", "no gain here")
    assert set(found["crossover_tokens"]) == {"fp32", "bf16"}
    page = (tmp_path / "report.html").read_text()
    assert "Crossover in bf16" in page and "foveate bench attention --tokens 20 10" in page and "<svg" in page


def test_bench_attention_of_whole_models(capsys):
    found = answer(capsys, "bench", "attention", "--model", "foveate_nano_p4", "--image-size", 16, 32, *FAST)
    assert [(row["image_size"], row["tokens"], row["precision"]) for row in found["results"]] == [([16, 16], 17, "bf16"), ([32, 32], 65, "bf16")]
    assert set(found["results"][0]["versions"]) == {"taylor eager", "fused eager", "explicit eager", "chunked eager"}
    assert found["plan"] == "vitality()"


def test_dense_versions_are_the_dense_model():
    import timm
    import tiny

    import foveate as fv

    for key in ("deit", "dinov3", "levit"):
        dense, images = fv.adapt(tiny.model(key, torch.float64), fv.Plan()), tiny.images(key, dtype=torch.float64)
        with torch.no_grad():
            for version in ("fused", "explicit", "chunked") if key != "levit" else ("explicit",):
                torch.testing.assert_close(Dense(dense, version)(images), dense(images))
    many = fv.adapt(timm.create_model("vit_tiny_patch16_224", img_size=68, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=3).eval(), fv.Plan())
    with torch.no_grad():  # 290 tokens: more than one chunk
        torch.testing.assert_close(Dense(many, "chunked")(images := torch.randn(2, 3, 68, 68)), many(images))


def test_a_family_with_score_biases_has_one_dense_version(monkeypatch):
    import tiny

    monkeypatch.setattr("foveate.cli.attention_models.create_base", lambda name, classes, **settings: tiny.model("levit"))
    card, timings, left_out = race_models("levit_128s", None, "fp32", repetitions=2, warmup=0)
    assert list(timings) == ["explicit eager", "taylor eager"] and card.family == "levit" and not left_out


def timings(taylor, **softmax):
    times = {"taylor eager": taylor} | {f"{name} eager": ms for name, ms in softmax.items()}
    return against_best({name: Timing(name, 1, (ms, ms * 1.02, ms * 0.98), "?", (1.0,) * 3) for name, ms in times.items()}, 1)


def test_the_report_names_the_baseline_of_every_row_and_the_crossover():
    races = [Race(Setting(197), timings(2.0, fused=5.0, explicit=4.0), {}),
             Race(Setting(1025), timings(4.0, fused=60.0, explicit=80.0), {"chunked compiled": "no g++"})]  # fmt: skip
    results = kernel_results(races, {"fp32": 91, "bf16": None}, {"batch": 1, "threads": 1, "device": "cpu", "heads": 6, "dim": 64})
    assert results.sentence == "Taylor attention over the best softmax attention: 2 times as fast at 197 tokens and 15 times as fast at 1,025 tokens in fp32."
    assert [row[:7] for row in results.tables[0].rows] == [
        ("fp32", "197", "explicit eager", "4", "2", "2", "2 to 2"), ("fp32", "1,025", "fused eager", "60", "4", "15", "15 to 15"),
    ]  # fmt: skip
    assert results.tables[1].rows[1] == ("fp32", "1,025", "4", "60", "80") and "1 thread." in results.tables[1].caption
    assert any("from about 91 tokens" in note for note in results.notes) and any("does not help at the longest" in note for note in results.notes)
    assert any("chunked compiled was left out at 1,025 tokens in fp32: no g++" in note for note in results.notes)
    assert results.figures["crossover_tokens"] == {"fp32": 91, "bf16": None}
    assert list(results.charts[0].lines[0].y) == pytest.approx([2, 15])
    assert "explicit eager" in render(results)
    alone = kernel_results(races[:1], {"fp32": 91}, {"batch": 1, "threads": 2, "device": "cpu", "heads": 6, "dim": 64})
    assert alone.sentence.endswith(": 2 times as fast at 197 tokens in fp32.")


def test_the_report_of_whole_models():
    rows = [("bf16", stored_card("deit_small_patch16_224"), timings(20.0, fused=30.0, explicit=24.0), {})]
    results = model_results(rows, {"model": "deit_small_patch16_224", "batch": 1, "threads": 2, "device": "cpu"})
    assert results.tables[0].rows == (("bf16", "224x224", "197", "explicit eager", "24", "20", "1.2", "1.2 to 1.2", "helps"),)
    assert results.tables[1].rows == (("bf16", "224x224", "197", "20", "30", "24"),)
    assert results.sentence == "The plan vitality() over the best dense version: 1.2 times as fast at 224 px in bf16."


def test_bench_still_takes_models_and_its_help_names_the_other_command(capsys):
    assert "foveate bench attention --help" in " ".join(run(capsys, "bench", "--help")[1].replace("│", " ").split())
    text = run(capsys, "bench", "attention", "-h")[1]
    assert "Usage: foveate bench attention" in text and "--image-size" in text
    command = typer.main.get_command(app).commands["bench"]
    with command.make_context("bench", ["attention", "--precision", "fp32", "bf16", "--tokens", "5", "7"]) as context:
        assert context.info_name == "bench attention" and all(option.help for option in context.command.params)
        assert context.params["precision"] == ["fp32", "bf16"] and context.params["tokens"] == [5, 7]
    with command.make_context("bench", ["./attention", "--batch", "2", "3"]) as context:
        assert context.params["model_or_run"] == "./attention" and context.params["batch"] == [2, 3]


@pytest.mark.parametrize(
    ("arguments", "given", "do"),
    [
        (["profile", "tokens"], "profile tokens", "choose"),
        (["profile", "attention", "deit_smal_patch16_224"], "deit_smal_patch16_224", "deit_small"),
        (["profile", "attention", "foveate_nano", "--precision", "int8"], "int8", "choose"),
        (["bench", "attention", "--precision", "fp32", "fp8"], "fp8", "choose"),
        (["bench", "attention", "--tokens", "0"], "tokens", "--help"),
        (["bench", "attention", "--image-size", "224"], "--image-size", "--model"),
        (["bench", "attention", "--model", "swin_tiny_patch4_window7_224"], "vitality", "MobileViT"),
        (["bench", "attention", "--model", "deit_tiny_patch16_224", "--image-size", "225"], "225", "img_size"),
        (["bench", "attention", "--model", "mobilevit_xxs", "--image-size", "192"], "192", "--image-size"),
        (["bench", "attention", "foveate_nano"], "extra argument", "--help"),
    ],
)
def test_bad_input(capsys, arguments, given, do):
    code, out, err = run(capsys, *arguments, *FAST)
    assert code == 2 and out == "", err
    parts = {line.partition(":")[0]: line.partition(":")[2] for line in err.splitlines()}
    assert given in parts["given"] and do in parts["do"], err
