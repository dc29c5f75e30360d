"""--slice and --scratch: first weights of a model that is trained from the beginning."""

import pytest
import timm
import torch

import foveate as fv
from foveate.cli.targets import target_of
from foveate.cli.teaching import fresh_model

PLAN = fv.Plan([fv.IRET(threshold=0.0)])


def fresh(name: str, sliced: str | None = None, plan: fv.Plan = PLAN) -> fv.AdaptiveModel:
    return fresh_model(target_of(name), plan, "fashion-mnist-subset", None, 0, None, False, sliced)


def test_slices_of_an_embedded_base_replace_random_weights():
    dense = fv.adapt(timm.create_model("foveate_nano_p4", pretrained=True), fv.Plan())
    sliced, random, again = fresh("iret_nano", "foveate_nano_p4"), fresh("iret_nano"), fresh("iret_nano")
    weight = lambda model: model.blocks[11].mlp.fc1.weight
    assert torch.equal(weight(sliced), weight(dense)) and torch.equal(weight(random), weight(again))
    assert not torch.equal(weight(random), weight(sliced))
    assert torch.equal(sliced.focus[0].embed.weight, random.focus[0].embed.weight), "sub-bands have no counterpart"
    assert sliced.num_classes == 10


@pytest.mark.parametrize("name, sliced, words", [
    ("foveate_nano_p4", "foveate_nano_p4", "VisionTransformer to be started from slices"),
    ("iret_small", "foveate_nano_p4", "dense model of"),
])
def test_what_cannot_be_sliced_is_refused(name, sliced, words):
    with pytest.raises(fv.FoveateError, match=words):
        fresh(name, sliced, fv.Plan() if name != "iret_small" else PLAN)
