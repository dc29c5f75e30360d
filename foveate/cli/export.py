"""export: a run as a folder that runs without foveate; and how such folders answer `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, note, waiting
from foveate.cli.options import Data, DataDir, Json, ModelOrRun, PlanText, Pretrained, Threads, Weights
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.cli.targets import Target

# Of a run's run.json, what says where the weights come from.
_ORIGIN = ("command", "model", "init", "data", "train_images", "seed", "started", "versions", "test", "accuracy_percent")


def export(
    model_or_run: ModelOrRun,
    to: Annotated[str, typer.Option("--to", metavar="KIND", help="onnx, openvino, torch (torch.export), or ort (ONNX Runtime on phones and boards).")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Default: a folder named by KIND inside the run, beside you for what is embedded.")
    ] = None,
    plan: PlanText = None,
    precision: Annotated[
        str, typer.Option(metavar="PRECISION", help="fp32; bf16 (openvino, torch); int8 (onnx, ort, openvino).")
    ] = "fp32",
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default=False, help="Fix the batch size. Default: any; one where images keep unequal counts.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, metavar="SHARE", show_default=False, help="Largest logit difference, as a share. Default: 0.002 (fp32), 0.1 (bf16, int8)."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Images on which the artifact is held against torch in float32.")] = 32,
    data: Data = None,
    data_dir: DataDir = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Export a run as a folder that runs without foveate.

    The folder holds the graph, artifact.json (preprocessing, labels, plan, digests, and how far its logits lie from torch's in float32) and
    README.txt with the lines that run it. The graph is loaded back from its file and compared on images of the run's own data (validation
    split), on synthetic ones where the data are unknown. Beyond the tolerance nothing is written.

    Plans with fixed token counts take any number of images at once, others one. A cascade becomes one graph an effort.
    """
    from foveate.cli.targets import open_model, plan_of, target_of

    with answering(json) as answer:
        target = target_of(model_or_run)
        chosen = plan_of(target, plan)
        with waiting("loading the model"):
            from dataclasses import asdict

            from foveate.cli.images import class_names, preprocessing_for
            from foveate.runtime import export as written
            from foveate.runtime.int8 import CALIBRATED_ON

            model = open_model(target, chosen, weights, pretrained)
            seen, right, source = _images(target, model, data, data_dir, "validation", images)
            ranges = _images(target, model, data, data_dir, "train", CALIBRATED_ON)[0] if (to, precision) == ("openvino", "int8") else None
        folder = out or _folder(target, to if precision == "fp32" else f"{to}-{precision}")
        with waiting(f"exporting to {to}"):
            made = written(
                model, folder, to, precision, seen, source=source, answers=right, calibration=ranges, batch=batch, tolerance=tolerance, threads=threads,
                preprocessing=asdict(preprocessing_for(target, model)), labels=class_names(target, model), provenance=_origin(target),
            )  # fmt: skip
        size = sum(path.stat().st_size for path in folder.iterdir())
        answer.data = {"artifact": folder, "run": target.folder, "bytes": size, **{k: v for k, v in made.data.items() if k not in ("plan_form", "versions")}}
        answer.facts(_facts(made.data, folder, size, source))


def _facts(data: dict[str, Any], folder: Path, size: int, source: str) -> dict[str, Any]:
    parity, decisions = data["parity"], data["parity"].get("decisions")
    kept = "" if decisions is None else "equal for every image" if decisions["equal"] else ", ".join(
        f"{100 * stage['overlap']:.1f} % of the patches after block {stage['after']}" for stage in decisions["stages"])
    lost = "" if parity["lost_percent"] is None else f", {-parity['lost_percent']:+.1f} points of accuracy"
    return {
        "artifact": f"{folder} ({size / 1e6:.1f} MB)", "model": data["backbone"], "plan": data["plan"],
        "backend": f"{data['backend']} {data['precision']}", "batch": "any" if data["batch"] == "dynamic" else data["batch"],
        "GMACs": f"{data['macs'] / 1e9:.4g} of the dense {data['macs_dense'] / 1e9:.4g}",
        "logits": f"differ by {parity['worst']:.1e} of the largest at most",
        "answers": f"the same for {parity['same_answer_percent']:.1f} % of {parity['images']} images{lost}",
        "decisions": kept, "compared on": source, "use": f"foveate predict {folder} picture.png, or the lines in {folder / 'README.txt'}",
    }  # fmt: skip


def artifact_reader(folder: Path) -> tuple[dict[str, Any], list[str], Any, Any]:
    """What `predict` needs of an artifact: what it is, class names, picture -> tensor, and tensors -> (chances, tokens, effort) each."""
    import json

    import torch

    from foveate.runtime import load_artifact, read_artifact
    from foveate.train.preprocessing import Preprocessing

    data, engine = read_artifact(folder).data, load_artifact(folder)

    def answers(inputs: list[Tensor]) -> list[tuple[list[float], list[int], None]]:
        chances = [engine(torch.stack(inputs[start : start + 32])).softmax(-1) for start in range(0, len(inputs), 32)]
        return [(one, [], None) for one in torch.cat(chances).tolist()]

    about = {"model": data["backbone"], "run": folder, "plan": data["plan"], "backend": engine.backend, "precision": engine.precision}
    return about, list(map(str, data["labels"])), Preprocessing.from_json(json.dumps(data["preprocessing"])).transform(None), answers


def _images(target: Target, model, data: str | None, data_dir: Path | None, split: str, count: int) -> tuple[Tensor, Tensor | None, str]:
    """Normalised images of a split, their classes, and what they are in words; synthetic ones without classes where the data are unknown."""
    from foveate.cli.images import images_for
    from foveate.runtime.loading import synthetic_images

    if data or data_dir or target.embedded or target.record().get("data"):
        try:
            found = images_for(target, model, data, data_dir, split, limit=count)
            batch = found.batch(range(len(found)))
            return batch.images, batch.labels, f"{found.name}, {split}, {len(found)} images"
        except FoveateError as error:
            if data or data_dir:
                raise
            note(f"compared on synthetic images: {error.given}")
    return synthetic_images(model.card, count), None, f"{count} synthetic images"


def _folder(target: Target, name: str) -> Path:
    if target.folder is None or target.embedded:
        return Path(f"{Path(target.text).name}-{name}")
    return target.folder / name


def _origin(target: Target) -> dict[str, Any]:
    """Where the weights come from: of run.json, or of the card of what is embedded."""
    import json

    record, card = target.record(), target.folder and target.folder / "card.json"
    if card and not record and card.is_file():
        record = json.loads(card.read_text(encoding="utf-8"))
    return {"run": target.text, **{key: record[key] for key in _ORIGIN if key in record}}
