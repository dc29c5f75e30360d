"""Random pruning: exact counts, places by seed, and the fair comparison with another method's counts (semantics.md 26)."""

import numpy as np
import pytest
import torch

import foveate as fv
import tiny
from foveate.methods.base import kept_count

STAGES = dict(after=(1, 3), keep=(0.7, 0.4))


def traced(key="deit", images=1, **settings):
    return tiny.adapted(fv.Plan([fv.Random(**STAGES | settings)]), key).traced(tiny.images(key, 4, images))[1]


@pytest.mark.parametrize("key", ["deit", "dinov2-registers", "siglip"])
@pytest.mark.parametrize("package", [True, False])
def test_counts_are_exact_for_every_image(key, package):
    trace, prefix = traced(key, package=package), fv.adapt(tiny.model(key), fv.Plan()).card.prefix_tokens
    counts = [kept_count(k, 16) for k in STAGES["keep"]]
    assert [k.sum(1).tolist() for k in trace.kept] == [[c] * 4 for c in counts]
    assert trace.tokens == [[prefix + c + (s + 1) * package] * 4 for s, c in enumerate(counts)]


def test_evaluation_keeps_the_same_places_for_every_image_and_call():
    one, other = traced(images=1), traced(images=2)
    assert all((k == k[0]).all() for k in one.kept) and one == other
    assert (one.kept[1] <= one.kept[0]).all()


def test_the_seed_chooses_the_places():
    fast = lambda seed: tiny.adapted(fv.Plan([fv.Random(**STAGES, seed=seed)]))
    assert len({fast(seed).traced(tiny.images())[1].kept[1][0].tobytes() for seed in range(6)}) > 3
    assert torch.isfinite(fast(10**30)(tiny.images())).all()


def test_training_draws_new_places_for_every_image_and_step():
    fast, images = tiny.adapted(fv.Plan([fv.Random(**STAGES)])).train(), tiny.images(count=6)
    lives = torch.stack([fast.training_outputs(images).live for _ in range(2)])
    assert (lives.sum(-1) == kept_count(0.4, 16)).all(), "exact counts in training too"
    assert len({row.numpy().tobytes() for row in lives.flatten(0, 1)}) > 6


def test_every_place_is_drawn_equally_often_in_training():
    fast, images = tiny.adapted(fv.Plan([fv.Random(after=1, keep=0.5)])).train(), torch.zeros(400, 3, 32, 32)
    with torch.no_grad():
        rate = fast.training_outputs(images).live.mean(0)
    assert (rate - 0.5).abs().max() < 0.12


def test_dropped_patches_weigh_the_same_in_their_package():
    """Eq. 8 with equal weights: the package is their plain mean."""
    fast, images, seen = tiny.adapted(fv.Plan([fv.Random(after=1, keep=0.5)])), tiny.images(), []
    for block in fast.blocks[:2]:
        block.norm1.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        _, trace = fast.traced(images)
        before = fast.blocks[0](seen[0])
    gone = torch.from_numpy(~trace.kept[0])
    for i in range(3):
        torch.testing.assert_close(seen[1][i, -1], before[i, 1:][gone[i]].mean(0), rtol=0, atol=1e-5)


def test_another_methods_counts_can_be_replayed():
    argmax = tiny.adapted(fv.Plan([fv.SPViT(**STAGES, select="argmax")])).traced(tiny.images())[1]
    fast = tiny.adapted(fv.Plan([fv.Random(**STAGES)]))
    _, ran = fast.traced(tiny.images(), decisions=argmax.shuffled(0))
    assert ran.tokens == argmax.tokens and len(set(map(tuple, np.array(ran.tokens).T))) > 1


def test_there_is_nothing_to_learn():
    fast = tiny.adapted(fv.Plan([fv.Random(**STAGES)]))
    assert list(fast.method_parameters()) == [] and list(fast.state_dict()) == list(tiny.model().state_dict())
    assert fast.training_outputs(tiny.images()).terms == {}
