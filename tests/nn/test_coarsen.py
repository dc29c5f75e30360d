"""Transitions between stages with dead slots, against the slot-by-slot version with timm's own layers' weights."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from foveate.backbones.families import anatomy_of
from foveate.nn.coarsen import Coarsening, any_alive, coarsen, stage_behind
from foveate.nn.prune import prune_masked, prune_rows
from foveate.nn.tokens import PACKAGE, PREFIX, dense, with_all_live
from naive import coarsen as naive

PIT = ("pit_ti_distilled_224", dict(img_size=72, base_dims=(4, 4, 4), depth=(1, 1, 1), heads=(1, 2, 2)))
SWIN = ("swin_tiny_patch4_window7_224", dict(img_size=22, patch_size=2, window_size=4, embed_dim=4, depths=(1, 1, 1), num_heads=(1, 2, 2)))


def anatomy(name, arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **arguments).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return anatomy_of(model)


def pit_merge(model):
    pool = model.transformers[1].pool
    weight, bias = pool.conv.weight.detach().numpy(), pool.conv.bias.detach().numpy()
    each = pool.conv.out_channels // pool.conv.in_channels

    def merge(field):
        return np.array([(field[:, :, o // each] * weight[o, 0]).sum() + bias[o] for o in range(len(weight))])
    return merge


def swin_merge(model):
    merging = model.layers[1].downsample
    gain, shift, weight = (t.detach().numpy() for t in (merging.norm.weight, merging.norm.bias, merging.reduction.weight))

    def merge(field):
        four = np.concatenate([field[0, 0], field[1, 0], field[0, 1], field[1, 1]])
        return weight @ ((four - four.mean()) / np.sqrt(four.var() + 1e-5) * gain + shift)
    return merge


@pytest.mark.parametrize("pruned", [0, 1, 2])
@pytest.mark.parametrize("model, merge, kernel, stride, before, after", [
    (PIT, pit_merge, 3, 2, 1, (1, 1)), (SWIN, swin_merge, 2, 2, 0, (1, 1))], ids=["pit", "swin"])
@torch.no_grad()
def test_dead_slots_enter_with_the_package_value(model, merge, kernel, stride, before, after, pruned):
    known = anatomy(*model)
    images = torch.randn(2, 3, *known.card.image_size, generator=torch.Generator().manual_seed(0)).double()
    tokens = known.stem(images)
    dead = with_all_live(tokens)
    rows, image = replace(tokens, place=tokens.places().contiguous()), tokens.image_of_row()
    generator = torch.Generator().manual_seed(1)
    slots = tokens.grid[0] * tokens.grid[1]
    for stage in range(max(pruned, 1)):
        keep = (torch.rand(2, slots, generator=generator) < 0.5).double()
        keep[:, 0] = 1
        if stage == 1:
            keep[0] = 1  # the first image drops nothing here: its second package is not alive
        score = torch.rand(2, slots, generator=generator).double()
        dead = prune_masked(dead, keep, score, pruned > 0)
        image, place = rows.image_of_row(), rows.places().flatten()
        rows = prune_rows(rows, keep[image, place.clamp_min(0)] > 0, score[image, place.clamp_min(0)], pruned > 0)
    masked, packed = known.next_stage(1, dead), known.next_stage(1, rows)
    same = merge(known.model)
    for i in range(2):
        patches, packages, weights = dead.x[i, dead.patches], dead.x[i, dead.patches.stop:], dead.live[i, dead.patches.stop:]
        new, live, grid = naive.coarsen(patches.numpy(), dead.live[i, dead.patches].numpy(), packages.numpy(), weights.numpy(),
                                        tokens.grid, kernel, stride, before, after, same)
        assert masked.grid == packed.grid == grid
        assert np.array_equal(masked.live[i, masked.patches].numpy(), live) and 0 < live.sum()
        assert np.abs(masked.x[i, masked.patches].numpy() - new)[live > 0].max() < 1e-12
        alone = np.array([same(np.broadcast_to(p, (kernel, kernel, len(p)))) for p in packages.numpy()])
        kept = weights.numpy() > 0
        assert not pruned or np.abs(masked.x[i, masked.patches.stop:].numpy() - alone).max() < 1e-12
        mine = packed.image_of_row() == i
        place, x = packed.places().flatten()[mine], packed.x.reshape(-1, packed.x.shape[-1])[mine]
        assert place.tolist() == [PREFIX] * tokens.prefix + np.flatnonzero(live).tolist() + [PACKAGE] * int(kept.sum())
        assert np.abs(x[place >= 0].numpy() - new[live > 0]).max() < 1e-12
        assert not kept.any() or np.abs(x[place == PACKAGE].numpy() - alone[kept]).max() < 1e-12


def test_liveliest_slot_of_a_field_decides():
    live = torch.tensor([[[0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]], requires_grad=True)
    step = Coarsening(None, None, None, kernel=2, stride=2, pad=(0, 0, 0, 1))
    alive = any_alive(live, step)
    assert alive.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    alive[0, 2].backward()
    assert live.grad[0, 2].tolist() == [0.5, 0.5, 0.0, 0.0], "slots that are equally alive share the gradient"


def test_gradients_of_soft_decisions_are_exact():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 4, generator=generator).double()
    step = Coarsening(lambda x: x.unfold(1, 2, 2).unfold(2, 2, 2).flatten(-2).sum(-1) @ kernel.T, lambda x: x @ kernel.T, lambda x: x @ kernel.T,
                      kernel=2, stride=2, pad=(0, 0, 0, 0))
    x = torch.randn(1, 1 + 16 + 2, 4, generator=generator).double().requires_grad_()
    live = torch.cat([torch.ones(1), torch.randperm(16, generator=generator) / 20 + 0.1, torch.ones(2)]).double()[None].requires_grad_()

    def run(x, live):
        tokens = dense(x[:, :17], 1, (4, 4))
        place = torch.cat([tokens.place, tokens.place.new_full((2,), PACKAGE)])
        tokens = coarsen(replace(tokens, x=x, live=live, place=place, packages=2), step)
        return tokens.x, tokens.live

    assert torch.autograd.gradcheck(run, (x, live))


def test_stage_behind():
    assert [stage_behind(block, [2, 2, 1]) for block in range(1, 6)] == [None, 1, None, 2, None]
