"""From a model or a run folder to the engine that runs it."""

import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.cascade import Cascade
from foveate.errors import FoveateError
from foveate.runtime.cascade import CascadeMaker
from foveate.runtime.engine import Engine
from foveate.runtime.maker import precisions_of
from foveate.runtime.staged_maker import maker_of
from foveate.store import load as load_model

PRECISIONS = ("fp32", "bf16", "int8")
INSTALL = {"openvino": "pip install 'foveate[openvino]'", "onnxruntime": "pip install 'foveate[onnx]'"}
NEEDS = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}
AUTO = ("torch", "openvino")  # torch-compile must be asked for: it compiles for a minute before it answers
SYNTHETIC_IMAGES = 16
ROUNDS = 5


def installed_backends() -> tuple[str, ...]:
    """Names that `backend` may take here, besides "auto"."""
    return ("torch", "torch-compile", *(name for name in INSTALL if all(map(find_spec, NEEDS[name]))))


def load(
    run: str | Path, backend: str = "auto", precision: str = "auto", example: Tensor | None = None, **settings
) -> Engine:
    """The engine of a run folder; arguments as in `load_engine`.

    example: images of the run's own kind to check on and to choose by; synthetic ones by default.
    Raises FoveateError for a folder that does not load, and as `load_engine` does.
    """
    model = load_model(run)
    return load_engine(model, backend, precision, synthetic_images(model.card) if example is None else example, **settings)


def load_engine(
    model: nn.Module,
    backend: str = "auto",
    precision: str = "auto",
    example: Tensor | None = None,
    *,
    threads: int | None = None,
    tolerance: float | None = None,
) -> Engine:
    """An engine for `model`, held against eager float32 on `example` before it is handed out.

    model: an AdaptiveModel, a Cascade (an engine for each effort, with the gates between them) or any image classifier; left
        untouched. Its weights are copied, later changes do not show.
    backend: "torch", "torch-compile", "openvino", "onnxruntime" (fp32), or "auto", the fastest of torch and openvino at this batch size,
        measured.
    precision: "fp32", "bf16", "int8", or "auto", the fastest that agrees. "int8" is for models trained with it (the recipe's
        quantise="int8"), and the only one of openvino for them; torch only emulates it, in fp32 or bf16.
    example: normalised images [B, C, H, W], of the data and of the batch size that will be used (at least one; some 16 are
        compared). Not needed for an AdaptiveModel.
    threads: of OpenVINO; torch's own number by default, which is set for the whole process by torch.set_num_threads.
    tolerance: largest logit difference as a share of the largest logit, of the median image where the plan takes decisions;
        by default 2e-3 for fp32 and 0.1 for bf16 and int8.

    Raises FoveateError for an unknown or missing backend or precision, a model that the backend cannot run, and logits that
    differ by more than the tolerance.
    """
    _check_names(backend, precision)
    example = _checked_example(model, example)
    candidates = [
        (one, kind)
        for one in (AUTO if backend == "auto" else (backend,))
        for kind in (precisions_of(one, model) if precision == "auto" else (precision,))
        if one in installed_backends()
    ]
    maker = (CascadeMaker if isinstance(model, Cascade) else maker_of)(model, example, threads, tolerance)
    engines, refused = [], {}
    for one, kind in candidates:
        try:
            engines.append(maker.engine(one, kind))
        except FoveateError as error:
            if len(candidates) == 1:
                raise
            refused[f"{one} {kind}"] = error
    if not engines:
        raise next(iter(refused.values()))
    best, passed_over = _fastest(engines, example)
    best.passed_over = passed_over | {name: error.given for name, error in refused.items()}
    return best


def synthetic_images(card, count: int = SYNTHETIC_IMAGES) -> Tensor:
    """Smooth seeded noise [count, C, H, W] with zero mean and unit deviation, the scale of normalised photographs."""
    size = tuple(card.image_size)
    coarse = torch.randn(count, card.in_chans, 5, 5, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return (images - images.mean()) / images.std()


def _fastest(engines: list[Engine], example: Tensor) -> tuple[Engine, dict[str, str]]:
    """The engine with the least median time over a few interleaved calls, and the others' times in words."""
    batch = min([len(example), *(e.max_batch for e in engines if e.max_batch and all(o.max_batch for o in engines))])
    able = [engine for engine in engines if engine.max_batch is None or batch <= engine.max_batch]
    passed_over = {e.name: f"takes {e.max_batch} image at once, {batch} were asked for" for e in engines if e not in able}
    if len(able) == 1:
        return able[0], passed_over
    times: dict[str, list[float]] = {engine.name: [] for engine in able}
    for _ in range(ROUNDS):
        for engine in able:
            start = time.perf_counter()
            engine(example[:batch]).cpu()  # waits for an accelerator
            times[engine.name].append(1000 * (time.perf_counter() - start) / batch)
    ms = {name: statistics.median(values) for name, values in times.items()}
    best = min(able, key=lambda engine: ms[engine.name])
    slower = {name: f"{ms[name]:.2f} ms an image against {ms[best.name]:.2f}" for name in ms if name != best.name}
    return best, passed_over | slower


def _checked_example(model: nn.Module, example: Tensor | None) -> Tensor:
    """The example, or synthetic images where the model says what it takes."""
    if example is None and hasattr(model, "card"):
        return synthetic_images(model.card)
    if example is None or example.dim() != 4 or len(example) == 0:
        raise FoveateError(
            given="no example images" if example is None else f"an example of shape {list(example.shape)}",
            allowed="normalised images [batch, channels, height, width], at least one",
            do="pass example=images, a batch like those that the engine will see",
        )
    return example


def _check_names(backend: str, precision: str) -> None:
    installed = ("auto", *installed_backends())
    if backend not in installed:
        missing = backend in INSTALL
        raise FoveateError(
            given=f"backend={backend!r}" + (", which is not installed" if missing else ""),
            allowed=", ".join(installed),
            do=INSTALL[backend] if missing else f'choose one of these, such as backend="{installed[-1]}"',
        )
    if precision not in ("auto", *PRECISIONS):
        raise FoveateError(
            given=f"precision={precision!r}",
            allowed=", ".join(("auto", *PRECISIONS)),
            do='choose one of these, such as precision="bf16"',
        )
