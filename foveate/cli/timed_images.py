"""The images that a model is timed on, and calls that go through them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.answer import note
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foveate.adaptive import AdaptiveModel

TIMED_IMAGES = 64


def turning(engine: Callable[[Tensor], Any], images: Tensor, batch: int) -> Callable[[], None]:
    """A call that takes the next images each time: where each image keeps another number of tokens, one image is no sample."""
    state = {"at": 0}

    def run() -> None:
        at = state["at"]
        state["at"] = at + batch if at + 2 * batch <= len(images) else 0
        engine(images[at : at + batch])

    return run


def images_to_time(target, model: AdaptiveModel, data: str | None, data_dir: Path | None, count: int):
    """Normalised images on the CPU: of the data where there are any, synthetic ones otherwise."""
    import torch

    from foveate.cli.images import images_for
    from foveate.runtime.loading import synthetic_images

    if data or data_dir or target.embedded or target.record().get("data"):
        try:
            found = images_for(target, model, data, data_dir, "test", limit=count)
            images = found.batch(range(len(found))).images
            return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
        except FoveateError as error:
            if data or data_dir:
                raise
            note(f"timed on synthetic images: {error.given}")
    with torch.random.fork_rng(devices=[]):
        return synthetic_images(model.card, count)
