"""Behind the last block: pooling over live tokens in every form, against timm's own pooling of the survivors."""

from dataclasses import replace

import pytest
import torch
from timm.layers import AttentionPoolLatent

import foveate as fv
import tiny
from foveate.backbones.anatomy import pooling_weights, weighted_mean
from foveate.backbones.pooling import latent_pool
from foveate.nn.tokens import PACKAGE, PREFIX, dense, from_rows, with_all_live, prefix_rows

D = torch.float64


def pool(**arguments) -> AttentionPoolLatent:
    return tiny.randomised(AttentionPoolLatent(24, num_heads=3, **arguments)).eval().double()


@pytest.mark.parametrize("arguments", [{}, dict(qk_norm=True), dict(latent_len=2), dict(latent_len=2, pool_type="avg")])
def test_map_pooling_over_weights_is_timms_over_survivors(arguments):
    module, x = pool(**arguments), torch.randn(2, 7, 24, dtype=D)
    torch.testing.assert_close(latent_pool(module, x, torch.ones(2, 7)), module(x))
    kept = [0, 2, 3, 6]
    weights = torch.zeros(2, 7).index_fill(1, torch.tensor(kept), 1.0)
    torch.testing.assert_close(latent_pool(module, x, weights), module(x[:, kept]))
    twice = torch.ones(2, 7)
    twice[:, 4] = 2
    torch.testing.assert_close(latent_pool(module, x, twice), module(torch.cat([x, x[:, 4:5]], 1)), msg="a weight of 2 is a token twice")


def test_a_weighted_mean_is_summed_in_float32():
    x, weights = torch.randn(2, 4096, 8).bfloat16() + 3, torch.rand(2, 4096)
    mean = weighted_mean(x, weights)
    exact = (x.double() * weights.double()[..., None]).sum(1) / weights.double().sum(1, keepdim=True)
    assert mean.dtype == torch.bfloat16 and (mean.double() - exact).abs().max() < 0.01


@pytest.mark.parametrize("include_prefix", [True, False])
@pytest.mark.parametrize("package_weight", [0.0, 1.0, 2.5])
def test_every_form_pools_alike(include_prefix, package_weight):
    """Two images of 2 prefix tokens: one keeps 3 of 4 patches and has a package, the other all four."""
    x = torch.randn(2, 7, 5, dtype=D)
    place = torch.tensor([PREFIX, PREFIX, 0, 1, 2, 3, PACKAGE])
    live = torch.tensor([[1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]], dtype=D)
    start = replace(dense(x[:, :6], 2, (2, 2)), package_weight=package_weight)
    masked = replace(with_all_live(start), x=x, place=place, live=live, packages=1)
    alive = live.flatten() > 0
    ragged = from_rows(start, x.flatten(0, 1)[alive], torch.arange(2).repeat_interleave(7)[alive], place.repeat(2)[alive])
    kinds = torch.tensor([include_prefix] * 2 + [1.0] * 4 + [package_weight], dtype=D) * live
    expected = (kinds[..., None] * x).sum(1) / kinds.sum(1, keepdim=True)
    for tokens in (masked, ragged):
        torch.testing.assert_close(weighted_mean(*pooling_weights(tokens, include_prefix)), expected)
        torch.testing.assert_close(prefix_rows(tokens), x[:, :2])
    first = live[0] > 0
    uniform = from_rows(replace(start, x=start.x[:1]), x[0][first], torch.zeros(6, dtype=torch.long), place[first])
    torch.testing.assert_close(weighted_mean(*pooling_weights(uniform, include_prefix)), expected[:1])


@pytest.mark.parametrize("key", ["deit", "distilled", "average", "average-all", "siglip", "no-class", "clip"])
@pytest.mark.parametrize("select", ["topk", "argmax"])
def test_the_head_of_kept_tokens_is_timms_own(key, select):
    """Without packages, the head over survivors is timm's forward_head on just those rows."""
    fast = tiny.adapted(fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select=select, package=False)]), key)
    base, seen = tiny.model(key), []
    fast.norm.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    for image in tiny.images(key):
        seen.clear()
        logits = fast(image[None])
        rows = seen[-1]
        if rows.shape[1] <= fast.card.prefix_tokens:  # only the prefix was normed: put the patches' place holders back
            rows = torch.cat([rows, torch.zeros(1, 3, rows.shape[-1])], 1)
        torch.testing.assert_close(logits, base.forward_head(base.norm(rows)), rtol=0, atol=1e-5)
