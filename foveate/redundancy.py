"""Which attentions are redundant: the CKA matrix between what the MLP of one block and the attention of a later one compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt, restore
from foveate.errors import FoveateError
from foveate.nn.cka import LEAST_IMAGES, centred_gram, cka_from_hsic, gram_hsic, unbiased_hsic
from foveate.nn.precision import at_least_float32
from foveate.plan import Plan
from foveate.report import Matrix

FEATURES = ("tokens", "mean")
RESIDUALS = ("before", "after")
ESTIMATORS = ("exact", "minibatch")
AT_ONCE = 64
"""Images of a batch where nobody asks for another number."""
MOST_EXACT = 2048
"""Images beyond which the Gram matrices of all blocks outgrow a small machine's memory."""
Progress = Callable[[int, int], None]


@torch.no_grad()
def cka_matrix(model: nn.Module, batches: Tensor | Iterable[Tensor], features: str = "tokens", residual: str = "before",
               estimator: str = "exact", progress: Progress = lambda done, total: None) -> np.ndarray:
    """CKA(MLP_i, A_j) of every pair of blocks i < j of the dense model (the CKA matrix of section 3.2 of PIVOT).

    model: a timm model, or an adapted one, whose dense backbone is looked at.
    batches: normalised images [B, 3, H, W], in one tensor or in several; the paper takes 256 images.
    features: of an image, "tokens" (all tokens side by side) or "mean" (their mean, a cheap stand-in).
    residual: outputs of MLP and attention "before" they are added to the token stream (LayerScale included), or "after".
    estimator: "exact", the CKA of all images together (biased upwards where they are few), or "minibatch", which averages an
        unbiased HSIC over the batches as they come (arXiv:2010.15327) and holds one of them at a time: for larger sets.
    progress: called with the steps done and in all.

    Returns float64 [depth, depth]; row i - 1 and column j - 1 hold CKA(MLP_i, A_j), NaN where j <= i.
    Raises FoveateError for unknown words, too few or too many images, and features that are not finite.
    Deviation: the paper does not say on which side of the residual it looks; both are taken on the same side.
    """
    _check_words(features=(features, FEATURES), residual=(residual, RESIDUALS), estimator=(estimator, ESTIMATORS))
    dense = adapt(restore(model) if isinstance(model, AdaptiveModel) else model, Plan()).eval()
    dense.anatomy.check_attention()
    batches = [batches] if isinstance(batches, Tensor) else batches
    walk = _exact if estimator == "exact" else _minibatch
    matrix = walk(dense, batches, features, residual, progress).cpu().numpy()
    later = np.triu(np.ones(matrix.shape, dtype=bool), 1)
    if not np.isfinite(matrix[later]).all():
        raise FoveateError(f"features of {dense.card.name} that are not finite", "a model whose outputs are numbers on these images",
                           "load an intact checkpoint, and check how the images are normalised")
    return np.where(later, matrix, np.nan)


def _exact(model: AdaptiveModel, batches: Iterable[Tensor], features: str, residual: str, progress: Progress) -> Tensor:
    """One block after the other over all images, so that the features of one block at a time are held."""
    tokens, grams = [model.anatomy.stem(batch) for batch in batches], ([], [])
    images = sum(t.images for t in tokens)
    if not LEAST_IMAGES <= images <= MOST_EXACT:
        raise FoveateError(f"{images} images for the exact CKA matrix", f"{LEAST_IMAGES} to {MOST_EXACT:,} images; the paper takes 256",
                           "take more images" if images < LEAST_IMAGES else 'take fewer, or estimator="minibatch"')
    for block in range(1, model.card.depth + 1):
        with _outputs(model, block, features, residual, [t.images for t in tokens]) as outputs:
            tokens = [model.anatomy.block(block, t) for t in tokens]
        for kept, output in zip(grams, outputs):
            kept.append(centred_gram(torch.cat(output)).double())
        progress(block, model.card.depth)
    k, l = (torch.stack(side) for side in grams)
    own = [side.square().sum((-1, -2)) for side in (k, l)]
    return cka_from_hsic(gram_hsic(k, l), *own)


def _minibatch(model: AdaptiveModel, batches: Iterable[Tensor], features: str, residual: str, progress: Progress) -> Tensor:
    """Mean of the unbiased HSIC over the batches, in numerator and denominator."""
    sums, done = 0.0, 0
    for batch in batches:
        if len(batch) < LEAST_IMAGES:
            raise FoveateError(f"a batch of {len(batch)} images for the minibatch estimate of CKA", f"batches of {LEAST_IMAGES} images or more",
                               "choose another batch size, or leave the last images out")
        tokens, grams = model.anatomy.stem(batch), ([], [])
        for block in range(1, model.card.depth + 1):
            with _outputs(model, block, features, residual, [len(batch)]) as outputs:
                tokens = model.anatomy.block(block, tokens)
            for kept, output in zip(grams, outputs):
                kept.append(centred_gram(output[0]).double())
        k, l = (torch.stack(side) for side in grams)
        own = [unbiased_hsic(side, side).diagonal() for side in (k, l)]
        sums = sums + torch.cat([unbiased_hsic(k, l), torch.stack(own)])
        done += 1
        progress(done, len(batches) if hasattr(batches, "__len__") else done)
    if not done:
        raise FoveateError("no images for the CKA matrix", f"batches of {LEAST_IMAGES} images or more", "take more images")
    return cka_from_hsic(sums[:-2], sums[-2], sums[-1])


def sampled(images: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` (or all) of the indices of a set of `images` images, drawn by `seed`, ascending: files often lie class by class."""
    return np.sort(np.random.default_rng(seed).choice(images, min(count, images), replace=False))


def as_lists(matrix: np.ndarray) -> list[list[float | None]]:
    """The CKA matrix as JSON knows it: null where there is no value."""
    return [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]


def cka_map(matrix: np.ndarray, images: int, about: str = "") -> Matrix:
    """The CKA matrix as a heat map (Fig. 3 of PIVOT). images: how many it was computed on; about: how, in words."""
    caption = ("Row i and column j: how much what the attention of block j computes resembles what the MLP of block i has computed already. "
               f"Where that is much, the attention can be skipped. {images:,} images{about}.")
    return Matrix("CKA of MLPs and later attentions", "MLP of block", "attention of block", matrix, caption)


@contextmanager
def _outputs(model: AdaptiveModel, block: int, features: str, residual: str, images: list[int]) -> Iterator[tuple[list, list]]:
    """Inside, passes through block `block` fill two lists, a feature matrix [images, p] a pass: of its MLP and of its attention."""
    mlp, attention = [], []

    def take(into: list, output: Tensor) -> None:
        # MobileViT's blocks see the pixel groups of an image as images of their own; here they belong to it.
        rows = at_least_float32(output).reshape(images[len(into)], -1, output.shape[-1])
        into.append(rows.mean(1) if features == "mean" else rows.flatten(1))

    module = model.anatomy.blocks[block - 1]
    if residual == "after":
        behind = getattr(module, "norm2", module.mlp)  # whatever reads the stream behind the attention
        handles = [behind.register_forward_pre_hook(lambda _, inputs: take(attention, inputs[0])),
                   module.register_forward_hook(lambda _, __, output: take(mlp, output))]
    else:
        # The last thing every family calls on a branch; LeViT's subsampling attention has no residual, and none there.
        ends = (module.drop_path1, module.drop_path2) if hasattr(module, "drop_path1") else (module.attn_downsample, module.drop_path)
        handles = [end.register_forward_hook(lambda _, __, output, into=into: take(into, output)) for end, into in zip(ends, (attention, mlp))]
    try:
        yield mlp, attention
    finally:
        for handle in handles:
            handle.remove()


def _check_words(**chosen: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, allowed) in chosen.items():
        if value not in allowed:
            raise FoveateError(f"{name}={value!r}", " or ".join(map(repr, allowed)), "choose one of these")
