"""The run's book-keeping while it trains: metrics after each epoch, checkpoints, validation."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from foveate.train.evaluate import evaluate
from foveate.train.files import read_lines, write_checkpoint, write_text
from foveate.train.images import PixelImages, ReadImages
from foveate.train.module import Training


class RunKeeper(Callback):
    """Writes metrics.jsonl (a line an epoch), logs/ (a row every `log_steps` steps) and checkpoints/last.ckpt.

    A checkpoint is written at each epoch's end, every `checkpoint_steps` steps, and (with one process, where no clocks
    can disagree) every `checkpoint_minutes`. set_epoch: called with the number of each epoch before its first step.
    """

    def __init__(
        self,
        out: Path,
        validation: PixelImages | ReadImages | None,
        set_epoch,
        seconds_before: float = 0.0,
        checkpoint_minutes: float = 5.0,
        checkpoint_steps: int | None = None,
        log_steps: int = 50,
    ):
        self.out, self.validation, self.set_epoch = out, validation, set_epoch
        self.seconds_before, self.checkpoint_minutes = seconds_before, checkpoint_minutes
        self.checkpoint_steps, self.log_steps = checkpoint_steps, log_steps
        self._started: float | None = None
        self._saved_step = -1

    def seconds(self) -> float:
        """Return the training time of the run over all its resumptions."""
        return self.seconds_before + (time.monotonic() - self._started if self._started else 0.0)

    def on_train_start(self, trainer: Trainer, module: Training) -> None:
        self._started = self._saved = time.monotonic()
        self._epoch_start = self.seconds()
        if trainer.is_global_zero:
            lines = [line for line in read_lines(self.out / "metrics.jsonl") if line["step"] <= module.step]
            write_text(self.out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def on_train_batch_start(self, trainer: Trainer, module: Training, batch, batch_idx: int) -> None:
        if batch_idx == 0 or module.step % module.steps_per_epoch == 0:
            self.set_epoch(module.step // module.steps_per_epoch)

    def on_train_batch_end(self, trainer: Trainer, module: Training, outputs, batch, batch_idx: int) -> None:
        module.step += 1
        if module.step % self.log_steps == 0:
            row = {"loss": module.loss, "gradient_norm": module.gradient_norm, "lr": module.optimizers().param_groups[0]["lr"]}
            for logger in trainer.loggers:
                logger.log_metrics(row, module.step)
        if module.step % module.steps_per_epoch == 0:
            self._close_epoch(trainer, module)
            self.save(trainer, module)
        elif self._due(trainer, module.step):
            self.save(trainer, module)

    def on_train_end(self, trainer: Trainer, module: Training) -> None:
        self.save(trainer, module)

    def _due(self, trainer: Trainer, step: int) -> bool:
        if self.checkpoint_steps is not None and step % self.checkpoint_steps == 0:
            return True
        return trainer.world_size == 1 and time.monotonic() - self._saved > 60 * self.checkpoint_minutes

    def _close_epoch(self, trainer: Trainer, module: Training) -> None:
        means = {name: total / module.steps_per_epoch for name, total in self._reduced(trainer, module).items()}
        images = module.steps_per_epoch * module.recipe.batch_size
        line = {"epoch": module.step // module.steps_per_epoch, "step": module.step, **means}
        line["lr"] = max(group["lr"] for group in module.optimizers().param_groups)
        line["images_per_s"] = round(images / max(1e-9, self.seconds() - self._epoch_start), 1)
        if self.validation is not None:
            line.update(self._validate(trainer, module))
        line["seconds"] = round(self.seconds(), 1)
        module.sums = {}
        self._epoch_start = self.seconds()
        if trainer.is_global_zero:
            lines = [*read_lines(self.out / "metrics.jsonl"), line]
            write_text(self.out / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in lines))

    def _reduced(self, trainer: Trainer, module: Training) -> dict[str, float]:
        """Return the sums, averaged over the processes."""
        names = sorted(module.sums)
        values = torch.stack([module.sums[name] for name in names]) if names else torch.zeros(0)
        if trainer.world_size > 1:
            values = trainer.strategy.reduce(values.to(module.device, torch.float32), reduce_op="mean").double().cpu()
        return dict(zip(names, values.tolist(), strict=True))

    def _validate(self, trainer: Trainer, module: Training) -> dict:
        """Each process evaluates its share of the validation images."""
        shares = np.arange(trainer.global_rank, len(self.validation), trainer.world_size)
        counts = torch.zeros(3)
        if len(shares):
            with trainer.precision_plugin.forward_context():
                result = evaluate(module.model, self.validation.subset(shares), device=module.device)
            counts = torch.tensor([float(result["correct"].sum()), result["loss"] * result["n"], result["n"]])
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts.to(module.device), reduce_op="sum").cpu()
        right, loss, n = counts.tolist()
        return {"validation_accuracy_percent": round(100 * right / max(1, n), 3), "validation_loss": loss / max(1, n)}

    def save(self, trainer: Trainer, module: Training) -> None:
        """Write checkpoints/last.ckpt; all processes must call this at the same step."""
        if module.step == self._saved_step:
            return
        sums = self._reduced(trainer, module)
        if trainer.is_global_zero:
            state = {
                "step": module.step,
                "model": module.model.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "sums": sums,
                "recipe": module.recipe.to_json(),
                "seconds": self.seconds(),
                "skipped": sorted(set(module.skipped)),
            }
            assert math.isfinite(module.loss)
            write_checkpoint(self.out / "checkpoints" / "last.ckpt", state)
        self._saved, self._saved_step = time.monotonic(), module.step
