"""Decisions, package tokens and the three forms of pruning against float64 loops."""

import pytest
import torch

from foveate.nn.prune import at_least_one, gumbel_keep, package, prune_masked, prune_rows, prune_top_k, top_k
from foveate.nn.tokens import PACKAGE, PREFIX, Tokens, dense, with_all_live
from naive import pruning as naive

D = torch.float64


def chances(*shape: int) -> torch.Tensor:
    """Keep and drop probabilities."""
    return torch.randn(*shape, 2, dtype=D).softmax(-1)


def same_values_and_gradients(ours, theirs, leaves) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for mine, other in zip(*(torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True) for y in (ours, theirs))):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


# decisions


@pytest.mark.parametrize("n", [1, 5, 16])
def test_gumbel_decisions_are_the_naive_ones(n):
    probabilities = chances(3, n).requires_grad_()
    torch.manual_seed(4)
    ours = gumbel_keep(probabilities)
    torch.manual_seed(4)
    noise = -torch.empty(3, n, 2, dtype=D).exponential_().log()
    assert set(ours.unique().tolist()) <= {0.0, 1.0}
    same_values_and_gradients(ours, torch.stack([naive.gumbel_decisions(p, g) for p, g in zip(probabilities, noise)]), [probabilities])


def test_gumbel_decisions_keep_as_often_as_their_probability_says():
    for p in (0.1, 0.5, 0.8):
        kept = gumbel_keep(torch.tensor([p, 1 - p]).expand(20_000, 2)).mean()
        assert abs(kept - p) < 0.015


def test_without_noise_decisions_are_those_of_inference():
    probabilities = torch.tensor([[0.51, 0.49], [0.5, 0.5], [0.2, 0.8]])
    for _ in range(5):
        assert gumbel_keep(probabilities, noise=0.0).tolist() == [1.0, 1.0, 0.0]


def test_gumbel_decisions_survive_certain_probabilities():
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    keep = gumbel_keep(probabilities)
    keep.sum().backward()
    assert keep.tolist() == [1.0, 0.0] and torch.isfinite(probabilities.grad).all()


def test_the_best_live_patch_survives_where_all_would_be_dropped():
    keep = torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=D, requires_grad=True)
    live = torch.tensor([[0.0, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=D)
    score = torch.tensor([[0.9, 0.2, 0.3], [0.9, 0.1, 0.1], [0.9, 0.3, 0.2]], dtype=D)
    kept = at_least_one(keep, live, score)
    assert (kept * live).tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 0]]
    kept.sum().backward()
    assert torch.equal(keep.grad, torch.ones_like(keep)), "the gradient of every decision passes untouched"
    for row in range(3):
        expected = naive.at_least_one(keep[row].detach(), score[row], [bool(a) for a in live[row]])
        assert torch.equal(kept[row].detach() * live[row], expected * live[row])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_takes_the_best_live_patches_in_grid_order(k):
    score, live = torch.rand(4, 9), (torch.rand(4, 9) < 0.8).float()
    live[:, :6] = 1
    index = top_k(score, live, k)
    for b in range(4):
        naive_keep = naive.top_k_decisions(score[b].tolist(), [bool(a) for a in live[b]], k)
        assert index[b].tolist() == [n for n, keep in enumerate(naive_keep) if keep]
    assert torch.equal(top_k(score, None, k), top_k(score, torch.ones_like(score), k))


# package token


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_package_token_is_eq_8(n):
    x, probabilities = torch.randn(3, n, 5, dtype=D, requires_grad=True), chances(3, n).requires_grad_()
    dropped = (torch.rand(3, n) < 0.5).to(D)
    dropped[:, 0] = 1
    ours = package(x, dropped * probabilities[..., 0])
    same_values_and_gradients(ours, torch.stack([naive.package_token(*b) for b in zip(x, probabilities, dropped)]), [x, probabilities])


def test_a_package_of_nothing_is_zero_and_stops_no_gradient():
    x, weight = torch.randn(2, 4, 3, requires_grad=True), torch.zeros(2, 4)
    weight[1, 2] = 1e-6
    weight.requires_grad_()
    token = package(x, weight)
    assert (token[0] == 0).all()
    torch.testing.assert_close(token[1], x[1, 2])
    token.sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(weight.grad).all()


def test_a_package_is_summed_in_float32():
    x, weight = torch.randn(1, 4096, 8).bfloat16() + 3, torch.rand(1, 4096).bfloat16()
    exact = package(x.double(), weight.double())
    token = package(x, weight)
    assert token.dtype == torch.bfloat16 and (token.double() - exact).abs().max() < 0.01  # half a step of bfloat16 at 3


# the forms


def stream(images: int = 3, prefix: int = 2, grid=(2, 4), packages: int = 0, width: int = 5) -> Tokens:
    """Uniform tokens with `packages` package tokens behind their patches."""
    patches = grid[0] * grid[1]
    tokens = dense(torch.randn(images, prefix + patches, width, dtype=D), prefix, grid)
    if not packages:
        return tokens
    x = torch.cat([tokens.x, torch.randn(images, packages, width, dtype=D)], 1)
    return Tokens(x, prefix, grid, torch.cat([tokens.place, torch.full((packages,), PACKAGE)]), packages=packages)


def rows_of(tokens: Tokens, image: int) -> tuple[list[int], torch.Tensor]:
    """Places and values of one image's live tokens, in any form."""
    mine = tokens.image_of_row() == image
    x, place = tokens.x.flatten(0, -2)[mine], tokens.places().flatten()[mine]
    if tokens.masked:
        alive = tokens.live.flatten()[mine] > 0
        x, place = x[alive], place[alive]
    return place.tolist(), x


def expected_rows(tokens: Tokens, image: int, keep, score, package_on: bool) -> tuple[list[int], torch.Tensor]:
    """What pruning leaves of one image, by a loop over its tokens: prefix, kept patches, old packages, new package."""
    places, x = rows_of(tokens, image)
    patches = [n for n, p in enumerate(places) if p >= 0]
    stays = [n for n, p in enumerate(places) if p < 0 or keep[image, patches.index(n)]]
    gone = torch.tensor([float(not keep[image, i]) for i in range(len(patches))], dtype=D)
    left, values = [places[n] for n in stays], x[stays]
    if package_on and gone.any():
        both = torch.stack([score[image], 1 - score[image]], -1)
        left, values = [*left, PACKAGE], torch.cat([values, naive.package_token(x[patches], both, gone)[None]])
    return left, values


def check(pruned: Tokens, tokens: Tokens, keep, score, package_on: bool) -> None:
    for image in range(tokens.images):
        places, values = rows_of(pruned, image)
        left, x = expected_rows(tokens, image, keep, score, package_on)
        assert places == left
        torch.testing.assert_close(values, x)
    assert pruned.counts() == [len(rows_of(pruned, i)[0]) for i in range(tokens.images)]


@pytest.mark.parametrize("package_on", [True, False])
@pytest.mark.parametrize("packages", [0, 2])
def test_every_form_leaves_what_a_loop_over_tokens_leaves(packages, package_on):
    tokens = stream(packages=packages)
    keep, score = torch.rand(3, 8) < 0.5, torch.rand(3, 8, dtype=D)
    keep[0], keep[1, 3] = True, True  # the first image loses nothing
    masked = prune_masked(with_all_live(tokens), keep.to(D), score, package_on)
    check(masked, tokens, keep, score, package_on)
    assert torch.equal(masked.kept(), keep)
    wide = lambda t: torch.nn.functional.pad(t, (2, packages)).flatten()
    rows = prune_rows(tokens, wide(keep), wide(score), package_on)
    check(rows, tokens, keep, score, package_on)
    assert torch.equal(rows.kept(), keep) and rows.ragged


@pytest.mark.parametrize("package_on", [True, False])
@pytest.mark.parametrize("packages", [0, 1])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_the_static_form_leaves_what_a_loop_over_tokens_leaves(packages, package_on, k):
    tokens, score = stream(packages=packages), torch.rand(3, 8, dtype=D)
    index = top_k(score, None, k)
    keep = torch.zeros(3, 8, dtype=torch.bool).scatter(1, index, True)
    pruned = prune_top_k(tokens, score, k, package_on)
    check(pruned, tokens, keep, score, package_on)
    assert not pruned.ragged and pruned.packages == packages + (package_on and k < 8)
    assert pruned.patches == slice(2, 2 + k)


def test_pruning_twice_multiplies_decisions_and_nests_packages():
    """D * D': what the first stage dropped stays dropped whatever the second says, and is in the first package only."""
    tokens = stream()
    score, first = torch.rand(3, 8, dtype=D), torch.rand(3, 8) < 0.6
    first[:, 0] = True
    second = torch.rand(3, 8) < 0.5
    second[:, 0] = True
    once = prune_masked(with_all_live(tokens), first.to(D), score, True)
    twice = prune_masked(once, second.to(D), score, True)
    assert torch.equal(twice.kept(), first & second)
    assert twice.packages == 2
    pad = lambda t, packages: torch.nn.functional.pad(t, (2, packages)).flatten()
    rows = prune_rows(tokens, pad(first, 0), pad(score, 0), True)
    places = rows.places().flatten()
    image = rows.image_of_row()
    at = torch.where(places >= 0, places, 0)
    rows = prune_rows(rows, torch.where(places >= 0, second[image, at], False), torch.where(places >= 0, score[image, at], 0.0), True)
    for i in range(3):
        assert rows_of(rows, i)[0] == rows_of(twice, i)[0]
        torch.testing.assert_close(rows_of(rows, i)[1], rows_of(twice, i)[1])


def test_prefix_and_package_tokens_are_never_dropped():
    tokens = stream(packages=2)
    nobody = torch.zeros(3, 8)
    masked = prune_masked(with_all_live(tokens), nobody.to(D), torch.rand(3, 8, dtype=D), False)
    rows = prune_rows(tokens, torch.zeros(36, dtype=torch.bool), torch.rand(36, dtype=D), False)
    for pruned in (masked, rows):
        assert rows_of(pruned, 1)[0] == [PREFIX, PREFIX, PACKAGE, PACKAGE]
        assert torch.equal(rows_of(pruned, 1)[1], tokens.x[1, [0, 1, 10, 11]])


def test_a_decision_reaches_the_package_with_its_gradient():
    tokens, keep = stream(), torch.tensor([[1.0, 0, 1, 0, 1, 1, 1, 1]] * 3, dtype=D, requires_grad=True)
    score = torch.rand(3, 8, dtype=D, requires_grad=True)
    pruned = prune_masked(with_all_live(tokens), keep, score, True)
    pruned.x[:, -1].sum().backward()
    assert (keep.grad != 0).all() and (score.grad[:, [1, 3]] != 0).all() and (score.grad[:, [0, 2, 4]] == 0).all()
