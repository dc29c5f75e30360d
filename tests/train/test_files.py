import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foveate.errors import FoveateError
from foveate.train.files import (
    environment,
    read_checkpoint,
    read_lines,
    write_atomic,
    write_checkpoint,
    write_json,
    write_weights,
)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_checkpoints_come_back(tmp_path):
    state = {"step": 3, "model": {"w": torch.arange(3.0)}, "sums": {"loss": 1 / 3}}
    write_checkpoint(tmp_path / "inner" / "last.ckpt", state)
    back = read_checkpoint(tmp_path / "inner" / "last.ckpt")
    assert back["step"] == 3 and back["sums"] == state["sums"] and torch.equal(back["model"]["w"], torch.arange(3.0))


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "pickle"])
def test_damaged_checkpoints_are_named(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"step": 3, "model": {"w": torch.arange(300.0)}})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "foreign":
        torch.save({"epoch": 3}, path)
    else:
        torch.save({"format": 1, "step": 1, "model": nn.Linear(1, 1)}, path)
    with pytest.raises(FoveateError) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.given and "delete it" in caught.value.do


def test_weights_are_float32(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3).bfloat16(), nn.BatchNorm1d(3))
    write_weights(tmp_path / "model.safetensors", model)
    state = load_file(tmp_path / "model.safetensors")
    assert state["0.weight"].dtype == torch.float32 and torch.equal(state["0.weight"], model[0].weight.float())
    assert state["1.num_batches_tracked"].dtype == torch.int64


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert read_lines(path) == [{"epoch": 1}, {"epoch": 2}]


def test_environment_names_what_matters():
    found = environment()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    assert found["machine"]["cpu_cores"] >= 1 and json.dumps(found)
