"""Trainings that die and processes that share one: run as a program, because they kill themselves and fork.

    python scenarios.py FOLDER

Nothing is computed before the forks, so that no thread pool is copied half.
"""

import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from foveate.train import files, keeper
from foveate.train.data import load_data
from foveate.train.fit import DataSets, fit
from foveate.train.recipe import Recipe

# 4 epochs of 6 steps; everything random is on.
RECIPE = Recipe(
    epochs=4, batch_size=16, lr=2e-3, drop_path=0.2, augmentation="full", mixup=0.3, patch_drop=(0.5, 0.25), precision="32-true"
)
# What two processes can only share exactly: no noise inside the model.
SHARED = RECIPE.but(epochs=2, drop_path=0.0, patch_drop=(0.0,))


class Tiny(VisionTransformer):
    """A model that kills its process, as `kill -9` does, in its n-th training or evaluation pass."""

    def __init__(self, die_in_training: int = 0, die_in_evaluation: int = 0):
        super().__init__(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=10)
        self.left = {True: die_in_training, False: die_in_evaluation}

    def forward(self, images):
        self.left[self.training] -= 1
        if self.left[self.training] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


def sets() -> DataSets:
    train, test = load_data("digits", "train"), load_data("digits", "test")
    return DataSets(train.subset(range(100)), train.subset(range(100, 130)), test.subset(range(20)))


def train(out: Path, recipe: Recipe = RECIPE, model: Tiny | None = None, **options) -> None:
    torch.manual_seed(0)
    model = model or Tiny()
    fit(model, out, sets(), recipe, resume=True, device="cpu", checkpoint_steps=4, progress=False, **options)


def die_in_training(out: Path) -> None:
    """Passes of steps 1-8 end, a checkpoint is written after step 8 of 24; dies in step 9, in the middle of epoch 2."""
    torch.manual_seed(0)
    train(out, model=Tiny(die_in_training=9))


def die_at_the_end_of_an_epoch(out: Path) -> None:
    """Resumes at step 8 and dies after the last step of epoch 2, in its validation."""
    torch.manual_seed(0)
    train(out, model=Tiny(die_in_evaluation=1))


def die_before_the_checkpoint(out: Path) -> None:
    """Resumes at step 8 and dies between the metrics of epoch 2 and its checkpoint, of which half is written."""

    def half(path, state):
        if state["step"] == 12:
            path.with_name(f".last.ckpt.{os.getpid()}.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        files.write_checkpoint(path, state)

    keeper.write_checkpoint = half
    train(out)


def die_before_saving(out: Path) -> None:
    """Finishes training but dies in the test, before the model counts as complete."""
    torch.manual_seed(0)
    train(out, model=Tiny(die_in_evaluation=3))


def share(out: Path, rank: int, port: int) -> None:
    """One of two processes, as torchrun starts them."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    train(out, SHARED, devices=2)


def start(function, *arguments) -> int:
    process = os.fork()
    if process:
        return process
    try:
        torch.set_num_threads(1)
        function(*arguments)
    except BaseException:  # noqa: BLE001  (a fork must never return into the parent's code)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def end(process: int) -> str:
    status = os.waitpid(process, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(share, folder / "two", rank, port) for rank in (0, 1)]
    print("two", *map(end, pair))
    print("one", end(start(train, folder / "one", SHARED)))
    print("whole", end(start(train, folder / "whole")))
    for death in (die_in_training, die_at_the_end_of_an_epoch, die_before_the_checkpoint, die_before_saving, train):
        print(death.__name__, end(start(death, folder / "killed")), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
