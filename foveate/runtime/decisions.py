"""Which patches a graph keeps, held against what eager float32 keeps: stage by stage, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.methods.hooks import Run


class Deciding(nn.Module):
    """images -> (logits, place of every token after stage 1, after stage 2, ...): an AdaptiveModel whose graph tells what it kept."""

    def __init__(self, model: AdaptiveModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        run = Run(masked=False)
        logits = self.model._answer(images, run)  # as AdaptiveModel.forward does, with the run at hand
        return logits, *(stage.tokens.places() for stage in run.stages)


def compared(places: Sequence[Sequence[np.ndarray]], kept: Sequence[np.ndarray], after: Sequence[int]) -> dict[str, Any]:
    """What two runs kept of the same images, as a record for artifact.json.

    places[stage]: of a graph, [images, tokens] in one array or in several, one after the other. kept[stage]: bool [images, slots] of
    a Trace. after: the block behind which each stage stands. "equal" means every patch of every image; overlap is the number of
    patches that both keep over the number that either keeps, the mean over images.
    """
    stages = []
    for arrays, alive, block in zip(places, kept, after, strict=True):
        rows = [row for array in arrays for row in array]
        ours = np.zeros_like(alive)
        for mask, row in zip(ours, rows, strict=True):
            mask[row[row >= 0]] = True
        overlap = (ours & alive).sum(1) / np.maximum((ours | alive).sum(1), 1)
        stages.append({"after": block, "overlap": float(overlap.mean()), "equal_percent": float(100 * (ours == alive).all(1).mean())})
    return {"equal": all(stage["equal_percent"] == 100 for stage in stages), "stages": stages}
