"""Training from data to run folder, on Lightning's Trainer; an interrupted run resumes as if nothing had happened."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.train.data import DEFAULT_DATA, load_data
from foveate.train.folder import checkpoint_of, close_folder, describe_run, is_closed, open_folder, resume_run
from foveate.train.grow import initialise
from foveate.train.images import PixelImages, ReadImages, warn_skipped
from foveate.train.keeper import RunKeeper
from foveate.train.module import Training
from foveate.train.objective import Objective
from foveate.train.preprocessing import Preprocessing
from foveate.train.quantise import quantise_for_training
from foveate.train.recipe import Recipe
from foveate.train.trainer import make_trainer, on_cpu, run_steps
from foveate.train.tuning import drop_path, explicit_attention, frozen_backbone, patch_dropping


@dataclass(frozen=True)
class DataSets:
    """What a run reads: validation after each epoch, test once at the end (either may be None)."""

    train: PixelImages | ReadImages
    validation: PixelImages | ReadImages | None = None
    test: PixelImages | ReadImages | None = None


def load_sets(
    name: str, recipe: Recipe, data_dir=None, preprocessing: Preprocessing | None = None, strict: bool = False
) -> DataSets:
    """Return the sets that a recipe trains on, validates on and is tested on."""
    parts = (load_data(name, split, data_dir, preprocessing, strict) for split in (recipe.split, "validation", "test"))
    return DataSets(*parts)


def fit(
    model: nn.Module,
    out: str | Path,
    data: str | DataSets = DEFAULT_DATA,
    recipe: Recipe | None = None,
    *,
    data_dir: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    teacher: nn.Module | None = None,
    init: str | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    limit_steps: int | None = None,
    checkpoint_minutes: float = 5.0,
    checkpoint_steps: int | None = None,
    workers: int = 0,
    strict: bool = False,
    command: str | None = None,
    loggers: list | None = None,
    progress: bool | None = None,
) -> Path:
    """Train `model` in place (it comes back in eval mode, on the CPU) and return the run folder `out`.

    model: a timm model, or an adapted one (then its methods' losses are added). teacher: a dense model for distillation.
    data: a name for load_data, or sets already loaded. preprocessing: default: the model's own.
    init: starting weights, "RUN" or "grow:RUN" (a twin with other patches); default: the model's own.
    resume: go on from out/checkpoints/last.ckpt if there is one; the result is that of an uninterrupted run.
    device: "auto" | "cpu" | "cuda". devices: processes a machine, num_nodes: machines (DDP). Started by Lightning itself on
    one machine (the calling script needs an `if __name__ == "__main__"`), on several by
    `torchrun --nnodes num_nodes --nproc-per-node devices ...` on each. limit_steps: stop after so many steps of this call, resumably.
    loggers: further loggers of Lightning. progress: a progress bar (default: where standard error is a terminal).
    With the recipe's quantise="int8" the model comes back with 8-bit layers (foveate.quantised).
    Writes recipe.json, run.json, preprocessing.json, metrics.jsonl, logs/ and checkpoints/last.ckpt, and at the end what
    foveate.save writes (plan.json, backbone.json, model.safetensors).
    Raises FoveateError for bad data, a folder already in use, another recipe on resume, or a diverged training.
    """
    recipe, out = recipe or Recipe(), Path(out)
    preprocessing = preprocessing or Preprocessing.of(model)
    sets = load_sets(data, recipe, data_dir, preprocessing, strict) if isinstance(data, str) else data
    recipe = check_inputs(model, sets.train, recipe, teacher)
    steps_per_epoch = len(sets.train) // recipe.batch_size
    checkpoint = checkpoint_of(out, resume)
    if init is not None and checkpoint is None:
        initialise(model, init)
    if recipe.quantise == "int8":
        quantise_for_training(model, sets.train, recipe.seed, checkpoint)
    resumed = resume_run(out, checkpoint, model, recipe)
    start, total = resumed["step"] if resumed else 0, recipe.epochs * steps_per_epoch
    stop = total if limit_steps is None else min(total, start + limit_steps)
    if start == stop and is_closed(out, stop):
        return out
    objective = Objective(teacher, recipe.kl_weight, recipe.distill_weight, recipe.label_smoothing, recipe.hard_weight)
    module = Training(model, objective, recipe, steps_per_epoch, len(sets.train.classes), resumed)
    trainer = make_trainer(
        recipe, out, start, device, devices, num_nodes, loggers, progress, hasattr(model, "training_outputs")
    )
    record = describe_run(model, sets.train, recipe, command, init)
    if trainer.is_global_zero:
        open_folder(out, recipe, preprocessing, record)
    with ExitStack() as stack:
        for one in filter(None, (model, teacher)):
            stack.enter_context(explicit_attention(one, on_cpu(trainer) and recipe.precision == "bf16-mixed"))
        stack.enter_context(drop_path(model, recipe.drop_path))
        stack.enter_context(frozen_backbone(model, recipe.backbone_lr == 0))
        set_epoch = stack.enter_context(patch_dropping(model, recipe))
        seconds = resumed["seconds"] if resumed else 0.0
        keeper = RunKeeper(out, sets.validation, set_epoch, seconds, checkpoint_minutes, checkpoint_steps)
        if start < stop:
            run_steps(trainer, module, keeper, sets.train, start, stop, workers)
    warn_skipped(sets.train.name, sorted(set(module.skipped)))
    skipped = sorted({*module.skipped, *getattr(sets.train, "skipped", ())})
    record.update(seconds=round(keeper.seconds(), 1), skipped=skipped, steps=stop, of_steps=total)
    if trainer.is_global_zero:
        close_folder(out, model.to(trainer.strategy.root_device).eval(), sets.train, sets.test, record)
    model.cpu().eval()
    trainer.strategy.barrier()
    return out


def check_inputs(model: nn.Module, images: PixelImages | ReadImages, recipe: Recipe, teacher: nn.Module | None) -> Recipe:
    """Return the recipe, its batch no larger than the set; refuse a model that does not fit the data or the recipe."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FoveateError(
                f"a model whose parameter {name} holds NaN or infinity", "finite weights", "load intact weights or start anew"
            )
    classes = getattr(model, "num_classes", None)
    if classes is not None and classes != len(images.classes):
        raise FoveateError(
            f"a model with {classes} classes and data {images.name} with {len(images.classes)}",
            "the same number of classes in both",
            f"create the model with num_classes={len(images.classes)}, or choose other data",
        )
    if teacher is not None and any(recipe.patch_drop):
        raise FoveateError(
            f"patch_drop={list(recipe.patch_drop)} with a teacher", "patch dropping without distillation", "set patch_drop=[0]"
        )
    if len(images) >= recipe.batch_size:
        return recipe
    return recipe.but(batch_size=max(1, len(images) // 2 * 2))
