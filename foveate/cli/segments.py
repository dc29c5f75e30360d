"""profile segments: the table that budgets go by, measured on this machine and kept with the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.answer import Answer, note, table, waiting

if TYPE_CHECKING:
    from foveate.budgets import SegmentCosts


def profile_segments(
    answer: Answer, model_or_run: str, plan: str | None, batch: int, precision: str, threads: int | None, device: str, target: str | None, out: Path | None
) -> None:
    """Fills `answer` with what each segment between two exits (each effort) takes for groups of up to `batch` images and costs on `target`.

    The table goes into `out`, by default into the run. Raises FoveateError for a plan without exits.
    """
    from foveate.cli.targets import open_model, plan_of, target_of
    from foveate.measure.attention import check_precision

    check_precision(precision)
    named = target_of(model_or_run)
    chosen = plan_of(named, plan)
    with waiting("loading the model"):
        import torch

        from foveate.budgeting import TARGET, with_energy, with_latency
        from foveate.budgets import SegmentCosts, no_exits
        from foveate.cli.judge import chosen_device
        from foveate.measure.race import DTYPES
        from foveate.runtime.loading import synthetic_images
        from foveate.segments import cut_at_efforts, cut_at_exits
        from foveate.store import store_costs

        if threads:
            torch.set_num_threads(threads)
        model = open_model(named, chosen, random_weights=True).to(chosen_device(device), DTYPES[precision]).eval()
    if not (getattr(model, "exit_blocks", ()) or hasattr(model, "efforts")):
        raise no_exits("profile segments", f"{model.card.name}, {chosen}")
    images = synthetic_images(model.card, batch).to(next(model.parameters()))
    cut = (cut_at_efforts if hasattr(model, "efforts") else cut_at_exits)(model, images)
    with waiting("measuring"):
        costs = with_energy(cut, with_latency(cut, SegmentCosts(cut.ends), images), target or TARGET)
    own = named.folder is not None and not named.embedded and chosen == plan_of(named, None)
    folder = out or (named.folder if own else None)
    if folder is None:
        note("the table is kept nowhere: this is no run with that plan; give --out FOLDER to keep it")
    path = None if folder is None else store_costs(folder, costs)
    answer.data = {"model": model.card.name, "run": named.folder, "plan": str(chosen), "batch": batch, "segment_costs": path} | costs.to_dict()
    _show(answer, costs, hasattr(model, "efforts"))


def _show(answer: Answer, costs: SegmentCosts, efforts: bool) -> None:
    shown = table("effort" if efforts else "up to block", "images", "tokens", "median (ms)", "nearly always below (ms)", "mJ an image", left=1)
    for end, points, energies in zip(costs.ends, costs.latency, costs.energy):
        for at, point in enumerate(points):
            figures: list[Any] = [point.images, point.tokens, f"{point.median_ms:.3g}", f"{point.high_ms:.3g}"]
            shown.add_row(str(end) if at == 0 else "", *map(str, figures), f"{energies[0].energy_mj:.4g}" if at == 0 else "")
    answer.shown = [shown, f"{costs.runner}; energies on {costs.target}"]
