"""Cascades on engines: every effort has an engine of its own, and what a gate passes on is regrouped between them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.cascade import Cascade
from foveate.gates import Gate
from foveate.nn.gates import passes_on
from foveate.runtime.engine import Engine
from foveate.runtime.maker import precisions_of
from foveate.runtime.staged import Staged
from foveate.runtime.staged_maker import maker_of
from foveate.segments import FIRST_EFFORT, Cut, Pictures


class Regrouped(Staged):
    """images [B, C, H, W] -> logits [B, classes] in their order, each from the effort that answered.

    engines: one an effort, lowest first. gates: between them. plan, cards: of the cascade, which budgets of energy need.
    """

    who = "efforts"

    def __init__(self, engines: Sequence[Engine], gates: Sequence[Gate], plan: Any = None, cards: Sequence[Any] = ()):
        self.engines, self.gates = engines, gates
        runner = f"{', '.join(engine.name for engine in engines)}, {torch.get_num_threads()} threads"
        super().__init__(Cut([_effort(engine) for engine in engines], tuple(range(1, len(engines) + 1)),
                             lambda number, answers: ~passes_on(gates[number], answers[-1]), plan, tuple(cards), lambda images, share: Pictures(images), runner,
                             FIRST_EFFORT))


def _effort(engine: Engine):
    return lambda group: (group, engine(group.images))


class CascadeMaker:
    """Makes engines of a cascade; arguments as of `load_engine`.

    The agreement of its engines is that of the effort that agrees least: behind a gate a rounding may send an image on, so that
    single logits of the whole are no measure.
    """

    def __init__(self, cascade: Cascade, example: Tensor, threads: int | None = None, tolerance: float | None = None):
        self.plan, self.cards = cascade.plan, cascade.cards
        # All sizes of groups come by behind a gate: a graph compiled for each would cost more than it saves.
        self.makers = [maker_of(effort, example, threads, tolerance, any_size=number > 0) for number, effort in enumerate(cascade.efforts)]

    def engine(self, backend: str, precision: str) -> Engine:
        """An engine of every effort behind the gates; raises FoveateError where one of them cannot be made or disagrees.

        In int8 the efforts that were trained with it compute in 8 bits, others, such as the dense model they come from, in float32.
        """
        own = [precisions_of(backend, maker.model) for maker in self.makers]
        mixed = precision == "int8" and any(precision in allowed for allowed in own)
        engines = [maker.engine(backend, allowed[0] if mixed else precision) for maker, allowed in zip(self.makers, own)]
        least = max((engine.agreement for engine in engines), key=lambda found: found.typical)
        limit = min((engine.max_batch for engine in engines if engine.max_batch), default=None)
        return Engine(Regrouped(engines, self.plan.gates, self.plan, self.cards), backend, precision, limit, least, staged=True)
