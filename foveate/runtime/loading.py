"""From a model or a run folder to the engine that runs it."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.cascade import Cascade
from foveate.errors import FoveateError
from foveate.quantised import quantised
from foveate.runtime.cascade import CascadeMaker
from foveate.runtime.chooser import Chooser
from foveate.runtime.engine import Engine
from foveate.runtime.maker import Maker, check_precision, precisions_of
from foveate.runtime.openvino_backend import fast_rest
from foveate.runtime.staged_maker import maker_of
from foveate.store import load as load_model

PRECISIONS = ("fp32", "bf16", "int8")
INSTALL = {"openvino": "pip install 'foveate[openvino]'", "onnxruntime": "pip install 'foveate[onnx]'"}
NEEDS = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}
AUTO = ("torch", "openvino")  # torch-compile must be asked for: it compiles for a minute before it answers
SYNTHETIC_IMAGES = 16


def installed_backends() -> tuple[str, ...]:
    """Names that `backend` may take here, besides "auto"."""
    return ("torch", "torch-compile", *(name for name in INSTALL if all(map(find_spec, NEEDS[name]))))


def load(
    run: str | Path, backend: str = "auto", precision: str = "auto", example: Tensor | None = None, **settings
) -> Engine:
    """The engine of a run folder; arguments as in `load_engine`.

    example: images of the run's own kind to check on and to choose by; synthetic ones by default. What backend="auto" or
    precision="auto" chose stays in the run's engines.json with the machine it was measured on: the next load measures nothing.
    Raises FoveateError for a folder that does not load, and as `load_engine` does.
    """
    return load_engine(load_model(run), backend, precision, example, **{"run": run} | settings)


def load_engine(
    model: nn.Module,
    backend: str = "auto",
    precision: str = "auto",
    example: Tensor | None = None,
    *,
    batch: int | None = None,
    explain: bool = False,
    fallback: bool = False,
    labels: Tensor | None = None,
    calibration: Tensor | None = None,
    threads: int | None = None,
    tolerance: float | None = None,
    run: str | Path | None = None,
) -> Engine:
    """An engine for `model`, held against eager float32 on `example` before it is handed out.

    model: an AdaptiveModel, a Cascade (an engine for each effort, with the gates between them) or any image classifier; left
        untouched. Its weights are copied, later changes do not show.
    backend: "torch", "torch-compile", "openvino", "onnxruntime" (fp32), or "auto", the fastest of torch and openvino (onnxruntime
        where that is missing) at this batch size, measured.
    precision: "fp32", "bf16", "int8" (openvino), or "auto", the fastest that agrees. Models that were not trained with int8 are
        quantised here (NNCF), selectors and gates left wide, the rest in bf16 where the CPU has it; "auto" does so where it has images
        to calibrate on. Those that were trained with it (the recipe's quantise="int8") have no other in openvino; torch emulates it.
        What this CPU cannot compute in bf16 runs in fp32, with a warning and a line in `passed_over`.
    example: normalised images [B, C, H, W], of the data that will be used (at least one; some 16 are compared). Not needed for an
        AdaptiveModel. labels: their right answers [B]: then int8 is judged by the accuracy that it costs, at most 1 point.
    batch: images a call, by default as many as the example has. calibration: images to take 8-bit ranges from, by default the example.
    explain: print the table that "auto" chose from; `engine.choice` has it, too.
    fallback: run the same weights with nothing dropped where that is at least as fast at this batch and gives the plan's answers (see
        `runtime.fallback`); `engine.fallback` then has both figures.
    threads: of OpenVINO; torch's own number by default, which is set for the whole process by torch.set_num_threads.
    tolerance: largest logit difference as a share of the largest logit, of the median image where the plan takes decisions;
        by default 2e-3 for fp32 and 0.1 for bf16 and int8.
    run: the folder of the model, whose engines.json remembers what "auto" chose.

    Raises FoveateError for an unknown or missing backend or precision, a model that the backend cannot run, and logits that
    differ by more than the tolerance.
    """
    _check_names(backend, precision)
    real = example is not None or calibration is not None
    example = _checked_example(model, example, labels)
    batch = _checked_batch(batch, example)
    candidates, passed_over = _candidates(model, backend, precision, real)
    maker = (CascadeMaker if isinstance(model, Cascade) else maker_of)(model, example, threads, tolerance)
    for one in getattr(maker, "makers", [maker]):
        if isinstance(one, Maker):
            one.labels, one.calibration = labels, calibration
    if candidates == [(backend, precision)] and not (fallback or explain):
        engine = maker.engine(backend, precision)
    else:
        chosen = Chooser(model, maker, candidates, example, batch, fallback, threads, tolerance, labels)
        engine = chosen.engine(None if run is None else Path(run), backend, precision)
        if explain:
            print(engine.choice.table())
    engine.passed_over = passed_over | engine.passed_over
    if "int8" in engine.precision and not real and not quantised(model):
        engine.passed_over["calibration"] = "no images of the data: 8-bit ranges are those of synthetic ones"
        warnings.warn("int8 ranges were taken from synthetic images: pass example=... or calibration=... with images of the data", stacklevel=2)
    return engine


def synthetic_images(card, count: int = SYNTHETIC_IMAGES) -> Tensor:
    """Smooth seeded noise [count, C, H, W] with zero mean and unit deviation, the scale of normalised photographs."""
    size = tuple(card.image_size)
    coarse = torch.randn(count, card.in_chans, 5, 5, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return (images - images.mean()) / images.std()


def _candidates(model: nn.Module, backend: str, precision: str, real: bool) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(backend, precision) of the engines that come into question, and why others do not."""
    found, passed_over = [], {}
    there = installed_backends()
    auto = AUTO if "openvino" in there else ("torch", "onnxruntime")
    for one in auto if backend == "auto" else (backend,):
        able = precisions_of(one, model)
        kinds = able if precision == "auto" else (precision,)
        if one not in there or (backend == "auto" and not set(kinds) & set(able)):
            continue
        for kind in kinds:
            if kind == "bf16" and one == "openvino" and fast_rest() != "bf16":
                passed_over[f"{one} bf16"] = "this CPU has no bfloat16 products (AVX512-BF16 or AMX): it computes in float32"
                if precision == "bf16":
                    warnings.warn(f"openvino bf16: {passed_over['openvino bf16']}", stacklevel=3)
                    found.append((one, "fp32"))
            elif kind == "int8" and precision == "auto" and not real and not quantised(model):
                passed_over[f"{one} int8"] = "no images of the data to calibrate on: pass example=... or calibration=..."
            else:
                found.append((one, kind))
    if not found:
        check_precision("torch", precision, model)
    return found, passed_over


def _checked_batch(batch: int | None, example: Tensor) -> int:
    if batch is None:
        return len(example)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise FoveateError(given=f"batch={batch!r}", allowed="a whole number of images, at least 1", do="give the number of images that a call will have")
    return batch


def _checked_example(model: nn.Module, example: Tensor | None, labels: Tensor | None) -> Tensor:
    """The example, or synthetic images where the model says what it takes."""
    if labels is not None and (example is None or len(labels) != len(example)):
        raise FoveateError(
            given=f"{len(labels)} labels for {'no' if example is None else len(example)} example images",
            allowed="one label for each example image",
            do="pass example=images with labels=their classes",
        )
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
