"""Chooses among engines: makes those that come into question, races them, and remembers which one won."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.runtime.agreement import LOST_PERCENT, Agreement, agreement
from foveate.runtime.choice import Choice, Row, question, race, remember, remembered, today
from foveate.runtime.engine import Engine
from foveate.runtime.fallback import AGREES, Fallback, dense_form
from foveate.runtime.maker import Maker
from foveate.runtime.torch_backend import eager

DENSE, FASTEST = "dense ", "fastest"


@dataclass
class Chooser:
    """The engines that come into question for one model; arguments as of `load_engine`.

    maker: makes an engine of a (backend, precision). candidates: those to try, in turn.
    """

    model: nn.Module
    maker: Any
    candidates: list[tuple[str, str]]
    example: Tensor
    batch: int
    fallback: bool
    threads: int | None
    tolerance: float | None
    labels: Tensor | None

    def engine(self, run: Path | None, backend: str, precision: str) -> Engine:
        """The fastest engine, from memory where this question was answered before; raises FoveateError where none can be made.

        run: the folder that remembers; None measures. backend, precision: what was asked for.
        """
        key = self._question(backend, precision)
        known = None if run is None else remembered(key, run)
        if known is not None:
            try:
                return self._again(known)
            except FoveateError:  # other weights than those that it was chosen for may not agree any more
                pass
        found = self._measured()
        if run is not None:
            remember(key, found.choice, run)
        return found

    def _question(self, backend: str, precision: str) -> str:
        plan, card = getattr(self.model, "plan", None), getattr(self.model, "card", None)
        return question(
            backbone=getattr(card, "name", None), plan=None if plan is None else plan.digest(), size=list(self.example.shape[1:]), batch=self.batch,
            threads=self.threads, backend=backend, precision=precision, candidates=self.candidates, fallback=self.fallback, tolerance=self.tolerance,
        )  # fmt: skip

    def _again(self, known: Choice) -> Engine:
        maker = self.maker if known.fallback is None else self._dense_maker()
        return self._chosen(maker.engine(known.backend, known.precision), known)

    def _measured(self) -> Engine:
        rows, best = self._raced(self.maker, "")
        dense_maker, fallback = self._dense_maker() if self.fallback else None, None
        if dense_maker is not None:
            others, dense = self._raced(dense_maker, DENSE)
            fallback, said = self._against(best, dense)
            loser = rows if fallback else others
            loser[:] = [replace(row, verdict=said) if row.verdict == FASTEST else row for row in loser]
            rows, best = rows + others, dense if fallback else best
        return self._chosen(best, Choice(best.backend, best.precision, self.batch, tuple(rows), fallback, **today()))

    def _chosen(self, engine: Engine, choice: Choice) -> Engine:
        engine.choice, engine.fallback = choice, choice.fallback
        taken = (DENSE if choice.fallback else "") + engine.name
        engine.passed_over = {row.name: row.verdict for row in choice.rows if row.name != taken}
        return engine

    def _raced(self, maker: Any, label: str) -> tuple[list[Row], Engine]:
        """A row for each candidate, and the fastest; raises the first refusal where all are refused."""
        engines, rows, refused = [], [], []
        for backend, precision in self.candidates:
            try:
                engines.append(maker.engine(backend, precision))
            except FoveateError as error:
                refused.append(error)
                rows.append(Row(label + backend, precision, None, "", error.given))
        if not engines:
            raise refused[0]
        limits = [engine.max_batch for engine in engines if engine.max_batch]
        batch = min(self.batch, *limits) if len(limits) == len(engines) else self.batch
        able = [engine for engine in engines if engine.max_batch is None or batch <= engine.max_batch]
        ms = race(able, self._images(batch))
        best = min(able, key=lambda engine: ms[engine.name])
        for engine in engines:
            if engine not in able:
                said = f"takes {engine.max_batch} image at once, {batch} were asked for"
            else:
                said = FASTEST if engine is best else f"{ms[engine.name]:.2f} ms an image against {ms[best.name]:.2f}"
            rows.append(Row(label + engine.backend, engine.precision, ms.get(engine.name), str(engine.agreement or ""), said))
        return rows, best

    def _against(self, plan: Engine, dense: Engine) -> tuple[Fallback | None, str]:
        """That dense execution is to run, and in words why the other of the two is not."""
        batch = min(self.batch, plan.max_batch or self.batch)
        ms = race([replace(plan, backend="plan"), replace(dense, backend="dense")], self._images(batch))
        plan_ms, dense_ms = ms[f"plan {plan.precision}"], ms[f"dense {dense.precision}"]
        if dense_ms > plan_ms:
            return None, f"{dense_ms:.2f} ms an image against {plan_ms:.2f} of the plan"
        compared = agreement(self._answers(self._dense), self._answers(self.model), self.labels)
        if not _same_model(compared):
            return None, f"{dense_ms:.2f} ms an image against {plan_ms:.2f} of the plan, but other answers: {compared}"
        said = f"{plan_ms:.2f} ms an image against {dense_ms:.2f} with nothing dropped"
        return Fallback(str(self.model.plan), plan.name, plan_ms, dense_ms, compared.same_top1), said

    def _answers(self, model: nn.Module) -> Tensor:
        return eager(model, "fp32")(self.example)

    def _dense_maker(self) -> Maker | None:
        self._dense = dense_form(self.model)
        own = {} if not isinstance(self.maker, Maker) else {"labels": self.labels, "calibration": self.maker.calibration}
        return None if self._dense is None else Maker(self._dense, self.example, self.threads, self.tolerance, **own)

    def _images(self, batch: int) -> Tensor:
        """As many images, from the start again where the example has fewer."""
        return self.example.repeat(-(-batch // len(self.example)), 1, 1, 1)[:batch]


def _same_model(compared: Agreement) -> bool:
    """Whether dense execution answers like the plan: as often rightly where labels tell, otherwise for nine images in ten."""
    if compared.lost_percent is None:
        return compared.same_top1 >= AGREES
    return compared.lost_percent <= max(LOST_PERCENT, 100 / compared.images)
