"""Lightning's Trainer as this package uses it: devices, processes and precision are its part, order and checkpoints are ours."""

import logging
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from foveate.errors import FoveateError
from foveate.train.images import PixelImages, ReadImages, TrainingBatches
from foveate.train.keeper import RunKeeper
from foveate.train.module import Training
from foveate.train.progress import progress_callbacks
from foveate.train.recipe import Recipe
from foveate.train.sampler import StepSampler


def make_trainer(
    recipe: Recipe,
    out: Path,
    start: int,
    device: str,
    devices: int,
    num_nodes: int,
    loggers: list | None,
    progress: bool | None,
    methods: bool,
) -> Trainer:
    """Return a Trainer that leaves data order, validation and checkpoints to this package.

    start: first step of this call. methods: the model has method parameters. The rest as in `fit`.
    """
    if device not in ("auto", "cpu", "cuda", "gpu"):
        raise FoveateError(f"device {device!r}", "auto, cpu or cuda", "choose one of these")
    if device in ("cuda", "gpu") and not torch.cuda.is_available():
        raise FoveateError("device cuda on a machine without one", "auto or cpu here", "leave out --device")
    several = devices * num_nodes > 1
    # A batch may leave a method's parameters without gradient, for instance where a selector pruned nothing.
    strategy = DDPStrategy(find_unused_parameters=methods) if several else "auto"
    shown = sys.stderr.isatty() if progress is None else progress
    # A folder for each resumption, because Lightning empties the folder it begins in.
    csv_logger = CSVLogger(out, name="logs", version=f"from_step_{start}", flush_logs_every_n_steps=1)
    with quiet_lightning():
        return Trainer(
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=recipe.precision,
            max_epochs=1,
            logger=[csv_logger, *(loggers or [])],
            callbacks=progress_callbacks(shown),
            enable_progress_bar=shown,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=50,
        )


def run_steps(
    trainer: Trainer, module: Training, keeper: RunKeeper, images: PixelImages | ReadImages, start: int, stop: int, workers: int
) -> None:
    """Train from step `start` to step `stop` and leave a checkpoint."""
    # One Lightning "epoch" from `start` to `stop`: epochs are counted from the step alone, so resuming is only a later start.
    recipe = module.recipe
    size, rank, world = len(images), trainer.global_rank, trainer.world_size
    sampler = StepSampler(size, recipe.batch_size, recipe.seed, start, stop, rank, world)
    loader = DataLoader(
        TrainingBatches(images, recipe.augmentation, recipe.seed),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=as_it_is,
        persistent_workers=False,
    )
    with quiet_lightning():
        trainer.callbacks.append(keeper)
        module.train()
        trainer.fit(module, loader)


@contextmanager
def quiet_lightning():
    """Keep Lightning's notes on hardware, workers and its other products out of the way; its errors still come through."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in (".*many workers.*", ".*LeafSpec.*", ".*smaller than the logging interval.*", ".*GPU available but.*", ".*logs directory.*"):
            warnings.filterwarnings("ignore", text)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def as_it_is(batch: tuple) -> tuple:
    return batch


def on_cpu(trainer: Trainer) -> bool:
    """Tell whether this trainer computes on a CPU."""
    return trainer.strategy.root_device.type == "cpu"
