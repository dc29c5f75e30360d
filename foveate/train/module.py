"""One training step as a LightningModule: every random number in it depends on (seed, global step) alone."""

import torch
from lightning.pytorch import LightningModule
from timm.data import Mixup
from torch import nn

from foveate.errors import FoveateError
from foveate.train.objective import Objective
from foveate.train.randomness import MIX, seeded, step_seed
from foveate.train.recipe import Recipe
from foveate.train.tuning import make_optimizer, make_schedule


class Training(LightningModule):
    """Trains `model` for a recipe; `step` counts optimizer steps since the run began, over all resumptions.

    sums: float64 sums of the loss and its parts over the steps of the current epoch.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, recipe: Recipe, steps_per_epoch: int, classes: int, resumed: dict | None = None
    ):
        super().__init__()
        self.model, self.objective, self.recipe = model, objective, recipe
        self.steps_per_epoch, self.classes = steps_per_epoch, classes
        self.step = resumed["step"] if resumed else 0
        sums = resumed["sums"] if resumed else {}
        self.sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}
        self._optimizer_state = resumed["optimizer"] if resumed else None
        self.loss = self.gradient_norm = float("nan")
        self.skipped: list[str] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.recipe)
        self.schedule = make_schedule(optimizer, self.recipe, self.steps_per_epoch)
        return optimizer

    def on_train_start(self) -> None:
        teacher = self.objective.teacher
        if teacher is not None:
            teacher.to(self.device).eval()
        if self._optimizer_state is not None:
            self.trainer.optimizers[0].load_state_dict(self._optimizer_state)
            self._optimizer_state = None

    def training_step(self, batch: tuple, _: int) -> torch.Tensor:
        step, images, labels, skipped = batch
        assert step == self.step, "the sampler and the module must agree on the step"
        self.skipped.extend(skipped)
        self.schedule.step_update(step)
        if hasattr(self.model, "progress"):
            self.model.progress = step / (self.recipe.epochs * self.steps_per_epoch)
        targets = labels
        if self.recipe.mixup or self.recipe.cutmix:
            images, targets = self._mixed(images, labels, step)
        torch.manual_seed(step_seed(self.recipe.seed, step, self.global_rank))
        loss = self.objective(self.model, images, targets)
        for name, part in (("loss", loss.total.detach()), *loss.parts.items()):
            part = part.cpu().double()
            self.sums[name] = self.sums[name] + part if name in self.sums else part
        self.loss = float(loss.total.detach())
        return loss.total

    def _mixed(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if len(images) % 2:  # a damaged file was left out
            images, labels = images[1:], labels[1:]
        mixup = Mixup(
            self.recipe.mixup, self.recipe.cutmix, label_smoothing=self.recipe.label_smoothing, num_classes=self.classes
        )
        # One draw for the global batch: all ranks use the same key.
        with seeded(step_seed(self.recipe.seed, step, 0, MIX)):
            return mixup(images, labels)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        limit = self.recipe.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.gradient_norm = norm
        # Raised before the optimizer moves a weight, so the model and the last checkpoint stay good.
        if not (abs(norm) < float("inf") and abs(self.loss) < float("inf")):
            raise FoveateError(
                f"training that diverged at step {self.step + 1} (epoch {self.step // self.steps_per_epoch + 1}): "
                f"loss {self.loss}, gradient norm {norm}",
                "finite losses and gradients",
                f"lower lr (now {self.recipe.lr}) or lengthen warmup; checkpoints/last.ckpt holds the last good state",
            )
