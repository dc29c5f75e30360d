"""The main job: a trained SPViT on real images, evaluated, timed, fine-tuned live and written up, every figure measured here."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt, replan
from foveate.counting import count
from foveate.embedded import embedded_run
from foveate.insight import pixels_of, token_counts, token_grid
from foveate.measure.clock import Timing, interleave
from foveate.machine import machine, package_versions
from foveate.methods import SPViT
from foveate.plan import Plan
from foveate.report import Made, Results, Row, save_results, terminal_table, write_report
from foveate.runtime import Engine, load_engine
from foveate.store import load
from foveate.trace import Trace
from foveate.train.base import create_base
from foveate.train.data import load_data
from foveate.train.evaluate import binomial_uncertainty
from foveate.train.fit import DataSets, fit
from foveate.train.recipe import RECIPES

BATCHES = (1, 16)
SEED = 0


@dataclass
class Candidate:
    """One line of the demo: a model, what it got right, and the trace of how it did so."""

    name: str
    model: AdaptiveModel
    correct: np.ndarray
    trace: Trace

    @property
    def dense(self) -> bool:
        return not self.model.plan.methods


def run_demo(out: Path, quick: bool = False, console: Console | None = None) -> Results:
    """Runs the demo, writes report.html and results.json into `out`, prints the table, and returns the results.

    quick: a tenth of the images and rounds, to see that everything runs; the report says so.
    """
    console = console or Console(stderr=True)
    started, clock = datetime.now().astimezone().isoformat(timespec="seconds"), time.perf_counter()
    torch.manual_seed(SEED)
    test = load_data("fashion-mnist-subset", "test")
    test = test.subset(np.arange(200)) if quick else test
    console.print(f"[bold]foveate demo[/]: foveate_nano on {len(test):,} test photos of Fashion-MNIST")
    base = create_base("foveate_nano", classes=10, pretrained=True).eval()
    trained, diced = load(embedded_run("spvit-nano")), load(embedded_run("random-nano"))
    with _progress(console) as progress:
        candidates = _evaluate_all(base, trained, diced, test, progress)
        rows = _measure_all(candidates, test, progress, rounds=5 if quick else 25)
    fresh = _fine_tune(out, test, console, quick)
    spvit = next(c for c in candidates if c.name == "spvit argmax")
    shown = _shown(test, 8)
    images = test.batch(shown).images
    labels = tuple(test.classes[int(test.labels[i])] for i in shown)
    some = Trace(len(shown), kept=[k[shown] for k in spvit.trace.kept], after=spvit.trace.after)
    results = Results(
        title="foveate demo: a Vision Transformer that looks harder only where it pays",
        sentence=_sentence(candidates, rows), rows=tuple(rows), machine=machine(),
        made=Made("foveate demo" + (" --quick" if quick else ""), round(time.perf_counter() - clock, 1), started, (SEED,), package_versions()),
        grids=(token_grid(spvit.model, some, pixels_of(test, images), "What SPViT keeps, image by image (argmax)", labels),),
        counts=(token_counts(spvit.model, spvit.trace, spvit.name),), notes=(*_notes(candidates, len(test)), fresh))
    save_results(out, results)
    page = write_report(out / "report.html", results)
    console.print(terminal_table(results.rows, width=console.width))
    console.print(results.sentence)
    console.print(fresh)
    console.print(f"report: [link=file://{page.resolve()}]{page}[/link] ({time.perf_counter() - clock:.0f} s)")
    return results


def _evaluate_all(base, trained: AdaptiveModel, diced: AdaptiveModel, test, progress: Progress) -> list[Candidate]:
    config = trained.plan.find("spvit")
    argmax = replan(trained, Plan([replace(config, select="argmax")]))
    topk = replan(trained, Plan([replace(config, select="topk")]))
    jobs: list[tuple[str, AdaptiveModel, Candidate | None]] = [
        ("dense", adapt(base, Plan()), None), ("spvit argmax", argmax, None), ("spvit topk", topk, None), ("random", diced, None)]
    done = [_evaluate(name, model, test, progress) for name, model, _ in jobs]
    # The fair twin of argmax: the random run's weights, each image with SPViT's own count at random places.
    counts = done[1].trace.shuffled(SEED)
    done.append(_evaluate("random, argmax's counts", diced, test, progress, counts))
    return done


@torch.inference_mode()
def _evaluate(name: str, model: AdaptiveModel, test, progress: Progress, decisions: Trace | None = None) -> Candidate:
    task = progress.add_task(f"evaluate {name}", total=len(test))
    right, traces, size = [], [], 100
    for start in range(0, len(test), size):
        index = np.arange(start, min(start + size, len(test)))
        batch = test.batch(index)
        given = None if decisions is None else Trace(len(index), kept=[k[index] for k in decisions.kept], after=decisions.after)
        logits, trace = model.traced(batch.images, given)
        right.append((logits.argmax(1) == batch.labels).numpy())
        traces.append(trace)
        progress.update(task, advance=len(index))
    return Candidate(name, model, np.concatenate(right), Trace.concatenate(traces))


def _measure_all(candidates: list[Candidate], test, progress: Progress, rounds: int) -> list[Row]:
    """Rows for the fastest backend and, where per-image counts need it, for torch; each against its own dense model."""
    timed = [c for c in candidates if c.name != "random, argmax's counts"]
    images = test.batch(np.arange(64)).images
    fastest = load_engine(timed[0].model, "auto", "bf16", images[:16])  # 8 bits would first have to be calibrated, for each model
    rows: list[Row] = []
    for backend, precision in dict.fromkeys([(fastest.backend, fastest.precision), ("torch", fastest.precision)]):
        here = timed if backend == fastest.backend else [c for c in timed if c.dense or c.model.plan.data_dependent]
        engines = {c.name: load_engine(c.model, backend, precision, images[:16]) for c in here}
        timings = {batch: _time(engines, batch, images, progress, rounds) for batch in BATCHES}
        rows += [_row(c, {b: t[c.name] for b, t in timings.items() if c.name in t}, backend, precision) for c in here]
    return rows + [_row(c, {}, "", "") for c in candidates if c not in timed]


def _time(engines: dict[str, Engine], batch: int, images: torch.Tensor, progress: Progress, rounds: int) -> dict[str, Timing]:
    """Interleaved timings at one batch size; engines that take fewer images at once are left out."""
    able = {name: engine for name, engine in engines.items() if engine.max_batch is None or batch <= engine.max_batch}
    task = progress.add_task(f"time {engines['dense'].name}, batch {batch}", total=None)
    return interleave({name: _turning(engine, images, batch) for name, engine in able.items()}, rounds, warmup=4, images=batch,
                      baseline="dense", progress=lambda done, total: progress.update(task, completed=done, total=total))


def _turning(engine, images: torch.Tensor, batch: int) -> Callable[[], object]:
    """A call that takes other images each time, so that per-image counts are averaged over images."""
    state = {"at": 0}

    def run() -> None:
        at = state["at"]
        state["at"] = (at + batch) % (len(images) - batch + 1)
        engine(images[at:at + batch])

    return run


def _row(c: Candidate, timings: dict[int, Timing], backend: str, precision: str) -> Row:
    ledger = count(c.model, trace=c.trace)
    judged = {} if c.dense else timings
    return Row(
        plan=c.name, macs=ledger.macs, params=ledger.params, accuracy_percent=100 * float(c.correct.mean()),
        accuracy_error=100 * binomial_uncertainty(int(c.correct.sum()), len(c.correct)) / 1.96, tokens_mean=c.trace.tokens_mean,
        latency_ms={b: tuple(t.latency_ms) for b, t in timings.items()}, speedup={b: tuple(t.speedup) for b, t in judged.items()},
        backend=backend, precision=precision, verdict={b: t.verdict for b, t in judged.items()})


def _fine_tune(out: Path, test, console: Console, quick: bool) -> str:
    """A fresh plan on the patch-4 twin, one pass over the embedded training images with the dense model as teacher."""
    base = create_base("foveate_nano_p4", classes=10, pretrained=True).eval()
    plan = Plan([SPViT(after=(3, 6, 9), keep=(0.6, 0.36, 0.216), select="topk")])
    torch.manual_seed(SEED)  # the selectors of a fresh plan start at random
    model, teacher = adapt(base, plan), adapt(base, Plan())
    before = _accuracy(model, test)
    train = load_data("fashion-mnist-subset", "train")
    recipe = RECIPES["spvit-nano"].but(epochs=1, batch_size=64)
    console.print(f"fine-tuning {plan} on foveate_nano_p4, live")
    clock = time.perf_counter()
    folder = out / f"fresh-{datetime.now():%Y%m%d-%H%M%S}"
    fit(model, folder, DataSets(train), recipe, teacher=teacher, limit_steps=8 if quick else None, command="foveate demo")
    seconds, after, dense = time.perf_counter() - clock, _accuracy(model, test), _accuracy(teacher, test)
    return (f"Live: a fresh plan on the patch-4 twin ({plan}; {100 * count(model).macs / count(teacher).macs:.0f} % of the dense MACs) went from "
            f"{before:.1f} % to {after:.1f} % in {seconds:.0f} s of fine-tuning; dense: {dense:.1f} %.")


@torch.inference_mode()
def _accuracy(model: AdaptiveModel, test) -> float:
    batches = np.array_split(np.arange(len(test)), max(1, len(test) // 250))
    return 100 * sum(int((model(b.images).argmax(1) == b.labels).sum()) for b in map(test.batch, batches)) / len(test)


def _shown(test, count: int) -> np.ndarray:
    """One image of each of the first `count` classes."""
    return np.array([int((test.labels == c).nonzero()[0, 0]) for c in range(min(count, len(test.classes)))])


def _sentence(candidates: list[Candidate], rows: list[Row]) -> str:
    by = {c.name: c for c in candidates}
    best = max((r for r in rows if r.plan.startswith("spvit") and r.speedup), key=lambda r: max(s[0] for s in r.speedup.values()))
    batch, (median, low, high) = max(best.speedup.items(), key=lambda item: item[1][0])
    change = 100 * (by[best.plan].correct.mean() - by["dense"].correct.mean())
    return (f"{best.plan} runs {median:.2f} times as fast as the dense model in {best.backend} {best.precision} at batch {batch} "
            f"({low:.2f} to {high:.2f}), with {change:+.1f} points of accuracy.")


def _notes(candidates: list[Candidate], images: int) -> list[str]:
    by = {c.name: c for c in candidates}
    better, worse = ((a & ~b).sum() for a, b in ((by["spvit argmax"].correct, by["random, argmax's counts"].correct),
                                                 (by["random, argmax's counts"].correct, by["spvit argmax"].correct)))
    return [
        f"Accuracies are of {images:,} test images, in torch float32; on the same images argmax alone is right {better} times where random "
        f"pruning with its counts is wrong, and wrong {worse} times where that is right.",
        "Both the SPViT and the random run were fine-tuned from the same dense model with the same recipe.",
        "Per-image counts (argmax) run one image at a time in OpenVINO, and at every batch size in torch, where their rows have a dense row of their own.",
    ]


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, disable=not console.is_terminal)
