"""The progress bar of a training."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class StepsBar(TQDMProgressBar):
    """A bar over all steps of this call, with the epoch and the loss."""

    def init_train_tqdm(self):
        bar = super().init_train_tqdm()
        bar.set_description("training")
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *_) -> None:
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.initial = 0
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict:
        epoch = min(module.recipe.epochs, module.step // module.steps_per_epoch + 1)
        return {"epoch": f"{epoch}/{module.recipe.epochs}", "loss": f"{module.loss:.3f}"}


def progress_callbacks(shown: bool) -> list[Callback]:
    """Return the bar where it is wanted."""
    return [StepsBar(refresh_rate=1, leave=True)] if shown else []
