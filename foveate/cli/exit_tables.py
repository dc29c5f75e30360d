"""Early exits as tables and figures: accuracy of each head (Table 2 of IRET), MACs by threshold (Table 3), who leaves where (Figs. 20, 21)."""

from __future__ import annotations

from typing import Any

import numpy as np

from foveate.exit_stats import ExitOutcomes, ExitPoint
from foveate.report import Bar, Bars, Chart, Line, Made, Results, Table


def exit_results(
    title: str, outcomes: ExitOutcomes, points: list[ExitPoint], own: ExitPoint, source: str, machine: dict[str, Any], made: Made
) -> Results:
    """The exits as a report. points: at least one. own: the threshold whose histogram is drawn. source: the images, in words."""
    gate = outcomes.config.gate
    images = f"{outcomes.correct.shape[1]:,} images ({source})"
    tables = (_heads(outcomes, images), _thresholds(outcomes, points, images), _histogram(outcomes, own, images))
    blocks, scale = np.array(outcomes.blocks, dtype=float), np.array([point.threshold for point in points])
    accuracy = Chart("Accuracy of each exit", "after block", "top-1 accuracy (%)", blocks, (Line("exit alone, all images", np.array(outcomes.accuracies)),))
    spent, kept = (np.array([one(point) for point in points]) for one in (lambda point: point.macs / 1e9, lambda point: point.accuracy_percent))
    cost = Chart(f"MACs by {gate} threshold", f"{gate} threshold", "GMACs of the mean image", scale, (Line("mean image", spent),))
    right = Chart(f"Accuracy by {gate} threshold", f"{gate} threshold", "top-1 accuracy (%)", scale, (Line("all images", kept),))
    charts = (accuracy, cost, right) if len(points) > 1 else (accuracy,)
    bars = (_bars_by_exit(outcomes, own), _bars_by_threshold(outcomes, points))
    figures = {
        "images": outcomes.correct.shape[1], "gate": gate, "threshold": own.threshold, "blocks": list(outcomes.blocks),
        "heads": [{"block": block, "accuracy_percent": percent, "macs": float(macs)}
                  for block, percent, macs in zip(outcomes.blocks, outcomes.accuracies, outcomes.macs.mean(1))],
        "thresholds": [_plain(outcomes, point) for point in points], "chosen": _plain(outcomes, own),
    }  # fmt: skip
    return Results(title, _sentence(outcomes, own), machine=machine, made=made, tables=tables, charts=charts, bars=bars, figures=figures)


def _plain(outcomes: ExitOutcomes, point: ExitPoint) -> dict[str, Any]:
    rows = zip(outcomes.blocks, point.right, point.wrong, point.leaving)
    exits = [{"block": block, "right_percent": right, "wrong_percent": wrong, "left_percent": left} for block, right, wrong, left in rows]
    return {"threshold": point.threshold, "accuracy_percent": point.accuracy_percent, "macs": point.macs, "exits": exits,
            "unclassified_percent": point.unclassified, "unclassified_right_percent": point.unclassified_right}  # fmt: skip


def _heads(outcomes: ExitOutcomes, images: str) -> Table:
    figures = zip(outcomes.blocks, outcomes.accuracies, outcomes.macs.mean(1))
    rows = tuple((f"{block}", f"{percent:.2f}", f"{macs / 1e9:.4g}") for block, percent, macs in figures)
    return Table("Each exit by itself", ("after block", "accuracy (%)", "GMACs"), rows,
                 f"All {images} at every exit; the last one is the model's own head. GMACs: of an image that leaves there.", left=0)


def _thresholds(outcomes: ExitOutcomes, points: list[ExitPoint], images: str) -> Table:
    head = ("threshold", "accuracy (%)", "GMACs", *(f"{block} (%)" for block in outcomes.blocks), "unclassified (%)")
    rows = tuple((f"{p.threshold:g}", f"{p.accuracy_percent:.2f}", f"{p.macs / 1e9:.4g}", *(f"{share:.1f}" for share in (*p.leaving, p.unclassified)))
                 for p in points)
    return Table(f"What each {outcomes.config.gate} threshold gives", head, rows,
                 f"Of {images}; the columns with numbers: the share that leaves after that block. Unclassified: the last exit is not sure of them either; "
                 "they leave there with its answer.", left=0)


def _histogram(outcomes: ExitOutcomes, own: ExitPoint, images: str) -> Table:
    before, rows = 0.0, []
    for block, right, wrong in zip(outcomes.blocks, own.right, own.wrong):
        rows.append((f"{block}", f"{right:.2f}", f"{wrong:.2f}", f"{before:.2f}"))
        before += right + wrong
    rows.append(("unclassified", f"{own.unclassified_right:.2f}", f"{own.unclassified - own.unclassified_right:.2f}", f"{before:.2f}"))
    head = ("after block", "rightly (%)", "wrongly (%)", "left before (%)")
    return Table(f"Who leaves where at threshold {own.threshold:g}", head, tuple(rows), f"Of {images}.")


def _bars_by_exit(outcomes: ExitOutcomes, own: ExitPoint) -> Bars:
    before, bars = 0.0, []
    for block, right, wrong in zip(outcomes.blocks, own.right, own.wrong):
        left = (("left before", before),)
        own_parts = (("right", right), ("wrong", wrong))
        # Colours go by first appearance: those of right and wrong come first, though from the second bar on they stand behind.
        bars.append(Bar(f"after block {block}", (*left, *own_parts) if bars else (*own_parts, *left)))
        before += right + wrong
    bars[-1] = Bar(bars[-1].name, (*bars[-1].parts, ("unclassified", own.unclassified)))
    return Bars(f"Who leaves where at threshold {own.threshold:g}", "images (%)", tuple(bars), "Sure answers only; what is missing to 100 goes on.")


def _bars_by_threshold(outcomes: ExitOutcomes, points: list[ExitPoint]) -> Bars:
    names = [f"after block {block}" for block in outcomes.blocks]
    parts = lambda p: tuple(zip(names, (right + wrong for right, wrong in zip(p.right, p.wrong)))) + (("unclassified", p.unclassified),)
    return Bars(f"Where images leave, by {outcomes.config.gate} threshold", "images (%)", tuple(Bar(f"threshold {p.threshold:g}", parts(p)) for p in points))


def _sentence(outcomes: ExitOutcomes, own: ExitPoint) -> str:
    last = outcomes.macs[-1].mean()
    return (f"At threshold {own.threshold:g} the exits answer {own.accuracy_percent:.2f} % of the images rightly for {own.macs / 1e9:.4g} GMACs; "
            f"the last one alone {outcomes.accuracies[-1]:.2f} % for {last / 1e9:.4g}.")  # fmt: skip
