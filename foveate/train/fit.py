"""Training from data to run folder, on Lightning's Trainer; an interrupted run resumes as if nothing had happened."""

import json
import logging
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from foveate.errors import FoveateError
from foveate.train.data import DEFAULT_DATA, load_data
from foveate.train.evaluate import evaluate
from foveate.train.files import environment, read_checkpoint, write_json, write_text, write_weights
from foveate.train.grow import initialise
from foveate.train.images import PixelImages, ReadImages, TrainingBatches, warn_skipped
from foveate.train.keeper import RunKeeper
from foveate.train.module import Training
from foveate.train.objective import Objective
from foveate.train.preprocessing import Preprocessing
from foveate.train.progress import progress_callbacks
from foveate.train.recipe import Recipe
from foveate.train.sampler import StepSampler
from foveate.train.tuning import explicit_attention, patch_dropping, set_drop_path


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
    """Train `model` in place and return the run folder `out`.

    model: a timm model, or an adapted one (then its methods' losses are added). teacher: a dense model for distillation.
    data: a name for load_data, or sets already loaded. preprocessing: default: the model's own.
    init: starting weights, "RUN" or "grow:RUN" (a twin with other patches); default: the model's own.
    resume: go on from out/checkpoints/last.ckpt if there is one; the result is that of an uninterrupted run.
    device: "auto" | "cpu" | "cuda". devices, num_nodes: processes (DDP; started by torchrun or by Lightning itself, so the
    calling script needs an `if __name__ == "__main__"`). limit_steps: stop after so many steps of this call, resumably.
    progress: a progress bar (default: where standard error is a terminal).
    Writes recipe.json, run.json, preprocessing.json, metrics.jsonl, logs/, checkpoints/last.ckpt, model.safetensors.
    Raises FoveateError for bad data, a folder already in use, another recipe on resume, or a diverged training.
    """
    recipe, out = recipe or Recipe(), Path(out)
    preprocessing = preprocessing or Preprocessing.of(model)
    sets = load_sets(data, recipe, data_dir, preprocessing, strict) if isinstance(data, str) else data
    check_model(model, sets.train)
    if teacher is not None and any(recipe.patch_drop):
        raise FoveateError(
            f"patch_drop={list(recipe.patch_drop)} with a teacher", "patch dropping without distillation", "set patch_drop=[0]"
        )
    if len(sets.train) < recipe.batch_size:
        recipe = recipe.but(batch_size=max(1, len(sets.train) // 2 * 2))
    steps_per_epoch = len(sets.train) // recipe.batch_size
    resumed = _resume(out, model, recipe, resume)
    if init is not None and resumed is None:
        initialise(model, init)
    start = resumed["step"] if resumed else 0
    total = recipe.epochs * steps_per_epoch
    stop = total if limit_steps is None else min(total, start + limit_steps)
    record = {**_record(model, data, sets, recipe, command, steps_per_epoch), "init": init}
    if start < stop:
        if recipe.drop_path is not None:
            set_drop_path(model, recipe.drop_path)
        module = Training(
            model,
            Objective(teacher, recipe.kl_weight, recipe.distill_weight, recipe.label_smoothing),
            recipe,
            steps_per_epoch,
            len(sets.train.classes),
            resumed,
        )
        with quiet_lightning():
            trainer = make_trainer(recipe, out, device, devices, num_nodes, loggers, progress, hasattr(model, "training_outputs"))
        if trainer.is_global_zero:
            _open_folder(out, recipe, preprocessing, record)
        with ExitStack() as stack:
            stack.enter_context(explicit_attention(model, _on_cpu(trainer) and recipe.precision == "bf16-mixed"))
            set_epoch = stack.enter_context(patch_dropping(model, recipe))
            keeper = RunKeeper(
                out, sets.validation, set_epoch, resumed["seconds"] if resumed else 0.0, checkpoint_minutes, checkpoint_steps
            )
            trainer.callbacks.append(keeper)
            _train(trainer, module, sets.train, start, stop, workers)
            keeper.save(trainer, module)
        warn_skipped(sets.train.name, sorted(set(module.skipped)))
        record.update(seconds=round(keeper.seconds(), 1), skipped=sorted({*module.skipped, *getattr(sets.train, "skipped", ())}))
        if trainer.is_global_zero:
            _close_folder(out, model, sets, record, stop, total, recipe)
        trainer.strategy.barrier()
    return out


def check_model(model: nn.Module, images: PixelImages | ReadImages) -> None:
    """Refuse a model with another number of classes than the data, or with weights that are not finite."""
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


def make_trainer(
    recipe: Recipe, out: Path, device: str, devices: int, num_nodes: int, loggers: list | None, progress: bool | None, methods: bool
) -> Trainer:
    """Return a Trainer that leaves data order, validation and checkpoints to this package."""
    if device not in ("auto", "cpu", "cuda", "gpu"):
        raise FoveateError(f"device {device!r}", "auto, cpu or cuda", "choose one of these")
    if device in ("cuda", "gpu") and not torch.cuda.is_available():
        raise FoveateError("device cuda on a machine without one", "auto or cpu here", "leave out --device")
    several = devices * num_nodes > 1
    # A batch may leave a method's parameters without gradient, for instance where a selector pruned nothing.
    strategy = DDPStrategy(find_unused_parameters=methods) if several else "auto"
    shown = sys.stderr.isatty() if progress is None else progress
    return Trainer(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=recipe.precision,
        max_epochs=1,
        logger=[CSVLogger(out, name="logs", version=""), *(loggers or [])],
        callbacks=progress_callbacks(shown),
        enable_progress_bar=shown,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=50,
    )


def _train(trainer: Trainer, module: Training, images: PixelImages | ReadImages, start: int, stop: int, workers: int) -> None:
    # One Lightning "epoch" from `start` to `stop`: epochs are counted from the step alone, so resuming is only a later start.
    recipe = module.recipe
    sampler = StepSampler(
        len(images), recipe.batch_size, recipe.seed, start, stop, trainer.global_rank, trainer.world_size
    )
    loader = DataLoader(
        TrainingBatches(images, recipe.augmentation, recipe.seed),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_as_tuple,
        persistent_workers=False,
    )
    with quiet_lightning():
        trainer.fit(module, loader)


@contextmanager
def quiet_lightning():
    """Keep Lightning's notes on hardware, workers and its other products out of the way; its errors still come through."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in (".*many workers.*", ".*LeafSpec.*", ".*smaller than the logging interval.*", ".*GPU available but not used.*"):
            warnings.filterwarnings("ignore", text)
        try:
            yield
        finally:
            log.setLevel(level)


def _as_tuple(batch: tuple) -> tuple:
    return batch


def _on_cpu(trainer: Trainer) -> bool:
    return trainer.strategy.root_device.type == "cpu"


def _resume(out: Path, model: nn.Module, recipe: Recipe, resume: bool) -> dict | None:
    """Load the checkpoint into the model and return the rest of it; None where a run begins."""
    path = out / "checkpoints" / "last.ckpt"
    if not path.exists():
        return None
    if not resume:
        raise FoveateError(f"{out}, which already holds a run", "a new folder, or an interrupted run with --resume", "add --resume or choose another --out")
    state = read_checkpoint(path)
    before = Recipe.from_json(state["recipe"])
    if before != recipe:
        changed = [name for name, value in vars(before).items() if getattr(recipe, name) != value]
        raise FoveateError(
            f"{out}, begun with another recipe ({', '.join(f'{name}={getattr(before, name)}' for name in changed)})",
            "the recipe the run was begun with",
            f"repeat {', '.join(changed)} as in {out / 'recipe.json'}, or choose another --out",
        )
    try:
        model.load_state_dict(state.pop("model"))
    except RuntimeError as error:
        raise FoveateError(
            f"{path}, written for another model ({str(error).splitlines()[-1].strip()[:150]})",
            "the model the run was begun with",
            "repeat the command of run.json, or choose another --out",
        ) from error
    return state


def _record(model: nn.Module, data, sets: DataSets, recipe: Recipe, command: str | None, steps_per_epoch: int) -> dict:
    config = getattr(model, "pretrained_cfg", None) or {}
    return {
        "command": command or " ".join(sys.argv),
        "model": config.get("architecture") or type(model).__name__,
        "data": data if isinstance(data, str) else sets.train.name,
        "train_images": len(sets.train),
        "classes": list(sets.train.classes),
        "seed": recipe.seed,
        "steps_per_epoch": steps_per_epoch,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(),
    }


def _open_folder(out: Path, recipe: Recipe, preprocessing: Preprocessing, record: dict) -> None:
    write_text(out / "recipe.json", recipe.to_json())
    write_text(out / "preprocessing.json", preprocessing.to_json())
    run = out / "run.json"
    if run.exists():
        record["started"] = json.loads(run.read_text()).get("started", record["started"])
    write_json(run, record)


def _close_folder(out: Path, model: nn.Module, sets: DataSets, record: dict, stop: int, total: int, recipe: Recipe) -> None:
    write_weights(out / "model.safetensors", model)
    record.update(steps=stop, of_steps=total)
    if stop == total and sets.test is not None:
        on_cpu = next(model.parameters()).device.type == "cpu"
        mixed = recipe.precision == "bf16-mixed"
        with explicit_attention(model, on_cpu and mixed):
            result = evaluate(model, sets.test)
        record["test"] = {name: result[name] for name in ("accuracy_percent", "uncertainty_percent", "loss", "n", "skipped")}
    write_json(out / "run.json", record)
