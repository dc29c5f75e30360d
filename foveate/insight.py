"""Looking inside: which tokens a model keeps, what each head of a selector sees, what softmax attention is given, and more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt, restore
from foveate.errors import FoveateError
from foveate.nn.cka import linear_cka
from foveate.plan import Plan
from foveate.redundancy import AT_ONCE, as_lists, cka_map, cka_matrix, sampled
from foveate.report import Curve, HeadMaps, Made, Results, TokenCounts, TokenGrid, save_results, write_report
from foveate.report.heatmaps import cka_curve
from foveate.similarity import attention_similarity, similarity_results
from foveate.trace import Trace

WHAT = ("tokens", "heads", "cls-cka", "attention", "cka")


def stage_names(trace: Trace) -> tuple[str, ...]:
    """A caption for each pruning stage."""
    return tuple(f"after block {block}" for block in trace.after)


def token_grid(model: AdaptiveModel, trace: Trace, pixels: np.ndarray, title: str, labels: tuple[str, ...] = ()) -> TokenGrid:
    """Fig. 6 of SPViT: the images of `trace` with what lived on after each stage. pixels: uint8 [n, H, W(, 3)]."""
    grids = tuple(tuple(model.card.grid_after(block)) for block in trace.after)
    return TokenGrid(title, pixels, tuple(trace.kept), grids, stage_names(trace), labels)


@torch.no_grad()
def focus_grids(model: AdaptiveModel, images: Tensor, trace: Trace, labels: tuple[str, ...] = ()) -> tuple[TokenGrid, ...]:
    """Fig. 18 of IRET: for each IRET layer that sees a sub-band, how strong that is where patches stay (mean absolute value over its channels).

    Empty for a plan without iret.
    """
    config = model.plan.find("iret")
    if config is None:
        return ()
    _, bands = model.anatomy.model.sample(images)
    layers = config.layers(model.card)
    strength = bands[:, : config.bands(model.card)].float().abs().mean(2)
    pictures = (255 * strength / strength.amax((2, 3), keepdim=True).clamp_min(1e-12)).byte().cpu().numpy()
    return tuple(TokenGrid(f"Focus of block {layer}: sub-band {number + 1}", pictures[:, number], (trace.kept[trace.after.index(layer - 1)],),
                           (tuple(model.card.block(layer).grid),), ("where it is seen",), labels)
                 for number, layer in enumerate(layers[: pictures.shape[1]]))


def token_counts(model: AdaptiveModel, trace: Trace, plan: str) -> TokenCounts:
    """How many patch tokens each image of `trace` kept."""
    return TokenCounts(plan, tuple(k.sum(1) for k in trace.kept), tuple(model.card.tokens_after(b) for b in trace.after), stage_names(trace))


@torch.no_grad()
def head_maps(model: AdaptiveModel, images: Tensor, pixels: np.ndarray, stage: int = 1, labels: tuple[str, ...] = ()) -> HeadMaps:
    """Fig. 3 of SPViT: the keep score of every head of the selector at `stage` (1-based), and their weighted sum (Eq. 6).

    Patches that an earlier stage dropped show as 0. Raises FoveateError for a plan without selectors.
    """
    config = model.plan.find("spvit")
    if config is None:
        raise FoveateError(f"a model whose plan is {model.plan}", "plans with spvit, whose selectors score every head",
                           "inspect a run trained with spvit, such as the embedded spvit-nano")
    if not 1 <= stage <= len(config.after):
        raise FoveateError(f"stage {stage}", f"stages 1...{len(config.after)} of this plan", "choose one of its stages")
    selector = model.spvit.selectors[str(config.after[stage - 1])]
    _, trace = model.traced(images)
    seen = {}
    handle = selector.register_forward_pre_hook(lambda module, inputs: seen.update(scores=module.head_scores(*inputs)))
    try:
        model.masked(images, trace)
    finally:
        handle.remove()
    t, a = seen["scores"]
    keep = t[..., 0].transpose(0, 1)
    a = a.movedim(-1, 1)
    merged = (keep * a).sum(1) / a.sum(1)
    alive = torch.from_numpy(trace.kept[stage - 2]) if stage > 1 and trace.kept[stage - 2].shape[1] == keep.shape[2] else torch.ones_like(merged)
    grid = tuple(model.card.grid_after(config.after[stage - 1]))
    return HeadMaps(f"Head scores of the selector after block {config.after[stage - 1]}", pixels, (keep * alive[:, None]).float().numpy(),
                    (merged * alive).float().numpy(), grid, labels)


@torch.no_grad()
def cls_cka(model: AdaptiveModel, images: Tensor) -> Curve:
    """Fig. 4 of SPViT: CKA between the tokens of each block and the final CLS token over `images` (256 or more).

    The line is the mean over token positions, the band their quartiles. Always of the dense backbone.
    Raises FoveateError for backbones without a class token.
    """
    dense = adapt(restore(model), Plan()) if model.plan.methods else model
    anatomy = dense.eval().anatomy
    tokens = anatomy.stem(images)
    if tokens.prefix == 0:
        raise FoveateError(f"{model.card.name}, which has no class token", "backbones with a class token", "use `inspect tokens` there")
    patches = []
    for block in range(1, model.card.depth + 1):
        tokens = anatomy.block(block, tokens)
        patches.append(tokens.x[:, tokens.patches].transpose(0, 1))
    final = tokens.x[:, 0]
    scores = [linear_cka(p, final).numpy() for p in patches]
    low, high = ([np.quantile(s, q) for s in scores] for q in (0.25, 0.75))
    curve = cka_curve(np.array([s.mean() for s in scores]), np.array(low), np.array(high))
    return replace(curve, caption=f"{curve.caption} Mean and quartiles over token positions, {len(images)} images.")


def inspect(what: str, model: AdaptiveModel, data, out: str | Path, count: int | None = None, stage: int = 1, made: Made = Made()) -> Path:
    """Writes report.html (and results.json) about `what` (one of WHAT) into the folder `out`.

    model: adapted, in evaluation mode. data: a set of images from foveate.train.load_data. count: images to look at.
    """
    if what not in WHAT:
        raise FoveateError(f"inspect {what!r}", ", ".join(WHAT), "choose one of these")
    count = min(count or {"cls-cka": 512, "cka": 256}.get(what, 8), len(data))
    chosen = sampled(len(data), count) if what == "cka" else np.arange(count)
    images = data.batch(chosen).images
    labels = tuple(data.classes[int(data.labels[i])] for i in chosen)
    title = f"{model.card.name}: {model.plan}"
    if what == "cls-cka":
        results = Results(title, "Where tokens are encoded well enough to be judged.", curves=(cls_cka(model, images),), made=made)
    elif what == "attention":
        results = similarity_results(attention_similarity(model, images), count, title, made)
    elif what == "cka":
        found = cka_matrix(model, images.split(AT_ONCE))
        results = Results(title, "Which attentions repeat what an MLP before them has said.", matrices=(cka_map(found, count),), made=made,
                          figures={"images": count, "cka": as_lists(found)})
    elif what == "heads":
        maps = head_maps(model, images, pixels_of(data, images), stage, labels)
        results = Results(title, "What each head of the selector takes for informative.", heads=(maps,), made=made)
    else:
        with torch.no_grad():
            _, trace = model.traced(images)
        if not trace.kept:
            raise FoveateError(f"a model whose plan is {model.plan}", "plans that prune tokens", "give --plan, or inspect a run such as the embedded spvit-nano")
        rates = ", ".join(f"{100 * r:.0f} %" for r in trace.keep_rates)
        results = Results(title, f"Patches alive after each stage: {rates}.", grids=(token_grid(model, trace, pixels_of(data, images), "Kept tokens", labels), *focus_grids(model, images, trace, labels)),
                          counts=(token_counts(model, trace, str(model.plan)),), made=made)
    save_results(out, results)
    return write_report(Path(out) / "report.html", results)


def pixels_of(data, images: Tensor) -> np.ndarray:
    """Normalised images [n, 3, H, W] back as uint8 [n, H, W, 3], as the model saw them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.preprocessing.mean, data.preprocessing.std))
    return ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
