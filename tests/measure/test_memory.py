"""measure.memory: what a call holds at its highest, and nothing that came before."""

import pytest
import timm
import torch

import foveate as fv
from foveate.measure import memory
from foveate.measure.memory import peak_mib

known = pytest.mark.skipif(memory._reset() is None, reason="this system does not say what a process held at its highest")
MIB = 2**18  # float32 entries


@known
def test_the_highest_point_counts_and_not_the_end():
    def up_and_down():
        first = torch.ones(24 * MIB)
        del first
        return torch.ones(9 * MIB)

    assert peak_mib(up_and_down) == pytest.approx(24, abs=3)
    assert peak_mib(lambda: torch.ones(24 * MIB) + torch.ones(1)) == pytest.approx(48, abs=3)


@known
def test_what_was_held_before_does_not_count():
    held = torch.ones(20 * MIB)
    assert peak_mib(lambda: held.sum()) < 3
    del held
    torch.ones(40 * MIB).sum()
    assert peak_mib(lambda: torch.ones(10 * MIB)) == pytest.approx(10, abs=3)


def test_a_system_that_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "missing")
    ran = []
    assert peak_mib(lambda: ran.append(1)) is None and ran


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_memory_of_a_gpu():
    assert peak_mib(lambda: torch.ones(24 * MIB, device="cuda"), "cuda") == pytest.approx(24, abs=1)


@known
@pytest.mark.parametrize("select", ["topk", "argmax"])
def test_packed_inference_holds_no_more_than_dense_inference(select):
    base = timm.create_model("vit_tiny_patch16_224", depth=4).eval()
    torch.manual_seed(0)
    images, peaks = torch.randn(8, 3, 224, 224), []
    for plan in (fv.Plan(), fv.Plan([fv.SPViT(after=(1, 2, 3), keep=(0.95, 0.6, 0.3), select=select)])):
        model = fv.adapt(base, plan).eval()
        with torch.inference_mode():
            model(images)
            peaks.append(peak_mib(lambda: model(images)))
    assert 5 < peaks[1] < 1.05 * peaks[0] + 0.5
