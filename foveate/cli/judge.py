"""eval and predict: how often a model is right, and what it sees in a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, bar, note, table, waiting
from foveate.cli.engines import Backend, Explain, Fallback, Precision, accuracy, described, engine_of, explained, predictions
from foveate.cli.options import (
    BatchSize,
    BudgetMj,
    BudgetMs,
    Data,
    DataDir,
    Device,
    EnergyTarget,
    Json,
    Lenient,
    Limit,
    ModelOrRun,
    PlanText,
    Pretrained,
    Split,
    Strict,
    Weights,
)
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.cascade import Cascade
    from foveate.trace import Trace


def evaluate(
    model_or_run: ModelOrRun,
    plan: PlanText = None,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = "test",
    limit: Limit = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    trace: Annotated[bool, typer.Option("--trace", help="Write trace.json (tokens of each image after each stage) into the run, or into --out.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Folder for trace.json. Default: the run.")] = None,
    fixed_point: Annotated[
        int | None,
        typer.Option(metavar="BITS", show_default=False, help="Also judge the model as fixed-point hardware of so many bits would run it (16 on SPViT's board)."),
    ] = None,
    batch_size: BatchSize = 250,
    budget_ms: BudgetMs = None,
    budget_mj: BudgetMj = None,
    target_of_energy: EnergyTarget = None,
    lenient: Lenient = False,
    backend: Backend = None,
    precision: Precision = None,
    explain: Explain = False,
    device: Device = "auto",
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Evaluate accuracy, live tokens and MACs.

    Accuracy comes with half its 95 % interval; tokens and MACs are means over the images, from the trace of what really ran. Of a cascade
    it says which effort answers how many images, and how many of them rightly. --budget-ms is for each batch of --batch-size images.
    """
    from foveate.cli.targets import open_model, plan_of, target_of, untrained

    with answering(json) as answer:
        target = target_of(model_or_run)
        chosen = plan_of(target, plan)
        folder = _trace_folder(target, out) if trace else None
        with waiting("loading the model"):
            from foveate.cli.images import images_for

            model = open_model(target, chosen, weights, pretrained)
            images = images_for(target, model, data, data_dir, split, strict, limit)
        if untrained(target, chosen):
            note(f"the selectors of {', '.join(untrained(target, chosen))} are untrained: their choices are arbitrary; train them with `foveate adapt`")
        result, seen = judged(model, images, batch_size, device, budgets_of(budget_ms, budget_mj, target_of_energy, lenient))
        if folder is not None:
            from foveate.train.files import write_text

            write_text(folder / "trace.json", seen.to_json())
        answer.data = {
            "model": model.card.name, "run": target.folder, "plan": str(chosen), "data": images.name, "split": split,
            "images": result["n"], **{k: v for k, v in result.items() if k not in ("n", "correct")}, "trace": None if folder is None else folder / "trace.json",
        }  # fmt: skip
        if fixed_point is not None:
            answer.data |= _in_fixed_point(target, model, images, fixed_point, data, data_dir, batch_size, device)
        engine = engine_of(target, chosen, model.cpu(), batch_size, backend, precision) if backend or precision or explain else None
        if engine is not None:
            answer.data |= accuracy(engine, images, batch_size)
        saved = 100 * result["macs"] / result["macs_dense"]
        answer.facts({
            "model": model.card.name, "plan": chosen, "data": f"{images.name}, {split}, {result['n']:,} images",
            "accuracy": f"{result['accuracy_percent']:.2f} % ± {result['uncertainty_percent']:.2f}",
            f"in {fixed_point} bits": f"{answer.data['accuracy_percent_fixed_point']:.2f} %" if fixed_point else "",
            f"in {engine.name}" if engine else "": f"{answer.data['accuracy_percent_engine']:.2f} %" if engine else "",
            "tokens": ", ".join(f"{mean:.1f} after block {block}" for mean, block in zip(seen.tokens_mean, seen.after)),
            "efforts": _efforts(result.get("efforts", [])), "exits": _exits(result.get("exits", [])),
            "budget": f"{result['short']:,} images left before they were sure" if "short" in result else "",
            "GMACs": f"{result['macs'] / 1e9:.4g}" + (f", {saved:.1f} % of the dense {result['macs_dense'] / 1e9:.4g}" if str(chosen) != "dense" else ""),
            "skipped": f"{len(result['skipped'])} damaged files" if result["skipped"] else "", "trace": folder and folder / "trace.json",
        })  # fmt: skip
        answer.shown += explained(engine) if explain else []


def _in_fixed_point(target, model: AdaptiveModel, images, bits: int, data, data_dir, batch_size: int, device: str) -> dict[str, Any]:
    """Accuracy of the same model with rounded weights and layer outputs, their ranges taken from 64 training images."""
    from foveate.cli.images import images_for
    from foveate.emulation import emulate

    if not hasattr(model, "anatomy"):
        raise FoveateError(f"--fixed-point for the cascade {target.text}", "one model", "judge each effort by itself: its sub-runs effort-1, effort-2, ...")
    seen = images_for(target, model, data, data_dir, "train", limit=64)
    result, _ = judged(emulate(model.cpu(), seen.batch(range(len(seen))).images, bits), images, batch_size, device)
    return {"bits": bits, "accuracy_percent_fixed_point": result["accuracy_percent"]}


def predict(
    model_or_run: ModelOrRun,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", show_default=False, help="PNG, JPEG or other image files of any size and colour mode.")],
    plan: PlanText = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Classes shown for each image, the likeliest first.")] = 5,
    budget_ms: BudgetMs = None,
    budget_mj: BudgetMj = None,
    target: EnergyTarget = None,
    lenient: Lenient = False,
    backend: Backend = None,
    precision: Precision = None,
    explain: Explain = False,
    fallback: Fallback = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Predict the class of image files; a folder that `foveate export` wrote predicts as well.

    Each is resized and normalised as the model was trained; transparency is ignored, and a photo is turned upright. With a budget each is a
    call of its own, and the answer says after which block (by which effort) it came and whether it was for want of budget.
    """
    with answering(json) as answer:
        budgets = budgets_of(budget_ms, budget_mj, target, lenient)
        wanted = (backend, precision, fallback) if backend or precision or explain or fallback else None
        about, names, transform, pictures, run, engine = _reader(model_or_run, images, plan, weights, pretrained, device, budgets, wanted)
        answers = run([transform(picture) for picture in pictures])
        answer.data = {**about, "predictions": []}
        shown = table("image", *(f"{rank + 1}." for rank in range(min(top, len(names)))), left=1 + top, paths=True)
        for path, (chances, tokens, effort, *more) in zip(images, answers):
            best = sorted(range(len(names)), key=lambda index: -chances[index])[:top]
            ranked = [{"class": names[index], "index": index, "probability_percent": 100 * chances[index]} for index in best]
            answer.data["predictions"].append({"image": path, "top": ranked, "tokens": tokens} | ({"effort": effort} if effort else {}) | (more[0] if more else {}))
            shown.add_row(str(path), *(f"{one['class']} {one['probability_percent']:.1f} %" for one in ranked))
        answer.shown = [shown, *(explained(engine) if explain else ())]
        if short := sum(one.get("short", False) for one in answer.data["predictions"]):
            answer.shown.append(f"{short} of {len(pictures)} images left before they were sure: their budget could not pay for more")


def _efforts(rows: list[dict[str, Any]]) -> str:
    """Which effort answers how much, and how well, in words."""
    said = []
    for row in rows:
        right = f" ({100 * row['correct_percent'] / row['answered_percent']:.1f} % of them rightly)" if row["answered_percent"] else ""
        said.append(f"{row['effort']} answers {row['answered_percent']:.1f} %{right}")
    return ", ".join(said)


def _exits(rows: list[dict[str, Any]]) -> str:
    """How many images leave where, in words."""
    return ", ".join(f"{row['left_percent']:.1f} % after block {row['block']}" for row in rows if row["left_percent"])


def judged(model: AdaptiveModel | Cascade, images, batch_size: int = 250, device: str = "auto", budgets: dict[str, Any] | None = None) -> tuple[dict[str, Any], Trace]:
    """What `train.evaluate` says of a model, with tokens_mean, keep_rates, macs, macs_dense and params, and the whole trace.

    Of a cascade also which effort answered how many images, and how many rightly; macs_dense is then its highest effort's backbone. Of a plan
    with early exits, how many images left at each, and how many of them rightly. budgets: as AdaptiveModel.traced takes them.
    """
    from foveate.counting import count
    from foveate.efforts import Answered
    from foveate.exit_stats import left_at
    from foveate.trace import Trace
    from foveate.train.evaluate import evaluate

    traces: list[Trace] = []

    def traced(batch):
        logits, trace = model.traced(batch, **(budgets or {}))
        traces.append(trace)
        return logits

    model.to(chosen_device(device)).eval()
    with bar("evaluating") as progress:
        result = evaluate(traced, images, batch_size, chosen_device(device), progress)
    trace = Trace.concatenate(traces)
    with waiting("counting"):
        ledger = count(model, trace=trace)
    figures = {"tokens_mean": trace.tokens_mean, "keep_rates": trace.keep_rates, "macs": ledger.macs}
    if trace.rescued:
        figures["rescued"] = len(trace.rescued)
        note(f"a stage wanted no patch of {len(trace.rescued):,} of {trace.images:,} images; their best-scored patch stayed")
    if budgets:
        figures |= {name: budgets[name] for name in ("budget_ms", "budget_mj") if budgets[name] is not None} | {"short": len(trace.short)}
    if trace.exits:
        figures["exits"] = left_at(trace, result["correct"], model.exit_blocks)
    if trace.efforts and hasattr(model, "efforts"):
        found = Answered.of(trace, result["correct"], len(model.efforts))
        figures |= found.to_dict()
        for number, images_without in enumerate(found.nan, 1):
            if images_without:
                note(f"effort {number} gave NaN logits for {images_without} images; they counted as hard")
    return result | figures | {"macs_dense": count(model.card).macs, "params": ledger.params}, trace


def chosen_device(device: str) -> str:
    """`device` with auto resolved. Raises FoveateError for another word, and for cuda where there is none."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise FoveateError(f"--device {device}", "auto, cpu or cuda", "choose one of these")
    if device == "cuda" and not torch.cuda.is_available():
        raise FoveateError("--device cuda on a machine without one", "auto or cpu here", "leave out --device")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def budgets_of(budget_ms: float | None, budget_mj: float | None, target: str | None, lenient: bool) -> dict[str, Any]:
    """The budgets of the command line as AdaptiveModel.traced takes them; empty without any."""
    if budget_ms is None and budget_mj is None:
        return {}
    return {"budget_ms": budget_ms, "budget_mj": budget_mj, "target": target, "strict": not lenient}


def _reader(text: str, images: list[Path], plan: str | None, weights: Path | None, pretrained: bool, device: str, budgets: dict[str, Any], wanted):
    """What the named model is, its class names, picture -> input, the pictures, inputs -> answers, and the engine if one is `wanted`."""
    from foveate.cli.targets import open_model, plan_of, target_of

    if (Path(text) / "artifact.json").is_file():
        from foveate.cli.export import artifact_reader
        from foveate.cli.images import read_picture

        if budgets:
            raise FoveateError(f"a budget for the artifact {text}", "a budget for a run", "give the run it was exported from; in Python its engine takes budget_ms")
        if wanted:
            raise FoveateError(f"a choice of engine for the artifact {text}", "an artifact in the backend it was exported for", "give the run it was exported from instead")
        if plan or weights or pretrained:
            raise FoveateError(f"another plan or other weights for the artifact {text}", "an artifact with its own", "give the run it was exported from instead")
        with waiting("loading the artifact"):
            about, names, transform, run = artifact_reader(Path(text))
            return about, names, transform, [read_picture(path) for path in images], run, None
    target = target_of(text)
    chosen = plan_of(target, plan)
    with waiting("loading the model"):
        from foveate.cli.images import class_names, preprocessing_for, read_picture

        pictures = [read_picture(path) for path in images]
        model = open_model(target, chosen, weights, pretrained)
        about = {"model": model.card.name, "run": target.folder, "plan": str(chosen)}
        reader = (class_names(target, model), preprocessing_for(target, model).transform(None), pictures)
    if not wanted:
        return about, *reader, partial(_predictions, model, device, budgets), None
    if budgets:
        raise FoveateError("a budget and a choice of engine", "one of the two", "leave out --backend, or give the budget in Python: engine(images, budget_ms=...)")
    backend, precision, fallback = wanted
    engine = engine_of(target, chosen, model, min(len(pictures), 32), backend, precision, fallback)
    return about | described(engine), *reader, partial(predictions, engine), engine


def _predictions(model: AdaptiveModel | Cascade, device: str, budgets: dict[str, Any], inputs: list) -> list[tuple[list[float], list[int], int | None, dict]]:
    """Probabilities of all classes, tokens after each stage, (of a cascade) the effort that answered, and what a budget did, image by image."""
    import torch

    place = chosen_device(device)
    model.to(place).eval()
    answers = []
    with bar("predicting") as progress, torch.inference_mode():
        step = 1 if budgets else 32  # a budget of time is one call's
        for start in range(0, len(inputs), step):
            logits, trace = model.traced(torch.stack(inputs[start : start + step]).to(place), **budgets)
            tokens = zip(*trace.tokens) if trace.tokens else [()] * len(logits)
            left = [{"exit": block} for block in trace.exits] or [{} for _ in range(len(logits))]
            if budgets:
                left = [one | {"short": image in trace.short} for image, one in enumerate(left)]
            answers += zip(logits.float().softmax(-1).tolist(), map(list, tokens), trace.efforts or [None] * len(logits), left)
            progress(len(answers), len(inputs))
    return answers


def _trace_folder(target, out: Path | None) -> Path:
    if out is not None:
        return out
    if target.folder is None or target.embedded:
        raise FoveateError(f"--trace for {target.text}, which has no folder of its own", "--trace with a run, or with --out", "add --out FOLDER")
    return target.folder
