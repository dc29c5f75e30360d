"""Starting weights: another run's, as they are or grown to smaller patches and more tokens."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn

from foveate.errors import FoveateError

GROW = "grow:"


def read_weights(run: str | Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run folder (or of a .safetensors file) as float32."""
    path = Path(run)
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FoveateError(
            f"{path}, which holds no weights ({type(error).__name__}: {error})",
            "a run folder with model.safetensors",
            "train that run first, or correct its path",
        ) from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def grow(state: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Load the weights of a twin with another patch size or image size into `model`.

    The patch embedding is resampled so that a patch and its enlarged self embed alike (FlexiViT, pseudo-inverse of the
    resize), position embeddings bicubically; all else must fit. Raises FoveateError where it does not.
    """
    own = model.state_dict()
    state = dict(state)
    kernel, position = "patch_embed.proj.weight", "pos_embed"
    if kernel in state and kernel in own and state[kernel].shape != own[kernel].shape:
        state[kernel] = resample_patch_embed(state[kernel], list(own[kernel].shape[-2:]))
    if position in state and position in own and state[position].shape != own[position].shape:
        grid = list(model.patch_embed.grid_size)
        prefix = own[position].shape[1] - math.prod(grid)
        state[position] = resample_abs_pos_embed(state[position], grid, num_prefix_tokens=prefix)
    load_weights(state, model)


def load_weights(state: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Load weights whose names and shapes all fit; raises FoveateError otherwise and leaves the model as it was."""
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) + sorted(
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    )
    if wrong:
        raise FoveateError(
            f"weights that do not fit {type(model).__name__} ({len(wrong)} differences: {', '.join(wrong[:4])})",
            "weights of the same architecture; with grow: patch and image size may differ",
            "create the model as the run's run.json names it",
        )
    model.load_state_dict(state)


def initialise(model: nn.Module, init: str | Path) -> None:
    """Give `model` the weights of a run: "RUN" as they are, "grow:RUN" resampled to the model's patches and positions."""
    if str(init).startswith(GROW):
        grow(read_weights(str(init).removeprefix(GROW)), model)
    else:
        load_weights(read_weights(init), model)
