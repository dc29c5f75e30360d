"""--teacher, --scratch and --slice: who teaches, and a model with fresh weights or those of a wider dense one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import nn

    from foveate.adaptive import AdaptiveModel
    from foveate.cli.targets import Target
    from foveate.plan import Plan


def fresh_model(target: Target, plan: Plan, data: str, data_dir: Path | None, seed: int, weights: Path | None, pretrained: bool,
                sliced: str | None = None) -> AdaptiveModel:
    """The backbone `target` under `plan` with random weights by `seed`, its head for the classes of `data`.

    sliced: a dense run or backbone whose leading channels and heads replace the random weights where they have a counterpart.
    Raises FoveateError for a run, for weights beside --scratch, and for a dense model that cannot be sliced into the backbone.
    """
    import torch

    from foveate.adoption import adapt, restore
    from foveate.backbones.iret_init import slice_into
    from foveate.cli.targets import open_model, target_of
    from foveate.plan import Plan
    from foveate.train.base import create_base
    from foveate.train.data import load_data

    if target.folder is not None or weights or pretrained:
        other = f"the run {target.text}" if target.folder is not None else "--weights" if weights else "--pretrained"
        raise FoveateError(f"{'--slice' if sliced else '--scratch'} with {other}", "fresh weights with the bare name of a backbone, whose weights are then random", "leave one of the two out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = create_base(target.text, len(load_data(data, "test", data_dir).classes), seed=seed)
        if sliced:
            slice_into(base, restore(open_model(target_of(sliced), Plan())))
        return adapt(base, plan, target.text).eval()


def named_teacher(text: str, model: AdaptiveModel) -> nn.Module:
    """The model that teaches `model`: a run or an embedded backbone, else a name in timm with the weights that timm fetches.

    Raises FoveateError where it knows other classes or sees images of another size.
    """
    from foveate.cli.targets import open_model, single_plan_of, target_of
    from foveate.train.base import create_base

    target = target_of(text)
    trained = target.folder is not None or target.embedded
    teacher = open_model(target, single_plan_of(target, None)) if trained else create_base(text, model.num_classes, pretrained=True).eval()
    size = model.card.image_size
    if teacher.num_classes != model.num_classes or (trained and tuple(teacher.card.image_size) != tuple(size)):
        seen = f"{teacher.num_classes} classes" + (f", {teacher.card.image_size[0]}x{teacher.card.image_size[1]} pixels" if trained else "")
        raise FoveateError(f"--teacher {text} ({seen}) for {model.card.name} ({model.num_classes} classes, {size[0]}x{size[1]} pixels)",
                           "a teacher that sees the same images and knows the same classes", "train the teacher on the same data")
    return teacher
